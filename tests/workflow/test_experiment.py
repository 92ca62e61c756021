"""The whole workflow on a micro world: what the quickstart does, in seconds."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_jax.cli.parser import parse
from rlhf_jax.config.build import build
from rlhf_jax.config.run import ExperimentConfig, reseeded
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.policies import Entry

pytestmark = pytest.mark.slow

TRAIN = {"train_batch_size": 8, "micro_rows": 2, "row_length": 160, "num_train_epochs": 1, "learning_rate": 1e-3}
LABELS = ["sft", "offline_dpo", "matched_dpo-1", "raft-1", "raft-2", "online-1", "online-2"]


@pytest.fixture(scope="module")
def config(micro_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    micro = micro_run(TRAIN, slots=4, shard_size=4, raft=TRAIN, baselines=["offline_dpo", "matched_dpo", "raft"])
    (folder / "micro.yaml").write_text(yaml.safe_dump(micro))
    return parse(ExperimentConfig, "iterate", ["--config", str(folder / "micro.yaml"), "--output_dir",
                                               str(folder / "run")])


def run_as_a_user(config, xla_flags):
    """`rlhf-jax iterate` in a process of its own, on one device."""
    folder = Path(config.output_dir)
    command = [sys.executable, "-m", "rlhf_jax.cli.main", "iterate", "--config", str(folder.parent / "micro.yaml"),
               "--output_dir", str(folder)]
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def results(config, xla_flags):
    return run_as_a_user(config, xla_flags)[1]


def test_every_arm_of_the_comparison_is_in_the_results(results):
    assert [p["label"] for p in results["policies"]] == LABELS
    for policy in results["policies"]:
        for measure in ("gold", "proxy", "kl_k1", "kl_k3", "length", "win_rate"):
            assert policy[measure]["value"] is not None
    assert results["policies"][0]["kl_k1"]["value"] == pytest.approx(0, abs=1e-3)
    assert results["policies"][0]["win_rate"]["value"] == 0.5
    against = {row["against"] for row in results["differences"]}
    assert against == {"sft", "offline_dpo", "matched_dpo-1", "raft-2"}


def test_the_matched_control_has_as_many_prompts_as_all_rounds_together(results):
    funnels = results["funnels"]
    rounds = [funnels[f"online/round-{i}/pairs"]["read"] for i in (1, 2)]
    assert funnels["matched_dpo/round-1/pairs"]["read"] == sum(rounds) == 16


def test_the_first_dpo_step_of_a_round_from_the_reference_has_loss_ln_2(results):
    first = results["training"]["online/round-1/dpo"][0]
    assert first["loss"] == pytest.approx(0.6931, abs=0.02)


def test_the_report_and_the_published_policy_exist(config, results):
    folder = Path(config.output_dir)
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "policy" / "model.safetensors").is_file()
    assert {s["name"] for s in results["stages"]} >= {"sft", "reward", "reward/evaluate", "online/round-2/dpo"}


def test_a_second_run_does_nothing_and_changes_nothing(config, results, xla_flags):
    out, again = run_as_a_user(config, xla_flags)
    assert out.count("already done") == len(results["stages"])
    assert again["policies"] == results["policies"]


def test_trainings_compile_few_programs_and_rounds_after_them_none(config, results):
    with open(f"{config.output_dir}/manifest.json") as stream:
        stages = json.load(stream)["stages"]
    counts = {s["name"]: s["report"]["compiled_programs"] for s in stages if "packing_efficiency" in s["report"]}
    assert max(counts.values()) <= 2
    assert not any(counts[stage] for stage in ("raft/round-2/raft", "online/round-1/dpo", "online/round-2/dpo"))


@pytest.mark.parametrize(("sft", "name"), [({}, "start"), ({"sft": {"data": {"dataset_name": "unused"}}}, "sft")])
def test_a_start_without_fine_tuning_is_called_what_it_is(sft, name, start, make_context, tmp_path):
    config = build(ExperimentConfig, {
        "output_dir": str(tmp_path), "prompts": {"dataset_name": "unused"}, "model_name_or_path": str(start.folder),
        "scorer": {"kind": "function", "function": "rlhf_jax.data.world:gold_judge"}, **sft})
    assert Experiment(config, make_context(tmp_path)).start_entry(start) == Entry(name, name, 0, start)


def test_reseeded_shifts_every_seed_and_nothing_else(config):
    shifted = reseeded(config, 3)
    assert (shifted.world.seed, shifted.dpo.train.seed, shifted.sampling.seed) == (3, 3, 3)
    assert dataclasses.replace(shifted.dpo, train=dataclasses.replace(shifted.dpo.train, seed=0)) == config.dpo


@pytest.mark.parametrize(("change", "words"), [
    ({"scratch": None}, "exactly one of model_name_or_path"),
    ({"reward": None}, "exactly one of reward"),
    ({"sft": None}, "needs an sft section"),
])
def test_sections_that_do_not_fit_together_are_errors(config, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **change)
