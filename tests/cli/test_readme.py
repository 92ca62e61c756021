"""The README's commands for one's own model, as printed."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = {"pairs": "preference", "held_out_pairs": "preference_eval", "prompts": "prompts",
        "held_out_prompts": "eval_prompts"}
"""File that the README names -> rows of the micro world."""


def commands():
    """The words of each command of the block, MODEL among them."""
    text = (ROOT / "README.md").read_text().partition("## Your own model and data")[2]
    block = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.split(r"\n|&&", block) if line.strip()]


@pytest.mark.parametrize("dry_run", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_commands_for_ones_own_model_work_as_printed(dry_run, world, rlhf_jax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, rows in ROWS.items():
        shutil.copy(world / f"{rows}.jsonl", f"{name}.jsonl")
    assert [words[0] for words in commands()] == ["inspect", "doctor", "reward", "iterate"]
    for words in commands():
        status, out, err = rlhf_jax(*(word.replace("MODEL", str(world / "long")) for word in words),
                                    *(["--dry-run"] if dry_run and words[0] == "iterate" else []))
        assert status == 0, out + err
    assert dry_run or (tmp_path / "runs" / "mine" / "report.html").is_file()
