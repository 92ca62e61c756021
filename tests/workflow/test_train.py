"""Training stages: what is refused before any work, and that an interrupted one ends in the same bytes."""

import dataclasses

import pytest

from rlhf_jax.workflow.commands import DpoCommand, RewardCommand, SftCommand
from rlhf_jax.workflow.options import PreferenceOptions, RewardOptions
from rlhf_jax.workflow.train import bradley_terry_stage, dpo_stage, objective_of, train_stage
from rlhf_jax.workflow.verbs import run_dpo, run_reward, run_sft

MARGIN_LOSSES = ("rev_kl", "kl", "tv", "hellinger", ("sigmoid", "tv"))


@pytest.fixture
def refused(tmp_path, tiny):
    """refused(options, groups, eval_groups): the error of a training stage that needs no weights to see it."""

    def run(stage, options, groups, eval_groups=(), **more):
        with pytest.raises(ValueError, match="margin") as error:
            stage(tmp_path, options=options, params={}, config=tiny(num_labels=1), groups=groups,
                  tokenizer_from=tmp_path, base="m", setting=None, eval_groups=eval_groups, **more)
        assert not list(tmp_path.iterdir())
        return str(error.value)

    return run


def without_margins(groups, count):
    """The groups, the last `count` of them with pairs of no known gap."""
    first = len(groups) - count
    return [dataclasses.replace(g, margins=g.margins if i < first else ()) for i, g in enumerate(groups)]


@pytest.mark.parametrize("loss_type", MARGIN_LOSSES)
def test_losses_with_soft_labels_refuse_pairs_without_margins(loss_type, refused, make_groups, tmp_path):
    """A gap of 0 would be the label 0.5 for every pair: training towards indifference."""
    said = refused(dpo_stage, PreferenceOptions(loss_type=loss_type), without_margins(make_groups(4), 3), reference={},
                   cache=tmp_path / "cache")
    assert f"loss_type = {loss_type!r}" in said
    assert "3 of 4 training groups with pairs have no margins" in said
    assert "prompt 'p1'" in said
    assert "chosen_score" in said


def test_use_margin_refuses_pairs_without_margins(refused, make_groups):
    said = refused(bradley_terry_stage, RewardOptions(use_margin=True), without_margins(make_groups(4), 1))
    assert "use_margin = True" in said
    assert "1 of 4 training groups" in said


def test_held_out_pairs_need_margins_too(refused, make_groups):
    groups, options = make_groups(4), PreferenceOptions(loss_type="tv")
    said = refused(train_stage, options, groups, without_margins(groups, 4), train=options,
                   objective=objective_of(options))
    assert "4 of 4 evaluation groups" in said


@pytest.mark.parametrize(("options", "lacking"), [
    (PreferenceOptions(loss_type="rev_kl"), 0), (PreferenceOptions(), 4), (RewardOptions(use_margin=True), 0),
    (RewardOptions(), 4),
])
def test_margins_are_asked_for_only_where_they_are_read(options, lacking, make_groups, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("rlhf_jax.workflow.train.trainable", lambda *args: 1 / 0)  # the first thing after the checks
    groups = [*without_margins(make_groups(4), lacking), *make_groups(2, pairs="none")]
    with pytest.raises(ZeroDivisionError):
        train_stage(tmp_path, options=options, params={}, config=tiny(), groups=groups, tokenizer_from=tmp_path,
                    base="m", setting=None, train=options, objective=objective_of(options), eval_groups=groups)


class Killed(Exception):
    pass


LORA = {"use_peft": True, "lora_r": 2, "lora_alpha": 4.0, "lora_target_modules": ("q_proj",)}
TRAININGS = {
    "sft": (run_sft, SftCommand, "sft", {}),
    "sft-lora": (run_sft, SftCommand, "sft", LORA),
    "reward": (run_reward, RewardCommand, "preference", {}),
    "reward-lora": (run_reward, RewardCommand, "preference", LORA),
    "reward-from-a-reward-model": (run_reward, RewardCommand, "preference", {"start": "classifier"}),
    "pairwise": (run_reward, RewardCommand, "preference", {"kind": "pairwise"}),
    "dpo": (run_dpo, DpoCommand, "preference", {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_interrupted_behind_a_checkpoint_ends_in_the_same_bytes(name, make_context, make_model, model, world,
                                                                          tmp_path):
    verb, command_of, data, changes = TRAININGS[name]
    changes, start = dict(changes), model
    if changes.pop("start", None):
        start = make_model(tmp_path / "start", num_labels=1, tie_embeddings=False)
    changes["learning_rate"] = 1e-3

    def run(folder, dies_at=0):
        def tick(stage, done, total, words):
            if done == dies_at:
                raise Killed

        command = command_of(
            model_name_or_path=str(start), output_dir=str(folder), dataset_name=str(world / f"{data}.jsonl[:8]"),
            train_batch_size=2, micro_rows=2, row_length=160, max_steps=4, save_steps=2, **changes)
        verb(command, dataclasses.replace(make_context(folder), tick=tick))
        return {path.relative_to(folder): path.read_bytes() for path in (folder / "model").rglob("*")
                if path.is_file() and path.name != "trainer_state.json"}

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies_at=3)
    assert (tmp_path / "killed" / "checkpoints" / "2").is_dir()
    assert run(tmp_path / "killed") == whole
