"""The page for those who know TRL or OpenRLHF: its commands are commands, and it says what the hints say."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.foreign import ALIASES, REFUSED
from rlhf_jax.fields import keys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-trl.md").read_text()
COMMANDS = [shlex.split(command)[1:] for command in re.findall(r"`(rlhf-jax [^`]*)`", PAGE)]
NAMES = [(name, row) for row in PAGE.partition("## OpenRLHF's names")[2].splitlines()[4:]
         for name in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_is_one(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("x", "ours"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({
            "model_name_or_path": "MODEL", "dataset_name": "ROWS", "output_dir": "runs/dpo"}))
    verb, *rest = words
    rest = [f"--{VERBS[verb].subject}"] * (not rest[0].startswith("-")) + rest
    named(VERBS[verb].read)(named(VERBS[verb].options), verb, [word for word in rest if word != "--dry-run"])


def test_the_page_has_its_commands():
    assert {words[0] for words in COMMANDS} == {"convert", "dpo", "sft", "export", "iterate", "plan", "evaluate"}


@pytest.mark.parametrize(("name", "row"), NAMES, ids=[name for name, _ in NAMES])
def test_a_name_of_openrlhf_leads_to_the_key_that_the_page_names(name, row):
    here = row.split("|")[2]
    assert (name in REFUSED) != (name in ALIASES)
    assert f"`{ALIASES[name]}`" in here if name in ALIASES else set(re.findall(r"\w+", REFUSED[name])) & set(
        re.findall(r"\w{4,}", here))


def test_every_other_name_of_a_key_leads_to_one():
    ours = {key.rsplit(".", 1)[-1] for verb in VERBS.values() for key, _, _ in keys(named(verb.options))}
    assert set(ALIASES.values()) <= ours
