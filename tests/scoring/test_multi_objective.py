"""ArmoRM's layout: files, the gate over the prompt, and the score; ODIN's two outputs."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.config.scorer import BradleyTerryScoring, MultiObjectiveScoring, ScorerModel
from rlhf_jax.data.chat import Renderer
from rlhf_jax.models import (
    CheckpointError,
    Gate,
    gated_scores,
    load_params,
    packed_forward,
    param_specs,
    read_config,
    save_hf,
)
from rlhf_jax.parallel import make_mesh
from rlhf_jax.scoring import BradleyTerryScorer, MultiObjectiveScorer
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.workflow.kinds import open_scorer

GATE = Gate(hidden=6, layers=2, temperature=3.0)
ANSWERS = ("Dear Mia, the cat sat.", "No.", "The storm came at night and stayed for three days. Love, Ana.")


@pytest.fixture(scope="module")
def model(other_tokenizer, make_config, make_params):
    config = make_config(other_tokenizer, num_labels=5, gate=GATE, max_position=512)
    params = make_params(config)
    return {**params, "gating": jax.tree.map(lambda x: x + 0.3, params["gating"])}, config


@pytest.fixture(scope="module")
def scorer(model, other_tokenizer, mesh):
    return MultiObjectiveScorer(*model, Renderer(other_tokenizer, max_length=512, overlong="drop"), mesh)


@pytest.fixture(scope="module")
def groups(make_group):
    return [make_group("Write about a cat.", *ANSWERS, prompt_id="a"),
            make_group("Tell me about the storm, please.", *ANSWERS[::-1], prompt_id="b")]


def by_hand(params, config, tokenizer, group, answer):
    """One response in a row of its own; the gate written out in numpy."""
    messages = [*group.prompt, {"role": "assistant", "content": answer}]
    ids = np.array(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    ones = np.ones_like(ids)[None]
    hidden = np.asarray(packed_forward(params, config, ids[None], np.arange(ids.size)[None], ones, 0 * ones))[0]
    stops = np.flatnonzero(ids == tokenizer.eos_token_id)
    x = hidden[stops[-2]]  # the user's turn ends here, the assistant's at stops[-1]
    for index in range(3):
        layer = params["gating"][f"layer_{index}"]
        x = x @ np.asarray(layer["weight"]) + np.asarray(layer["bias"])
        x = np.maximum(x, 0) if index < 2 else x
    gate = np.exp(x / 3.0) / np.exp(x / 3.0).sum() * float(params["gating"]["logit_scale"][0])
    rewards = hidden[-1] @ np.asarray(params["score"]).T
    return gate @ (rewards @ np.asarray(params["reward_transform"]))


@pytest.mark.longer
def test_the_score_is_the_gate_times_the_transformed_objectives(scorer, model, groups, other_tokenizer):
    found = scores_in(scorer.score(groups))
    for group, scores in zip(groups, found, strict=True):
        expected = [by_hand(*model, other_tokenizer, group, r.text if isinstance(r.text, str) else
                            r.text[-1]["content"]) for r in group.responses]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert np.std(found) > 1e-3


def test_every_objective_and_what_it_counts_lie_beside_the_score(scorer, groups):
    names = {"", *map(str, range(5)), *(f"coefficient/{i}" for i in range(5))}
    for verdict in (verdict for group in scorer.score(groups) for verdict in group):
        assert set(verdict) == names
        together = sum(verdict[f"coefficient/{i}"] * verdict[str(i)] for i in range(5))
        np.testing.assert_allclose(verdict[""], together, rtol=1e-4)


def test_coefficients_add_up_to_the_score_and_the_gate_is_a_distribution(model):
    params, config = model
    response, prompt = jax.random.normal(jax.random.key(0), (2, 7, config.embed))
    found = gated_scores(params, config, response, prompt)
    assert found.rewards.shape == found.coefficients.shape == (7, 5)
    np.testing.assert_allclose((found.rewards * found.coefficients).sum(-1), found.score, rtol=1e-5)
    plain = gated_scores({**params, "reward_transform": np.eye(5)}, config, response, prompt)
    np.testing.assert_allclose(plain.coefficients.sum(-1), params["gating"]["logit_scale"][0], rtol=1e-5)


def test_a_prompt_without_an_end_of_turn_is_a_failure_and_no_number(scorer, make_group):
    from rlhf_jax.scoring.states import gate_positions

    batch = dataclasses.make_dataclass("Rows", ["tokens", "branch_ids", "group_ids", "slot_end"])(
        np.array([[7, 3, 5, 3, 9, 9, 3, 1]]), np.array([[0, 0, 0, 1, 2, 0, 0, 1]]),
        np.array([[1, 1, 1, 1, 1, 2, 2, 2]]), np.array([[3, 4, 7]]))
    np.testing.assert_array_equal(gate_positions(batch, 3), [[1, 1, 6]])
    np.testing.assert_array_equal(gate_positions(batch, 7), [[0, 0, -1]])


def test_files_have_the_published_names_and_come_back(model, other_tokenizer, tmp_path):
    params, config = model
    other_tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_hf(tmp_path / "rm", params, config, tokenizer_from=tmp_path / "tokenizer")
    names = set(load_file(tmp_path / "rm" / "model.safetensors"))
    assert {"regression_layer.weight", "reward_transform_matrix", "gating.logit_scale", "gating.layers.0.weight",
            "gating.layers.2.bias"} <= names
    assert not {"score.weight", "lm_head.weight"} & names
    assert read_config(tmp_path / "rm") == config
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "rm"), jax.device_get(params))
    options, lone_mesh = ScorerModel(str(tmp_path / "rm")), make_mesh(devices=jax.devices()[:1])
    assert isinstance(open_scorer(MultiObjectiveScoring(options), lone_mesh, "gold"), MultiObjectiveScorer)
    with pytest.raises(CheckpointError, match="set kind: multi_objective"):
        open_scorer(BradleyTerryScoring(options), lone_mesh, "gold")


@pytest.mark.longer
def test_of_two_outputs_one_must_be_chosen(other_tokenizer, make_config, make_params, mesh, groups):
    config = make_config(other_tokenizer, num_labels=2)
    params, renderer = make_params(config), Renderer(other_tokenizer, max_length=512, overlong="drop")
    with pytest.raises(CheckpointError, match="2 outputs; say which one is the score with output"):
        BradleyTerryScorer(params, config, renderer, mesh)
    with pytest.raises(CheckpointError, match="output = 2 of a classifier with 2"):
        BradleyTerryScorer(params, config, renderer, mesh, output=2)
    quality = scores_in(BradleyTerryScorer(params, config, renderer, mesh, output=1).score(groups))
    alone = dataclasses.replace(config, num_labels=1)
    quality_alone = BradleyTerryScorer({**params, "score": params["score"][1:]}, alone, renderer, mesh)
    expected = scores_in(quality_alone.score(groups))
    np.testing.assert_allclose(quality, expected, atol=1e-6)
    named = dataclasses.replace(config, labels=("length", "quality"))
    for names, shape in (({"", "0"}, config), ({"", "length"}, named)):
        verdict = BradleyTerryScorer(params, shape, renderer, mesh, output=1).score(groups[:1])[0][0]
        assert set(verdict) == names
    with pytest.raises(CheckpointError, match="has no gate"):
        MultiObjectiveScorer(params, config, renderer, mesh)


def test_every_weight_of_the_head_is_in_the_table(model):
    specs = param_specs(model[1])
    assert specs["gating"]["layer_0"]["weight"].shape == (16, 6)
    assert specs["gating"]["layer_2"]["weight"].shape == (6, 5)
    assert jax.tree.structure(jax.tree.map(lambda x: 0, specs, is_leaf=lambda x: hasattr(x, "hf_name"))) == \
        jax.tree.structure(jax.tree.map(lambda x: 0, model[0]))


@pytest.mark.torch
def test_the_score_is_that_of_the_layout_in_torch(model, scorer, groups, other_tokenizer, armorm_in_torch, tmp_path):
    torch = pytest.importorskip("torch")
    save_hf(tmp_path, *model)
    theirs = armorm_in_torch(tmp_path)
    for group, scores in zip(groups, scores_in(scorer.score(groups)), strict=True):
        for response, score in zip(group.responses, scores, strict=True):
            text = response.text if isinstance(response.text, str) else response.text[-1]["content"]
            messages = [*group.prompt, {"role": "assistant", "content": text}]
            ids = torch.tensor([other_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)])
            with torch.no_grad():
                hidden = theirs.model(ids).last_hidden_state[0]
                at = torch.nonzero(ids[0] == other_tokenizer.eos_token_id)[-2, 0]
                rewards = theirs.regression_layer(hidden[-1]) @ theirs.reward_transform_matrix
                expected = (theirs.gating(hidden[at]) * rewards).sum()
            assert score == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
