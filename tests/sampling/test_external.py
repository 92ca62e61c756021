"""What an engine outside is asked, and what of its answers is taken, refused, or cut."""

import numpy as np
import pytest

from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import STOP, PromptGroup
from rlhf_jax.sampling.ending import Ending
from rlhf_jax.sampling.external import EngineMismatch, ExternalSampler, NoAnswer, Sampled, engine_seed, read_samples

ENGINE = EngineOptions(urls="http://h/v1/", model="m", name="vllm", version="1")
PROMPT = PromptGroup("p", np.array([1, 7, 9], np.int32), ())
STOPS = (2, 5)


def sampler(**settings):
    settings = {"num_generations": 2, "max_new_tokens": 4, "engine": ENGINE, **settings}
    text = Ending(STOPS, settings.get("stop_strings", ()), lambda prompt, ids: "".join(f"w{i} " for i in ids))
    return ExternalSampler(SamplingConfig(**settings), 50, text)


def answer(*samples, prompt=(1, 7, 9), reason="length"):
    choices = [{"index": i, "token_ids": list(ids), "logprobs": {"token_logprobs": [-1.0] * len(ids)},
                "finish_reason": reason} for i, ids in enumerate(samples)]
    return {"choices": [{**choices[0], "prompt_token_ids": list(prompt)}, *choices[1:]]}


def taken(ids, reason="length", **settings):
    sample = Sampled(np.array(ids, np.int32), np.zeros(len(ids), np.float32), reason)
    return sampler(**settings).response(sample, PROMPT)


def test_everything_that_a_sample_depends_on_is_said_in_ids():
    (question,) = sampler(top_p=0.9, min_p=0.1, seed=3, stop_strings=("\n",)).questions(PROMPT)
    assert question.path == "completions"
    assert question.body == {
        "model": "m", "prompt": [1, 7, 9], "n": 2, "seed": engine_seed(3, "p", 0), "max_tokens": 4, "temperature": 1.0,
        "top_k": -1, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "stop_token_ids": [2, 5], "stop": ["\n"], "logprobs": 0, "return_token_ids": True}


def test_a_stop_string_that_is_a_special_token_is_asked_for_by_its_id(special_words):
    settings = SamplingConfig(num_generations=1, max_new_tokens=4, engine=ENGINE, stop_strings=("w6", "w8"))
    asked = ExternalSampler(settings, 50, Ending.by(STOPS, settings.stop_strings, special_words(6)))
    (question,) = asked.questions(PROMPT)
    assert (question.body["stop_token_ids"], question.body["stop"]) == ([2, 5, 6], ["w8"])
    made = asked.response(Sampled(np.array([4, 6], np.int32), np.zeros(2, np.float32), "stop"), PROMPT)
    assert (made.text, made.finish_reason) == ("w4 ", STOP)
    only = Ending.by(STOPS, ("w6",), special_words(6))
    assert "stop" not in ExternalSampler(settings, 50, only).questions(PROMPT)[0].body


def test_a_temperature_is_a_question_and_greedy_samples_are_one():
    asked = sampler(num_generations=5, temperature=(1.0, 0.7, 0.0), top_k=4).questions(PROMPT)
    found = [(q.body["temperature"], q.body["n"], q.body["top_k"]) for q in asked]
    assert found == [(1.0, 2, 4), (0.7, 2, 4), (0.0, 1, 4)]
    assert len({q.body["seed"] for q in asked}) == 3


def test_seeds_differ_by_prompt_run_and_place_and_leave_room_for_an_index():
    seeds = {engine_seed(run, prompt, first) for run in range(10) for prompt in "abc" for first in range(4)}
    assert len(seeds) == 120
    assert 0 <= min(seeds) <= max(seeds) < 2**31 - 2**16


def test_samples_are_read_in_order_with_their_ids_and_log_probs():
    given = answer([4, 2], [6, 6, 6, 6])
    given["choices"].reverse()
    with pytest.raises(EngineMismatch, match="gives no token ids"):  # the prompt's ids lie with the first sample
        read_samples({"choices": [{k: v for k, v in c.items() if k != "prompt_token_ids"} for c in given["choices"]]},
                     PROMPT.prompt_ids, 2)
    first, second = read_samples(given, PROMPT.prompt_ids, 2)
    assert (first.ids.tolist(), second.ids.tolist(), first.logps.tolist()) == ([4, 2], [6, 6, 6, 6], [-1.0, -1.0])


@pytest.mark.parametrize(("given", "words"), [
    (answer([4, 2], prompt=(1, 1, 7, 9)), r"prompt was tokenised again .* 4 tokens .*\[1, 1, 7, 9\].* given 3 tokens"),
    ({"choices": [{"index": 0, "text": "a story", "logprobs": None, "finish_reason": "stop"}]}, "gives no token ids"),
    ({"choices": [{**answer([4, 2])["choices"][0], "logprobs": {"token_logprobs": [-1.0] * 3}}]},
     "sample was tokenised again .* 2 token ids and 3 log-probs")])
def test_what_was_tokenised_again_is_refused_by_name(given, words):
    with pytest.raises(EngineMismatch, match=words):
        read_samples(given, PROMPT.prompt_ids, 1)


@pytest.mark.parametrize("given", [{}, {"choices": []}, answer([4], [4]), answer([]),
                                   {"choices": [{**answer([4, 2])["choices"][0], "logprobs": None}]},
                                   {"choices": [{**answer([4])["choices"][0],
                                                 "logprobs": {"token_logprobs": [float("nan")]}}]}])
def test_what_is_no_answer_is_asked_for_again(given):
    with pytest.raises((ValueError, LookupError, TypeError)):
        read_samples(given, PROMPT.prompt_ids, 1)


@pytest.mark.parametrize("given", [
    answer([4, 2], reason="abort"), answer([4, 6], reason="content_filter"), answer([4, 6, 6, 6], reason=None),
    {"choices": [{"index": 0, "finish_reason": "abort", "token_ids": None}]},
    {"object": "error", "message": "overloaded", "code": 503}])
def test_a_sample_that_was_broken_off_is_no_answer(given):
    """The engine's weights are being changed, say: nothing is wrong with it, or with what it gave before."""
    with pytest.raises(NoAnswer, match=r"reason '?(abort|content_filter|None)|in place of samples: .*overloaded"):
        read_samples(given, PROMPT.prompt_ids, 1)


def test_a_response_ends_as_our_own_does():
    stopped, cut = taken([4, 5], "stop"), taken([4, 6, 7, 8])
    assert (stopped.finish_reason, stopped.text, stopped.ids.tolist()) == ("stop", "w4 ", [4, 5])
    assert (cut.finish_reason, cut.text) == ("length", "w4 w6 w7 w8 ")
    at_string = taken([4, 6, 7, 8], "stop", stop_strings=("w6",))
    assert (at_string.finish_reason, at_string.ids.tolist(), len(at_string.logps)) == ("stop", [4, 6], 2)


@pytest.mark.parametrize(("ids", "reason", "words"), [
    ([4, 6], "length", "after 2 of 4 tokens.*context is too short"),
    ([4, 6], "stop", r"token 6 is none of the stop tokens \[2, 5\]"),
    ([4, 2, 6, 6], "length", "went on after a stop token"), ([4] * 5, "length", "went on after max_new_tokens"),
    ([4, 50], "stop", "gave token 50, and the model has 50")])
def test_a_sample_that_ends_where_it_should_not_is_refused_by_name(ids, reason, words):
    with pytest.raises(EngineMismatch, match=words):
        taken(ids, reason)


def test_greedy_samples_are_the_same_answer():
    made = sampler(num_generations=3, temperature=0.0).read(PROMPT, answer([4, 2]))
    assert [r.ids.tolist() for r in made.responses] == [[4, 2]] * 3
