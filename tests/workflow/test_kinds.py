"""Kinds of scorers: one table, keys of what they read, and errors for what is not in it."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.config.scorer import (
    BradleyTerryScoring,
    FunctionScoring,
    MultiObjectiveScoring,
    PairwiseScoring,
    ScorerModel,
)
from rlhf_jax.config.training import (
    BradleyTerryOptions,
    EnsembleOptions,
    OdinOptions,
    OutcomeGenerativeOptions,
    OutcomeOptions,
    PairwiseOptions,
    ProcessOptions,
    RegressionOptions,
)
from rlhf_jax.data.groups import STOP, Response
from rlhf_jax.data.tokenizer import TEMPLATES
from rlhf_jax.models import CheckpointError
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.workflow.kinds import KINDS, open_scorer, trainable_kind


def test_a_scorers_key_follows_its_weights_and_settings_and_not_its_place(make_model, lone_mesh, tmp_path):
    one = make_model(tmp_path / "one", num_labels=1, tie_embeddings=False)
    two = make_model(tmp_path / "two", num_labels=1, tie_embeddings=False)
    other = make_model(tmp_path / "other", seed=1, num_labels=1, tie_embeddings=False)
    (two / "trainer_state.json").write_text(json.dumps({"tokens_per_second": 1.0}))

    def key(folder, **settings):
        return open_scorer(BradleyTerryScoring(ScorerModel(str(folder), **settings)), lone_mesh, "proxy").key

    assert key(one) == key(two)
    assert len({key(one), key(other), key(one, max_length=64)}) == 3
    templates = [tmp_path / name for name in ("here.jinja", "there.jinja")]
    for path in templates:
        path.write_text(TEMPLATES["plain"])
    keys = {key(one, chat_template_path=name) for name in ("plain", *map(str, templates))}
    assert len(keys) == 1
    templates[0].write_text(TEMPLATES["plain"].replace("Assistant", "Bot"))
    assert len(keys | {key(one), key(one, chat_template_path=str(templates[0]))}) == 3
    with pytest.raises(CheckpointError, match="set kind: bradley_terry"):
        open_scorer(PairwiseScoring(ScorerModel(str(one))), lone_mesh, "proxy")


@pytest.mark.longer
def test_a_scorer_in_bfloat16_scores_in_float32_and_differs_by_rounding_alone(make_model, prompts, lone_mesh, tmp_path):
    folder = make_model(tmp_path / "rm", num_labels=1, tie_embeddings=False)
    nothing = np.zeros(0, np.int32)
    groups = [dataclasses.replace(p, responses=tuple(
        Response(nothing, nothing, f"Dear {name}, the cat sat {place}.", STOP) for name in ("Ann", "Mia")))
        for place, p in enumerate(prompts[:10])]
    wide, narrow = (open_scorer(BradleyTerryScoring(ScorerModel(str(folder), dtype=dtype)), lone_mesh, "proxy")
                    for dtype in ("float32", "bfloat16"))
    expected, found = (np.concatenate(scores_in(scorer.score(groups))) for scorer in (wide, narrow))
    assert wide.key != narrow.key
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert len(set(found)) > 0.8 * len(set(expected))  # a bfloat16 head would tie


def test_each_kind_is_the_row_of_its_own_options():
    for name, kind in KINDS.items():
        assert kind.options.kind == name
        if kind.training is not None:
            assert kind.training.options.kind == name


def test_a_kind_that_is_not_in_the_table_or_not_trained_here_is_an_error_everywhere(lone_mesh):
    unknown = SimpleNamespace(kind="oracle")
    for ask in (trainable_kind, lambda options: open_scorer(options, lone_mesh, "proxy")):
        with pytest.raises(ValueError, match="kind = 'oracle'; choose one of bradley_terry, pairwise, "):
            ask(unknown)
    for options in (FunctionScoring("m:f"), MultiObjectiveScoring(ScorerModel("m"))):
        with pytest.raises(ValueError, match="is not trained here; choose one of bradley_terry, pairwise, odin, "):
            trainable_kind(options)


@pytest.mark.parametrize("options", [BradleyTerryOptions(), PairwiseOptions(), OdinOptions(), EnsembleOptions(),
                                     RegressionOptions(objectives=("data",)), ProcessOptions(),
                                     OutcomeGenerativeOptions(), OutcomeOptions()],
                         ids=lambda options: options.kind)
def test_what_a_kind_trains_is_served_under_the_same_kind(options):
    served = trainable_kind(options).served(options, ScorerModel("made/model", max_length=64))
    assert (served.kind, served.model) == (options.kind, ScorerModel("made/model", max_length=64))


@pytest.mark.parametrize(("options", "error", "words"), [
    (FunctionScoring("no.such:thing"), ValueError, "cannot be imported"),
    (BradleyTerryScoring(ScorerModel("no/such/model")), CheckpointError, "no/such/model"),
    (PairwiseScoring(ScorerModel("no/such/model")), CheckpointError, "no/such/model"),
])
def test_a_scorer_that_is_not_there_is_found_when_it_is_opened(options, error, words, lone_mesh):
    with pytest.raises(error, match=words):
        open_scorer(options, lone_mesh, "proxy")
