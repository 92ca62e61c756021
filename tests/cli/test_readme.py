"""The README's commands for one's own model, as printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROWS = {"pairs": "preference", "held_out_pairs": "preference_eval", "prompts": "prompts",
        "held_out_prompts": "eval_prompts"}
"""File that the README names -> rows of the micro world."""


def commands():
    """The words of each command of the block, MODEL among them."""
    text = (ROOT / "README.md").read_text().partition("## Your own model and data")[2]
    block = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.split(r"\n|&&", block) if line.strip()]


def test_the_reward_model_and_the_loop_read_strings_alike():
    *_, reward, iterate = commands()
    assert [words[0] for words in commands()] == ["inspect", "doctor", "reward", "iterate"]
    loop = yaml.safe_load((ROOT / iterate[iterate.index("--config") + 1]).read_text())
    assert reward[reward.index("--text_as_chat") + 1] == "true"
    assert loop["scorer"]["text_as_chat"] is loop["prompts"]["text_as_chat"] is True


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """The working folder, with the files that the README names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, rows in ROWS.items():
        lines = (world / f"{rows}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:3] if "prompts" in name else lines))
    return tmp_path


def given(words, world):
    return [word.replace("MODEL", str(world / "long")) for word in words]


@pytest.mark.longer
def test_the_commands_for_ones_own_model_begin_as_printed(home, world, rlhf_jax):
    for words in commands():
        status, out, err = rlhf_jax(*given(words, world), *(["--dry-run"] if words[0] == "iterate" else []))
        assert status == 0, out + err


@pytest.mark.slow
def test_they_end_as_printed_too(home, world):
    for words in commands()[2:]:
        done = subprocess.run([sys.executable, "-m", "rlhf_jax.cli.main", *given(words, world)], check=False,
                              env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (home / "runs" / "mine" / "report.html").is_file()
