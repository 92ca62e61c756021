"""A regression as a kind: trained on ratings with holes, served with every rating by its name, refused by name."""

import json

import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.scorer import BradleyTerryScoring, RegressionScoring, ScorerModel
from rlhf_jax.config.training import RegressionOptions
from rlhf_jax.data.example import Example, as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.models import CheckpointError, load_params, read_config
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.kinds.regression import with_ratings

pytestmark = pytest.mark.longer
OBJECTIVES = ["data/words:1:5", "data/vivid"]
TRAIN = {"kind": "regression", "objectives": OBJECTIVES, "train_batch_size": 16, "micro_rows": 8, "row_length": 192,
         "learning_rate": 1e-2, "warmup_steps": 0, "logging_steps": 1}
GROUP = as_text(Example([{"role": "user", "content": "Write."}], ("Dear Mia.", "The cat sat. " * 9)))


@pytest.fixture(scope="module")
def rated(world, tmp_path_factory):
    """Rows whose answers are rated by their number of letters, in whole steps, and now and then for being vivid."""
    rows, rng = [], np.random.default_rng(0)
    for number, line in enumerate((world / "preference.jsonl").read_text().splitlines()):
        row = json.loads(line)
        answers = [*(row[side][-1]["content"] for side in ("chosen", "rejected")), "No."]
        scores = [{"words": min(5, 1 + len(text) // 30)} | ({"vivid": rng.random()} if number % 3 else {})
                  for text in answers[:2]]
        rows.append({"prompt": row["prompt"], "responses": [
            {"text": text, "scores": some} for text, some in zip(answers, [*scores, {"other": 1.0}], strict=True)]})
    path = tmp_path_factory.mktemp("rated") / "rated.jsonl"
    write_jsonl_atomic(path, rows)
    return path


@pytest.fixture(scope="module")
def regression(do_verb, model, rated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression")
    done = do_verb("reward", folder, model_name_or_path=str(model), dataset_name=str(rated),
                   eval_dataset_name=f"{rated}[0:]", max_steps=8, **TRAIN)
    return folder / "model", done.report


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in history if "loss" in row]


def test_it_learns_the_ratings_and_leaves_out_what_has_none(regression):
    folder, report = regression
    assert report["funnel"]["notes"] == {"unrated_responses": 16}
    config = read_config(folder)
    assert (config.num_labels, config.labels) == (2, ("words", "vivid"))
    assert load_params(folder)["score"].shape == (2, 16)
    assert report["eval"]["eval_loss"] < 0.5 * losses(folder)[0]
    assert report["eval"]["eval_loss"] == pytest.approx(  # each rating counts the same: 32 of words, 20 of vivid
        (32 * report["eval"]["eval_mse/words"] + 20 * report["eval"]["eval_mse/vivid"]) / 52, rel=1e-5)


def test_inspect_says_what_it_serves(regression):
    found = inspect_model(regression[0], MeshConfig(), 1).facts
    assert (found["serves"], found["outputs"]) == ("kind: regression; kind: bradley_terry with output", "words, vivid")


def test_it_serves_every_rating_by_its_name(regression, lone_mesh):
    folder, _ = regression
    (plain,) = open_scorer(BradleyTerryScoring(ScorerModel(str(folder)), output=1), lone_mesh, "proxy").score([GROUP])
    expected = [{"words": verdict["words"], "vivid": verdict[""]} for verdict in plain]
    for objective in (None, "words", "vivid"):
        options = RegressionScoring(ScorerModel(str(folder)), objective=objective)
        (found,) = open_scorer(options, lone_mesh, "proxy").score([GROUP])
        for verdict, numbers in zip(found, expected, strict=True):
            score = np.mean(list(numbers.values())) if objective is None else numbers[objective]
            assert verdict == pytest.approx({"": score, **numbers}, rel=1e-5, abs=1e-6)
    named = GROUP.with_scores("proxy", found)
    assert set(named.responses[0].scores) == {"proxy", "proxy/words", "proxy/vivid"}


def test_an_adapter_trains_the_heads_whole(do_verb, model, rated, tmp_path):
    do_verb("reward", tmp_path / "lora", model_name_or_path=str(model), dataset_name=str(rated), use_peft=True,
            lora_r=2, lora_target_modules=["q_proj"], max_steps=8, **TRAIN)
    assert read_config(tmp_path / "lora" / "model").labels == ("words", "vivid")
    found = losses(tmp_path / "lora" / "model")
    assert found[-1] < 0.5 * found[0]


def test_training_goes_on_from_the_same_ratings_and_other_ones_get_fresh_heads(regression, do_verb, make_model, rated,
                                                                               tmp_path):
    folder, report = regression
    more = do_verb("reward", tmp_path / "more", model_name_or_path=str(folder), dataset_name=str(rated), max_steps=1,
                   **TRAIN)
    assert more.report["train"]["loss"] < 2 * report["train"]["loss"]
    plain = make_model(tmp_path / "rm", num_labels=1, tie_embeddings=False)
    do_verb("reward", tmp_path / "fresh", model_name_or_path=str(plain), dataset_name=str(rated), max_steps=1, **TRAIN)
    assert read_config(tmp_path / "fresh" / "model").labels == ("words", "vivid")


@pytest.mark.parametrize(("changes", "words"), [
    ({"objectives": ["data/words:1:5", "data/gone"]}, r"no row has a rating data/gone; there are data/other, data/v"),
    ({"objectives": ["data/vivid", "data/vivid:1:5"]}, "'vivid' is named twice"),
    ({"objectives": []}, "objectives names no rating"),
    ({"objectives": ["data/words:5:1"]}, "5 is not below 1"),
    ({"pair_rule": "best_worst"}, "pair_rule has no effect with kind = 'regression'"),
    ({"center_rewards_coefficient": 0.1}, "no such key: center_rewards_coefficient"),
    ({"objectives": ["data/words:1:2"]}, "words is rated [345], and its scale is 1 to 2"),
])
def test_what_cannot_be_learned_is_refused(do_verb, model, rated, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        do_verb("reward", tmp_path / "r", model_name_or_path=str(model), dataset_name=str(rated),
                **{**TRAIN, **changes})


def test_a_rating_outside_its_scale_is_a_bad_row_and_no_rating_a_choice():
    examples = [Example("q", ("a", "b"), scores=scores) for scores in (
        ({"data/words": 3.0}, {"data/other": 1.0}), ({"data/words": 9.0}, {}), ({"data/other": 1.0}, {}), ())]
    funnel = Funnel(read=4)
    (kept,) = with_ratings(RegressionOptions(objectives=("data/words:1:5",)), examples, funnel, None)
    assert (kept.responses, kept.scores) == (("a",), ({"words": 0.5},))
    assert (funnel.invalid, funnel.dropped) == ({"rating_outside_scale": 1}, {"no_rating": 2})


def test_what_is_no_regression_is_refused(regression, model, lone_mesh):
    with pytest.raises(CheckpointError, match=r"an output for each rating, and this checkpoint is a language model"):
        open_scorer(RegressionScoring(ScorerModel(str(model))), lone_mesh, "proxy")
    with pytest.raises(CheckpointError, match="objective = 'kind' is no output of this checkpoint; it has words, v"):
        open_scorer(RegressionScoring(ScorerModel(str(regression[0])), objective="kind"), lone_mesh, "proxy")
