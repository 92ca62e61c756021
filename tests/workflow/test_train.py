"""Training stages: what is refused before any work, and that an interrupted one ends in the same bytes."""

import dataclasses
import json
import math
from functools import partial
from types import SimpleNamespace

import pytest

from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.training import BradleyTerryOptions
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.training.objectives import Compute, Sft
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.reference import reference_logps
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.train import Training, train
from rlhf_jax.workflow.verbs import STAGES

MARGIN_LOSSES = ("rev_kl", "kl", "tv", "hellinger", ("sigmoid", "tv"))


@pytest.fixture
def context():
    """A run without devices, for what needs no weights."""
    return SimpleNamespace(params=lambda checkpoint: {}, mesh=None)


@pytest.fixture
def start(tiny):
    return SimpleNamespace(config=tiny(num_labels=1))


@pytest.fixture
def refused(tmp_path, context):
    """refused(work): the error of a stage's `run`, or of `train`, that needs no weights to see it."""

    def run(work):
        with pytest.raises(ValueError, match="margin") as error:
            work(tmp_path, context=context)
        assert not list(tmp_path.iterdir())
        return str(error.value)

    return run


@pytest.fixture
def job(start):
    """job(options, groups, eval_groups, config=None): a training without weights."""
    return lambda options, groups, eval_groups, config=None: Training(
        start=start, params={}, config=config or start.config, objective=Sft, options=options, groups=groups,
        eval_groups=eval_groups)


def preference(loss_type):
    return PreferenceOptions(PreferenceLoss(loss_type=loss_type))


def without_margins(groups, count):
    """The groups, the last `count` of them with pairs of no known gap."""
    first = len(groups) - count
    return [dataclasses.replace(g, margins=g.margins if i < first else ()) for i, g in enumerate(groups)]


@pytest.mark.parametrize("loss_type", MARGIN_LOSSES)
def test_losses_with_soft_labels_refuse_pairs_without_margins(loss_type, refused, start, make_groups):
    """A gap of 0 would be the label 0.5 for every pair: training towards indifference."""
    data = GivenGroups(without_margins(make_groups(4), 3))
    said = refused(DpoStage(start=start, reference=start, data=(data,), options=preference(loss_type)).run)
    assert f"loss_type = {loss_type!r}" in said
    assert "3 of 4 training groups with pairs have no margins" in said
    assert "prompt 'p1'" in said
    assert "chosen_score" in said


def test_use_margin_refuses_pairs_without_margins(refused, start, make_groups):
    data = GivenGroups(without_margins(make_groups(4), 1))
    said = refused(RewardStage(start=start, data=(data,), options=BradleyTerryOptions(use_margin=True)).run)
    assert "use_margin = True" in said
    assert "1 of 4 training groups" in said


def test_held_out_pairs_need_margins_too(refused, job, make_groups):
    groups = make_groups(4)
    said = refused(partial(train, job=job(preference("tv"), groups, without_margins(groups, 4))))
    assert "4 of 4 evaluation groups" in said


def test_numbers_that_no_response_has_cannot_be_learned(job, context, make_groups, tmp_path):
    groups = [group.with_scores("proxy", [{"": 1.0}] * len(group.responses)) for group in make_groups(4)]
    for reads, some, held_out, said in (
            (("data/tone", "proxy"), groups, [], "data/tone is to be learned, and no .* training .*; there are proxy"),
            (("proxy",), groups, make_groups(4), "proxy is to be learned, and no .* evaluation .*; there are none")):
        reading = dataclasses.replace(job(BradleyTerryOptions(), some, held_out), objective=partial(Sft, reads=reads))
        with pytest.raises(ValueError, match=said):
            train(tmp_path, reading, context)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "lacking"), [
    (preference("rev_kl"), 0), (PreferenceOptions(), 4), (BradleyTerryOptions(use_margin=True), 0),
    (BradleyTerryOptions(), 4),
])
def test_margins_are_asked_for_only_where_they_are_read(options, lacking, job, context, make_groups, tmp_path,
                                                        monkeypatch):
    monkeypatch.setattr("rlhf_jax.workflow.stages.train.trainable", lambda *args: 1 / 0)  # first after the checks
    groups = [*without_margins(make_groups(4), lacking), *make_groups(2, pairs="none")]
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, job(options, groups, groups), context)


class Killed(Exception):
    pass


LORA = {"use_peft": True, "lora_r": 2, "lora_alpha": 4.0, "lora_target_modules": ("q_proj",),
        "lora_dropout": 0.1}
TRAININGS = {
    "sft": ("sft", "sft", {}),
    "sft-lora": ("sft", "sft", LORA),
    "reward": ("reward", "preference", {}),
    "reward-lora": ("reward", "preference", LORA),
    "reward-from-a-reward-model": ("reward", "preference", {"start": "classifier"}),
    "pairwise": ("reward", "preference", {"kind": "pairwise"}),
    "dpo": ("dpo", "preference", {"dtype": "bfloat16"}),
}


@pytest.mark.longer
@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo"])
def test_held_out_rows_may_be_longer_than_the_rows_of_training(loss_type, do_verb, model, world, tmp_path):
    """The reference's pass over them had rows of training's length."""
    rows = [json.loads(line) for line in (world / "preference.jsonl").read_text().splitlines()[:4]]
    long = [*rows[:1], {**rows[1], "chosen": [*rows[1]["chosen"][:-1], {"role": "assistant", "content": "2 " * 80}]}]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    do_verb("dpo", tmp_path / "run", model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl[:4]"),
            eval_dataset_name=str(tmp_path / "held_out.jsonl"), loss_type=loss_type, row_length=128, max_steps=1,
            max_length=1024, train_batch_size=2, micro_rows=1)
    log = json.loads((tmp_path / "run/model/trainer_state.json").read_text())["log_history"]
    assert math.isfinite(log[-1]["eval_loss"])
    assert log[-1]["eval_logps/chosen"] < -400  # the long response was read


@pytest.mark.longer
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_interrupted_behind_a_checkpoint_ends_in_the_same_bytes(name, make_context, make_model, model, world,
                                                                           tmp_path):
    verb, data, changes = TRAININGS[name]
    changes, start = dict(changes), model
    if changes.pop("start", None):
        start = make_model(tmp_path / "start", num_labels=1, tie_embeddings=False)
    changes["learning_rate"] = 1e-3

    def run(folder, dies_at=0):
        def tick(stage, done, total, words):
            if done == dies_at:
                raise Killed

        command = build(named(VERBS[verb].options), {
            "model_name_or_path": str(start), "output_dir": str(folder),
            "dataset_name": str(world / f"{data}.jsonl[:8]"), "train_batch_size": 2, "micro_rows": 2,
            "row_length": 192, "max_steps": 4, "save_steps": 2, **changes})
        context = make_context(folder, tick=tick)
        context.run.single = True
        context.do(verb, STAGES[verb](command, context))
        return {path.relative_to(folder): path.read_bytes() for path in (folder / "model").rglob("*")
                if path.is_file() and path.name != "trainer_state.json"}

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies_at=3)
    assert (tmp_path / "killed" / "checkpoints" / "2").is_dir()
    assert run(tmp_path / "killed") == whole


@pytest.mark.parametrize("token", [48, 127, -1, 10**6])
@pytest.mark.parametrize("where", ["prompt", "response", "held out"])
def test_a_token_without_a_row_in_the_embedding_is_refused(token, where, job, context, make_groups, tmp_path, tiny):
    """Rows that pad the vocabulary in memory would swallow it."""
    groups, held_out, options = make_groups(3), make_groups(1), PreferenceOptions()
    changed = (held_out if where == "held out" else groups)[-1]
    (changed.prompt_ids if where == "prompt" else changed.responses[1].ids)[0] = token
    with pytest.raises(ValueError, match=rf"prompt '{changed.prompt_id}' .* {token}.*embedding has 48 rows"):
        train(tmp_path, job(options, groups, held_out, tiny(vocab_multiple=128)), context)
    assert not list(tmp_path.iterdir())


def test_the_reference_needs_a_row_for_every_token_too(make_groups, tmp_path, tiny, lone_mesh):
    compute = Compute(tiny(vocab_size=20), mesh=lone_mesh)
    with pytest.raises(ValueError, match="embedding has 20 rows"):
        reference_logps(compute, {}, make_groups(4), lone_mesh, dtype="float32", cache=tmp_path, rows=1)
