"""A Bradley-Terry model scores n responses as it would score each alone, in its own tokens."""

import copy
import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import LENGTH, STOP, text_group
from rlhf_jax.data.rows import Example
from rlhf_jax.data.tokenizer import TEMPLATES
from rlhf_jax.models import CheckpointError, packed_forward, score_heads
from rlhf_jax.scoring import BradleyTerryScorer, rerender
from rlhf_jax.scoring.base import scores_in

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
    together = scores_in(scorer.score(groups))
    for group, scores in zip(groups, together, strict=True):
        alone = [scores_in(scorer.score([dataclasses.replace(group, responses=(r,))]))[0][0] for r in group.responses]
        np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert np.std(together) > 1e-3


def heads_of(params, config, tokenizer, prompt, answer):
    """Ids of a conversation, and the head's output at each of them, the conversation in a row of its own."""
    ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=True,
                                        return_dict=False)
    tokens = np.array([ids])
    ones = np.ones_like(tokens)
    hidden = packed_forward(params, config, tokens, np.arange(tokens.size)[None], ones, 0 * ones)
    return ids, np.asarray(score_heads(params, hidden))[0, :, 0]


@pytest.mark.parametrize(("changes", "place"), [
    ({}, -1), ({"pad_token_id": 0}, -1),  # the newline that ChatML writes behind the stop token
    ({"score_at": "end_of_turn"}, -2), ({"score_at": "end_of_turn", "pad_token_id": 3}, -2),
    ({"pad_token_id": "newline"}, -2),  # transformers passes over padding
])
def test_the_score_is_the_head_where_the_config_says(changes, place, groups, other_tokenizer, make_config, make_params,
                                                    mesh):
    if changes.get("pad_token_id") == "newline":
        changes = {"pad_token_id": other_tokenizer("\n")["input_ids"][0]}
    config = make_config(other_tokenizer, num_labels=1, **changes)
    params, renderer = make_params(config), Renderer(other_tokenizer, max_length=512, overlong="drop")
    ids, heads = heads_of(params, config, other_tokenizer, groups[0].prompt, ANSWERS[2])
    assert ids[-2] == other_tokenizer.eos_token_id
    assert abs(heads[-1] - heads[-2]) > 1e-2
    found = scores_in(BradleyTerryScorer(params, config, renderer, mesh).score(groups[:1]))[0][2]
    np.testing.assert_allclose(found, heads[place], atol=1e-5)


@pytest.mark.parametrize(("pad", "last"), [(None, "<|im_end|>"), (3, ".")])
def test_plain_text_is_read_at_its_stop_token_or_before_it_where_that_is_padding(pad, last, other_tokenizer):
    renderer = Renderer(other_tokenizer).for_scores("last_token", pad)
    group = renderer.render(Example("The cat", (" sat.",)))
    assert other_tokenizer.decode(group.responses[0].ids[-1:]) == last
    assert len(group.responses[0].ids) == len(group.responses[0].loss_mask)


def test_a_response_of_nothing_but_padding_is_read_in_the_prompt_as_transformers_does(other_tokenizer):
    other_tokenizer = copy.deepcopy(other_tokenizer)
    other_tokenizer.chat_template = TEMPLATES["llama3"].replace("<|eot_id|>", "<|im_end|>")
    prompt = [{"role": "user", "content": "?"}]
    group = Renderer(other_tokenizer).for_scores("last_token", 3).render(Example(prompt, ("", "a")))
    whole = other_tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": ""}], tokenize=True,
                                                return_dict=False)
    assert [*group.prompt_ids, *group.responses[0].ids] == whole[:-1]
    assert len(group.responses[0].ids) == 1


def test_the_policys_own_ids_are_not_looked_at(scorer, groups):
    wrong = [dataclasses.replace(g, prompt_ids=g.prompt_ids + 900, responses=tuple(
        dataclasses.replace(r, ids=r.ids + 900) for r in g.responses)) for g in groups]
    assert scorer.score(wrong) == scorer.score(groups)


def truncated_and_finished(group):
    cut, ended = (dataclasses.replace(r, finish_reason=reason)
                  for r, reason in zip(group.responses, (LENGTH, STOP), strict=True))
    return dataclasses.replace(group, responses=(cut, ended))


@pytest.mark.parametrize("score_at", ["last_token", "end_of_turn"])
def test_the_chat_template_closes_the_turn_of_a_truncated_sample_too_as_in_trl(score_at, make_group, other_tokenizer):
    group = truncated_and_finished(make_group("Write.", "The cat", "The cat"))
    renderer = Renderer(other_tokenizer).for_scores(score_at, None)
    (found,), places = rerender([group], renderer, Counter())
    assert places == [(0, [0, 1])]
    assert found.responses[0].ids.tolist() == found.responses[1].ids.tolist()
    assert other_tokenizer.decode(found.responses[0].ids) == "The cat<|im_end|>" + (
        "\n" if score_at == "last_token" else "")


@pytest.mark.parametrize("pad", [None, 3])
def test_plain_text_that_was_truncated_gets_no_stop_token(pad, make_group, other_tokenizer):
    group = truncated_and_finished(make_group("Write.", " the cat", " the cat"))
    group = dataclasses.replace(group, prompt="Write")
    (found,), _ = rerender([group], Renderer(other_tokenizer).for_scores("last_token", pad), Counter())
    assert [other_tokenizer.decode(r.ids) for r in found.responses] == [
        " the cat", " the cat<|im_end|>" if pad is None else " the cat"]
    assert len(found.responses[0].loss_mask) == len(found.responses[0].ids)


def test_a_response_that_cannot_be_rendered_gets_none_and_is_counted(scorer, make_group):
    group = make_group("Write.", "Short.", "word " * 300, "Also short.")
    before = scorer.failures["response_too_long"]
    found = scores_in(scorer.score([group]))[0]
    assert found[1] is None
    assert scorer.failures["response_too_long"] == before + 1
    shorter = dataclasses.replace(group, responses=(group.responses[0], group.responses[2]))
    alone = scores_in(scorer.score([shorter]))[0]
    np.testing.assert_allclose([found[0], found[2]], alone, atol=1e-5)
    too_long = make_group("word " * 300, "Short.")
    assert scores_in(scorer.score([too_long, group]))[0] == [None]


@pytest.mark.parametrize("overlong", ["drop", "error"])
@pytest.mark.parametrize("answers", [("hello", "\nworld", None), ("\nworld", "hello", None), (None, "\n", "\na", "b"),
                                     ("\nworld", "hello")])
def test_answers_that_begin_in_the_header_keep_their_own_ids_whoever_stands_beside_them(answers, overlong,
                                                                                        other_tokenizer):
    tokenizer = copy.deepcopy(other_tokenizer)  # "assistant\n" and "\nworld" share a token
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = TEMPLATES["chatml"].replace(" | trim", "")
    answers = tuple("word " * 300 if answer is None and overlong == "drop" else answer or "!" for answer in answers)
    prompt = [{"role": "user", "content": "hi"}]
    renderer = Renderer(tokenizer, max_length=512, overlong=overlong).for_scores("last_token", None)
    found, places = rerender([text_group("p", prompt, [(answer, {}) for answer in answers])], renderer, Counter())
    ids = {i: [*group.prompt_ids.tolist(), *response.ids.tolist()]
           for group, (_, members) in zip(found, places, strict=True)
           for i, response in zip(members, group.responses, strict=True)}
    whole = {i: tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=True,
                                              return_dict=False)
             for i, answer in enumerate(answers) if len(answer) < 99}
    assert ids == whole


def test_scores_that_are_no_finite_number_are_failures(other_tokenizer, make_config, make_params, mesh, groups):
    config = make_config(other_tokenizer, num_labels=1)
    params = make_params(config)
    params["score"] = params["score"] * np.nan
    broken = BradleyTerryScorer(params, config, Renderer(other_tokenizer, overlong="drop"), mesh)
    assert scores_in(broken.score(groups)) == [[None] * 4] * 2
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


@pytest.mark.longer
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
        read.release()
        assert held() == 0
