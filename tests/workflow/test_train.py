"""What a training stage refuses before any work: data that its loss cannot learn from."""

import dataclasses

import pytest

from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.options import PreferenceOptions, RewardOptions
from rlhf_jax.workflow.reference import reference_logps
from rlhf_jax.workflow.train import bradley_terry_stage, dpo_stage, objective_of, train_stage

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


@pytest.mark.parametrize("token", [48, 127, -1, 10**6])
@pytest.mark.parametrize("where", ["prompt", "response", "held out"])
def test_a_token_without_a_row_in_the_embedding_is_refused(token, where, make_groups, tmp_path, tiny):
    """Rows that pad the vocabulary in memory would swallow it."""
    groups, held_out, options = make_groups(3), make_groups(1), PreferenceOptions()
    changed = (held_out if where == "held out" else groups)[-1]
    (changed.prompt_ids if where == "prompt" else changed.responses[1].ids)[0] = token
    with pytest.raises(ValueError, match=rf"prompt '{changed.prompt_id}' .* {token}.*embedding has 48 rows"):
        train_stage(tmp_path, options=options, params={}, config=tiny(vocab_multiple=128), groups=groups,
                    tokenizer_from=tmp_path, base="m", setting=None, train=options, objective=objective_of(options),
                    eval_groups=held_out)
    assert not list(tmp_path.iterdir())


def test_the_reference_needs_a_row_for_every_token_too(make_groups, tmp_path, tiny, lone_mesh):
    compute = Compute(tiny(vocab_size=20), mesh=lone_mesh)
    with pytest.raises(ValueError, match="embedding has 20 rows"):
        reference_logps(compute, {}, make_groups(4), lone_mesh, dtype="float32", cache=tmp_path, rows=1)
