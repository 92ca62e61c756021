"""A Bradley-Terry model scores n responses as it would score each alone, in its own tokens."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import LENGTH, STOP
from rlhf_jax.models import CheckpointError, packed_forward, score_heads
from rlhf_jax.scoring import BradleyTerryScorer, rerender

ANSWERS = ("Dear Mia, the cat sat.", "No.", "The storm came at night and stayed for three days. Love, Ana.", "Yes!")


@pytest.fixture(scope="module")
def scorer(other_tokenizer, make_config, make_params, mesh):
    config = make_config(other_tokenizer, num_labels=1)
    return BradleyTerryScorer(make_params(config), config, Renderer(other_tokenizer, max_length=512, overlong="drop"),
                              mesh, key="f")


@pytest.fixture(scope="module")
def groups(make_group):
    return [make_group("Write about a cat.", *ANSWERS, prompt_id="a"),
            make_group("Tell me about the storm, please.", *ANSWERS[::-1], prompt_id="b")]


def test_sharing_the_prompt_gives_the_scores_of_one_response_at_a_time(scorer, groups):
    together = scorer.score(groups)
    for group, scores in zip(groups, together, strict=True):
        alone = [scorer.score([dataclasses.replace(group, responses=(r,))])[0][0] for r in group.responses]
        np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert np.std(together) > 1e-3


def test_the_score_is_the_head_at_the_last_token_of_the_scorers_own_rendering(scorer, groups, other_tokenizer):
    group = groups[0]
    messages = [*group.prompt, {"role": "assistant", "content": ANSWERS[2]}]
    ids = other_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids[-2] == other_tokenizer.eos_token_id  # the template writes a newline after it, which is cut off
    tokens = np.array([ids[:-1]])
    ones = np.ones_like(tokens)
    positions = np.arange(tokens.size)[None]
    hidden = packed_forward(scorer._weights(), scorer._compute.config, tokens, positions, ones, 0 * ones)
    expected = float(score_heads(scorer._weights(), hidden)[0, -1, 0])
    np.testing.assert_allclose(scorer.score([group])[0][2], expected, atol=1e-5)


def test_the_policys_own_ids_are_not_looked_at(scorer, groups):
    wrong = [dataclasses.replace(g, prompt_ids=g.prompt_ids + 900, responses=tuple(
        dataclasses.replace(r, ids=r.ids + 900) for r in g.responses)) for g in groups]
    assert scorer.score(wrong) == scorer.score(groups)


def test_a_truncated_sample_gets_no_stop_token(make_group, other_tokenizer):
    group = make_group("Write.", "The cat", "The cat")
    cut, ended = (dataclasses.replace(r, finish_reason=reason)
                  for r, reason in zip(group.responses, (LENGTH, STOP), strict=True))
    (found,), places = rerender([dataclasses.replace(group, responses=(cut, ended))], Renderer(other_tokenizer),
                                Counter())
    assert places == [(0, [0, 1])]
    assert found.responses[1].ids[-1] == other_tokenizer.eos_token_id
    assert found.responses[0].ids.tolist() == found.responses[1].ids[:-1].tolist()
    assert len(found.responses[0].loss_mask) == len(found.responses[0].ids)


def test_a_truncated_sample_scores_otherwise_than_a_finished_one_of_the_same_text(scorer, make_group):
    group = make_group("Write.", "The cat", "The cat")
    cut = dataclasses.replace(group.responses[0], finish_reason=LENGTH)
    first, second = scorer.score([dataclasses.replace(group, responses=(cut, group.responses[1]))])[0]
    assert first != second


def test_a_response_that_cannot_be_rendered_gets_none_and_is_counted(scorer, make_group):
    group = make_group("Write.", "Short.", "word " * 300, "Also short.")
    before = scorer.failures["response_too_long"]
    found = scorer.score([group])[0]
    assert found[1] is None
    assert scorer.failures["response_too_long"] == before + 1
    alone = scorer.score([dataclasses.replace(group, responses=(group.responses[0], group.responses[2]))])[0]
    np.testing.assert_allclose([found[0], found[2]], alone, atol=1e-5)
    too_long = make_group("word " * 300, "Short.")
    assert scorer.score([too_long, group])[0] == [None]


def test_scores_that_are_no_finite_number_are_failures(other_tokenizer, make_config, make_params, mesh, groups):
    config = make_config(other_tokenizer, num_labels=1)
    params = make_params(config)
    params["score"] = params["score"] * np.nan
    broken = BradleyTerryScorer(params, config, Renderer(other_tokenizer, overlong="drop"), mesh)
    assert broken.score(groups) == [[None] * 4] * 2
    assert broken.failures == {"non_finite_score": 8}


def test_progress_adds_up_to_the_prompts(scorer, groups):
    seen = []
    scorer.score(groups, seen.append)
    assert sum(seen) == len(groups)


@pytest.mark.parametrize(("labels", "words"), [(0, "a language model; .* set kind: pairwise"), (3, "3 outputs")])
def test_refuses_what_is_no_single_output_classifier(other_tokenizer, make_config, make_params, mesh, labels, words):
    config = make_config(other_tokenizer, num_labels=labels)
    with pytest.raises(CheckpointError, match=words):
        BradleyTerryScorer(make_params(config), config, Renderer(other_tokenizer), mesh)


def test_scores_do_not_depend_on_what_was_scored_before_to_the_bit(make_group, make_config, make_params,
                                                                   other_tokenizer, mesh):
    """A run that was killed scores the rest alone, and must write the same bytes."""
    config = make_config(other_tokenizer, num_labels=1)
    model = make_params(config), config, Renderer(other_tokenizer, max_length=512, overlong="drop"), mesh
    few = [make_group("Write about a cat.", *ANSWERS, prompt_id="a")]
    many = [make_group(f"Tell me about storm {i}, please.", *ANSWERS, prompt_id=str(i)) for i in range(6)]
    after, alone = BradleyTerryScorer(*model), BradleyTerryScorer(*model)
    after.score(many)
    assert after.score(few) == alone.score(few)


def test_weights_that_can_be_read_again_are_held_only_between_the_first_score_and_letting_go(
        groups, make_config, make_params, other_tokenizer, mesh, scorer, watch_arrays):
    config = make_config(other_tokenizer, num_labels=1)
    params, reads = make_params(config), []
    read = BradleyTerryScorer(lambda: reads.append(1) or jax.tree.map(jnp.copy, params), config,
                              Renderer(other_tokenizer, max_length=512, overlong="drop"), mesh)
    shape, expected = params["layers"]["mlp"]["down"].shape, scorer.score(groups)

    made = watch_arrays()

    def held():
        return sum(x.shape == shape for x in made())

    for times in (1, 2):
        assert read.score(groups) == read.score(groups) == expected
        assert (len(reads), held()) == (times, 1)
        read.let_go()
        assert held() == 0
