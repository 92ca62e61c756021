"""What help says of a key is what a command without that key has."""

import itertools
import re
import subprocess
import sys

import pytest

from rlhf_jax import __version__
from rlhf_jax.cli import help as page
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build, kind_name
from rlhf_jax.config.scorer import SingleScoring
from rlhf_jax.config.training import RewardOptions
from rlhf_jax.fields import flattened

MODEL = {"model_name_or_path": "m", "output_dir": "o"}
ROWS = {**MODEL, "dataset_name": "d"}
FUNCTION = {"kind": "function", "function": "m:f"}
JUDGED = {"output_dir": "o", "scorer": FUNCTION}
SCORERS = {"bradley_terry": {}, "function": {"function": "m:f"}, "judge": {"url": "http://h/v1", "model": "m"},
           "implicit": {"reference_model": "r"}, "reward_server": {"url": "http://h", "model": "m"}}
RUN = {**MODEL, "prompts": {"dataset_name": "d"}, "scorer": FUNCTION, "sft": {"data": {"dataset_name": "d"}},
       "sampling": {"engine": {"urls": "http://h/v1", "model": "m", "name": "vllm", "version": "1"}}}
REWARD = {"output_dir": "o", "model_name_or_path": "m", "prompts": {"dataset_name": "d"}}
COMMANDS = [
    ("sft", "", ROWS), ("dpo", "", ROWS), ("generate", "", ROWS), ("pairs", "", {"input": "i", "output_dir": "o"}),
    ("evaluate", "", {**JUDGED, "dataset_name": "d"}), ("export", "", MODEL),
    ("inspect", "", {"model_name_or_path": "m"}),
    ("compare", "", {**ROWS, **JUDGED, "baseline_model": "b"}), ("doctor", "", {"model_name_or_path": "m"}),
    ("agreement", "", {"verdicts": "v", "output_dir": "o"}), ("data", "", {"sources": ["a"], "output_dir": "o"}),
    ("watch", "", {"run": "r"}), ("report", "", {"run": "r"}), ("convert", "", {"file": "f", "verb": "sft"}),
    *(("iterate", section, RUN) for section in ("", "sampling", "sampling.engine", "dpo", "raft", "sft.train", "loop",
                                                "pairs", "prompts", "mesh")),
    *(("reward", "", {**ROWS, "kind": kind_name(kind), **({"objectives": ["data"]} if "regression" in kind_name(kind)
                                                          else {})}) for kind in RewardOptions.__args__),
    *(("iterate", "reward.train", {**REWARD, "reward": {"data": {"dataset_name": "d"}, "train": {"kind": kind}}})
      for kind in ("bradley_terry", "odin", "outcome")),
    *(("score", "", {"input": "i", "output_dir": "o", "kind": kind_name(kind),
                     **({} if kind_name(kind) in ("function", "judge", "reward_server") else MODEL),
                     **SCORERS.get(kind_name(kind), {})}) for kind in SingleScoring.__args__),
]


def listed(verb, section, kind, capsys):
    """Key -> the default that help says it has, with this kind."""
    page.print_help(verb, named(VERBS[verb].options), section)
    found, of_kind, block = {}, {}, ""
    for line, below in itertools.pairwise(capsys.readouterr().out.split("\n")):
        block = "" if not line else line if not line.startswith(" ") else block
        key = re.match(rf"  --(?:{re.escape(section)}\.)?(\w+)( |$)", line)
        said = re.search(r"\[default ([^;]*?)((?:; of kind \w+ [^;\]]*)*)(?:; [^;]*)?\]$", below)
        of_other = block.startswith("kind: ") and not block.startswith(f"kind: {kind}.")
        if key is None or said is None or of_other:
            continue
        own = dict(re.findall(r"; of kind (\w+) ([^;\]]*)", said[2]))
        (of_kind if block.startswith("kind: ") else found)[key[1]] = own.get(kind, said[1])
    return {**found, **of_kind}


@pytest.mark.parametrize(("verb", "section", "given"), COMMANDS,
                         ids=[f"{verb} {section} {given.get('kind', '')}" for verb, section, given in COMMANDS])
def test_a_default_in_the_help_is_what_a_command_has(verb, section, given, capsys, monkeypatch):
    monkeypatch.setattr(page, "WIDTH", 1_000_000)
    tree = flattened(build(named(VERBS[verb].options), given))
    for name in filter(None, section.split(".")):
        given, tree = given.get(name, {}), tree[name]
    shown = listed(verb, section, tree.get("kind"), capsys)
    same = {key: page._shown(value) for key, value in tree.items() if key in shown and key not in given}
    assert same
    assert {key: shown[key] for key in same} == same


@pytest.mark.parametrize("verb", VERBS)
def test_null_is_written_as_a_command_takes_it(verb, capsys):
    page.print_help(verb, named(VERBS[verb].options))
    assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["dpo", "--help"], ["iterate", "--dpo.help"]])
def test_help_into_a_pipe_that_closes_early_ends_quietly(words):
    shown = subprocess.run(f"{sys.executable} -m rlhf_jax {' '.join(words)} | head -n 0; exit ${{PIPESTATUS[0]}}",
                           shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("word", ["--version", "version"])
def test_the_version_is_printed(word, rlhf_jax):
    assert rlhf_jax(word) == (0, f"{__version__}\n", "")
