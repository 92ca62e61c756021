"""Every example runs as its first lines say, on a micro world and tiny models."""

import importlib
import inspect
import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import rlhf_jax
from rlhf_jax.cli.parser import parse
from rlhf_jax.cli.plan import read
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.world import write_world
from rlhf_jax.models import DecoderConfig, save_hf

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))
SHORT = {"max_steps": 2, "train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0}


@pytest.fixture
def example(monkeypatch):
    """example(name): the module, its folder searched as Python does for a script."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.fixture(scope="module")
def world(tmp_path_factory, weights):
    """A micro world with a tiny random policy, `base`, and a reward model, `rm`."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldConfig(sft_rows=8, preference_rows=8, prompt_rows=4, eval_prompts=2))
    tokenizer = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    config = DecoderConfig("llama", vocab_size=len(tokenizer["model"]["vocab"]), embed=16, layers=1, heads=2,
                           kv_heads=1, head_dim=8, mlp=32, max_position=256, tie_embeddings=True, bos_token_id=1,
                           eos_token_ids=(4,), pad_token_id=0, initializer_range=0.1)
    judge = DecoderConfig(**{**vars(config), "num_labels": 1, "tie_embeddings": False})
    for name, one in (("base", config), ("rm", judge)):
        save_hf(folder / name, jax.device_get(weights(one)), one, tokenizer_from=folder / "tokenizer")
    return folder


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_listed(path):
    assert len(path.read_text().splitlines()) <= 60
    assert f"[{path.name}]({path.name})" in (ROOT / "examples/README.md").read_text()


@pytest.mark.parametrize("path", [path for path in EXAMPLES if "sys.argv" in path.read_text()],
                         ids=lambda path: path.name)
@pytest.mark.parametrize("words", [[], ["one", "two", "three", "four", "five"]], ids=["none", "too many"])
def test_an_example_with_other_arguments_says_how_it_is_called(path, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 2
    assert f"\npython examples/{path.name} " in inspect.cleandoc(capsys.readouterr().err)  # Python 3.13 cleans it


@pytest.mark.longer
def test_a_loop_of_ones_own_learns(example):
    loss, accuracy = example("own_loop").main(steps=30)
    assert loss < np.log(2)
    assert accuracy > 0.9


def test_a_reward_model_is_evaluated(example, world, tmp_path):
    report = example("evaluate_reward_model").main(world / "rm", world / "preference_eval.jsonl", tmp_path / "out")
    assert 0 <= report["accuracy"]["value"] <= 1
    assert report["pairs"] > 0


@pytest.mark.slow
def test_a_round_in_python_trains_on_its_own_pairs(example, world, tmp_path):
    before, after = example("online_round").main(world / "base", world / "rm", world / "prompts.jsonl",
                                                 tmp_path / "out", **SHORT)
    assert before != after
    assert all(len(group.pairs) == 1 for group in rlhf_jax.read_groups(tmp_path / "out/pairs.jsonl"))


@pytest.mark.slow
def test_a_loss_of_ones_own_trains(example, world, tmp_path):
    report = example("own_loss").main(world / "base", world / "preference.jsonl", tmp_path / "out", **SHORT)
    assert report["steps"] == 2
    assert np.isfinite(report["train"]["loss"])


def test_a_pair_rule_of_ones_own_chooses(example, world, tmp_path):
    one = rlhf_jax.PromptGroup("p", np.ones(1, np.int32), tuple(
        rlhf_jax.Response(np.asarray([i + 1], np.int32), np.ones(1, bool), str(i), scores={"proxy": float(i)})
        for i in range(4)), "the cat")
    (tmp_path / "scored").mkdir()
    rlhf_jax.write_groups(tmp_path / "scored/shard-00000.jsonl", [one])
    (tmp_path / "scored/stage.json").write_text("{}")
    example("own_pair_rule").main(tmp_path / "scored", tmp_path / "out")
    (pair,) = rlhf_jax.read_groups(tmp_path / "out/pairs.jsonl")
    assert [response.text for response in pair.responses] == ["3", "1"]


@pytest.mark.slow
def test_a_scorer_of_ones_own_is_what_a_run_learns_from(example, world, tmp_path):
    small = {"num_generations": 2, "max_new_tokens": 8, "slots": 8, "block": 8}
    results = example("own_scorer").main(world / "base", world / "prompts.jsonl", world / "eval_prompts.jsonl",
                                         tmp_path / "out", sampling=small, dpo=SHORT, evaluation={
                                             "data": {"dataset_name": world / "eval_prompts.jsonl"}, "sampling": small})
    assert len(results["policies"]) == 2
    assert (tmp_path / "out/report.html").is_file()


def test_the_commands_for_a_pod_are_commands(tmp_path, monkeypatch):
    """With programs that write down what they are given in the place of `rlhf-jax` and `python`."""
    for name in ("rlhf-jax", "python"):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} ${{*@Q}}" >> "{tmp_path}/given"\n')
        (tmp_path / name).chmod(0o755)
    given = {"POLICY": "own/policy", "REWARD_MODEL": "own/rm", "PROMPTS": "/s/prompts.jsonl",
             "HELD_OUT": "/s/held_out.jsonl", "RUN_FOLDER": "/mnt/shared/run"}
    subprocess.run(["bash", ROOT / "examples/tpu_pod_round.sh"], check=True, cwd=ROOT,
                   env={**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    plan, launched, deleted, export = map(shlex.split, (tmp_path / "given").read_text().splitlines())
    monkeypatch.chdir(ROOT)
    read(named(VERBS["plan"].options), "plan", plan[2:])
    assert launched[:4] == ["python", "-m", "launch.tpu_vm", "run"]
    assert deleted[3] == "delete"
    iterate = shlex.split(next(word for word in launched if word.startswith("COMMAND="))[len("COMMAND="):])
    config = parse(named(VERBS["iterate"].options), "iterate", iterate[2:])
    assert (config.loop.rounds, config.output_dir, config.mesh.fsdp) == (1, "/mnt/shared/run", 8)
    command = parse(named(VERBS["export"].options), "export", ["--model_name_or_path", *export[2:]])
    assert command.model_name_or_path == "/mnt/shared/run/policy"
    real = subprocess.run([sys.executable, "-m", "launch.tpu_vm", "run", "--dry-run", *launched[4:]], cwd=ROOT,
                          check=False, capture_output=True, text=True)
    assert real.returncode == 0, real.stderr
