"""The loop with a choice: rejected rounds are left behind, the best lower bound is published, a kill changes nothing.
"""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.run import EvaluationSection, ExperimentConfig
from rlhf_jax.data.groups import STOP, Response
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.evaluation import Results
from rlhf_jax.models import load_params, save_hf
from rlhf_jax.report import headline, write_report
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.results import gather_results
from rlhf_jax.workflow.stage import Run
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.shards import shard_name

LEVELS = {0: 0.0, 1: 1.0, 2: 2.0, 3: 1.5, 4: 3.0}
"""Trainings behind a policy -> what the judge gives its answers."""


SAMPLING = {"max_new_tokens": 8, "num_generations": 2}


def judge(prompts, completions, **columns):
    return [LEVELS[int(text.split()[0])] for text in completions]


def proxy(prompts, completions, **columns):
    return [float(text.split()[0]) + int(text.split()[1]) / 100 for text in completions]


@pytest.fixture
def instant(monkeypatch):
    """Sampling says how often the policy was trained, training adds one."""

    def level(params):
        return round(float(np.asarray(params["final_norm"]).mean()) - 1)

    def sample(stage, folder, context):
        rng = np.random.default_rng(stage.sampling.seed)
        trained = level(context.params(stage.policy))
        write_groups(folder / shard_name(0), [dataclasses.replace(p, responses=tuple(
            Response(rng.integers(5, 250, 4).astype(np.int32), np.ones(4, bool), f"{trained} {i}", STOP,
                     np.zeros(4, np.float32)) for i in range(stage.sampling.num_generations)))
            for p in stage.prompts.read()])
        return {}

    def train(stage, folder, context):
        params = dict(jax.device_get(context.params(stage.start)))
        params["final_norm"] = params["final_norm"] + 1
        save_hf(folder / MODEL, params, stage.start.config, tokenizer_from=stage.start.folder)
        return {}

    monkeypatch.setattr(SampleStage, "run", sample)
    monkeypatch.setattr(DpoStage, "run", train)


@pytest.fixture
def config(world, model, tmp_path, monkeypatch):
    """config(**selection): four rounds of four prompts each, and validation prompts of their own."""
    monkeypatch.setitem(sys.modules, "scripted", SimpleNamespace(judge=judge, proxy=proxy))
    rows = [json.loads(line) for line in (world / "prompts.jsonl").read_text().splitlines()]
    for name, some in (("prompts", rows[:16]), ("validation", rows[16:24])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

    def make(folder="run", loop=None, **selection):
        return build(ExperimentConfig, {
            "output_dir": str(tmp_path / folder), "model_name_or_path": str(model),
            "prompts": {"dataset_name": str(tmp_path / "prompts.jsonl")},
            "scorer": {"kind": "function", "function": "scripted:proxy"},
            "sampling": SAMPLING,
            "loop": {"rounds": 4, "prompts_per_round": 4, **(loop or {})},
            "selection": {"data": {"dataset_name": str(tmp_path / "validation.jsonl")},
                          "judge": {"kind": "function", "function": "scripted:judge"}, **selection,
                          "sampling": {**SAMPLING, "temperature": 0.7, **selection.get("sampling", {})}}})

    return make


def run(config, lone_mesh, make_context):
    context = make_context(config.output_dir, run=Run(Path(config.output_dir), config, announce=lambda text: None))
    return Experiment(config, context).run(), context


def trained(policy):
    return round(float(np.asarray(load_params(policy)["final_norm"]).mean()) - 1)


def names(context):
    return [stage.name for stage in context.run.stages]


@pytest.mark.longer
def test_a_judge_of_1_2_and_one_and_a_half_publishes_round_2_and_stops(instant, config, lone_mesh, make_context,
                                                                         tmp_path):
    outcome, context = run(config(), lone_mesh, make_context)
    assert [(c.label, c.judged.value, bool(c.rejected), c.published) for c in outcome.candidates] == [
        ("start", 0.0, False, False), ("online-1", 1.0, False, False), ("online-2", 2.0, False, True),
        ("online-3", 1.5, True, False)]
    assert outcome.candidates[3].rejected.startswith("judge is -0.5 [-0.5, -0.5] against online-2")
    assert trained(tmp_path / "run/policy") == 2
    assert not [name for name in names(context) if "round-4" in name]
    assert [entry.label for entry in outcome.entries] == ["start", "online-1", "online-2", "online-3"]
    results = gather_results(context.run, outcome, title="A run", gold=None, seed=0)
    assert Results.from_json(json.loads(json.dumps(results.to_json()))).candidates == outcome.candidates
    told = " ".join(headline(results))
    assert "Published is online-2" in told
    assert "online-3 was rejected: judge is -0.5" in told
    page = write_report(results, tmp_path / "page").read_text()
    assert "Choice of the policy" in page
    assert "rejected: judge is -0.5" in page


@pytest.mark.parametrize(("patience", "rounds"), [(1, 3), (2, 4), (None, 4)])
def test_the_next_round_goes_on_from_the_last_accepted_one(instant, config, lone_mesh, make_context, tmp_path,
                                                           patience, rounds):
    outcome, context = run(config(patience=patience), lone_mesh, make_context)
    assert len(outcome.entries) == 1 + rounds
    levels = [trained(entry.policy.folder) for entry in outcome.entries]
    assert levels == [0, 1, 2, 3, 3][: 1 + rounds]  # the fourth starts where the third did
    starts = {s.name: json.loads((s.folder / "inputs.json").read_text())["inputs"].get("start")
              for s in context.run.stages}
    assert rounds == 3 or starts["online/round-4/dpo"] == starts["online/round-3/dpo"]
    assert trained(tmp_path / "run/policy") == 2


@pytest.mark.longer
def test_a_rejected_policy_leaves_a_moving_reference_alone(instant, config, lone_mesh, make_context):
    _, context = run(config(patience=None, loop={"reference": "ema"}), lone_mesh, make_context)
    assert [name for name in names(context) if name.endswith("/reference")] == [
        f"online/round-{number}/reference" for number in (1, 2)]


def test_a_policy_too_far_from_the_start_is_rejected(instant, config, lone_mesh, make_context):
    """The samples claim log-probs of 0, so that every one is about as far as its length times the log of the tokens."""
    outcome, _ = run(config(kl_limit=1.0, sampling={"temperature": 1.0}), lone_mesh, make_context)
    assert [bool(c.rejected) for c in outcome.candidates] == [False, True]
    assert outcome.candidates[0].kl > 1  # the start is not asked
    assert outcome.candidates[1].rejected.startswith("its divergence from the start, ")


def test_over_optimisation_is_told_by_the_proxy_and_the_number_that_shall_rise_with_it(instant, config, lone_mesh,
                                                                                         make_context, monkeypatch):
    monkeypatch.setitem(LEVELS, 2, 1.0)
    outcome, _ = run(config(measure="proxy", pessimistic="judge"), lone_mesh, make_context)
    assert [bool(c.rejected) for c in outcome.candidates] == [False, False, True]
    assert "proxy rose by +1 [+1, +1] against online-1 and judge did not: +0 [+0, +0]" in outcome.candidates[2].rejected


def test_where_every_round_does_harm_the_start_is_published_wherever_it_lies(instant, config, lone_mesh, make_context,
                                                                              monkeypatch, tmp_path, model):
    monkeypatch.setitem(LEVELS, 1, -1.0)
    outcome, _ = run(config(), lone_mesh, make_context)
    assert [c.published for c in outcome.candidates] == [True, False]
    assert (tmp_path / "run/policy").resolve() == model.resolve()


class Killed(BaseException):
    """Stands for kill -9 between two stages or within one."""


@pytest.mark.longer
def test_a_kill_at_any_stage_ends_in_the_same_bytes(instant, config, lone_mesh, make_context, products, tmp_path,
                                                    monkeypatch):
    whole, context = run(config("whole"), lone_mesh, make_context)
    expected = products(tmp_path / "whole")
    stages = names(context)
    assert [name for name in stages if name.endswith("/choose")]
    real = Run.stage
    for place in range(0, len(stages), 2):
        folder = f"killed-{place}"

        def dying(self, name, inputs, body, place=place):
            def interrupted(path):
                if name == stages[place]:
                    body(path)  # all but its record is written
                    raise Killed
                return body(path)
            return real(self, name, inputs, interrupted)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "stage", dying)
            with pytest.raises(Killed):
                run(config(folder), lone_mesh, make_context)
        again, _ = run(config(folder), lone_mesh, make_context)
        assert again.candidates == whole.candidates
        assert products(tmp_path / folder) == expected
        assert trained(tmp_path / folder / "policy") == 2


def test_validation_prompts_that_are_trained_or_tested_on_are_refused(config, lone_mesh, make_context, tmp_path):
    rows = (tmp_path / "validation.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").open("a").write(rows[0].replace('"prompt": "', '"prompt": "  ') + "\n")
    with pytest.raises(ValueError, match=r"1 of the 8 prompts of selection\.data are also prompts of prompts, the"):
        run(config(), lone_mesh, make_context)
    (tmp_path / "prompts.jsonl").write_text("\n".join(
        (tmp_path / "prompts.jsonl").read_text().splitlines()[:16]) + "\n")
    tested = dataclasses.replace(config(), evaluation=build(EvaluationSection, {
        "data": {"dataset_name": str(tmp_path / "validation.jsonl")}}))
    with pytest.raises(ValueError, match=r"8 of the 8 prompts of selection.data are also prompts of evaluation.data"):
        run(tested, lone_mesh, make_context)


def test_a_limit_of_a_divergence_that_is_not_measured_is_refused(config, lone_mesh, make_context):
    with pytest.raises(ValueError, match=r"selection.kl_limit = 2.0 needs answers of the policy's own distribution"):
        run(config(kl_limit=2.0, sampling={"temperature": 0.7}), lone_mesh, make_context)


@pytest.mark.parametrize(("options", "words"), [
    ({"measure": "gold"}, "measure = 'gold'; the run's scorer stores its score as 'proxy', the judge its as 'judge'"),
    ({"pessimistic": "judge", "judge": None}, "pessimistic = 'judge' is a number of the judge, and there is none"),
    ({"pessimistic": "proxy"}, "pessimistic = 'proxy' is held against the proxy itself"),
    ({"patience": 0}, "patience = 0; it must be at least 1, or null"),
])
def test_numbers_that_nobody_stores_are_refused(config, options, words):
    with pytest.raises(ValueError, match=words):
        config(**options)
