"""Sampling by an engine outside of this program: token ids go out, token ids and log-probs come back, no text does."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import LENGTH, STOP, PromptGroup, Response
from rlhf_jax.remote import Client, Question, RemoteError, completion
from rlhf_jax.sampling.ending import Ending

_SEEDS = 2**31 - 2**17
"""Seeds that are drawn lie below it, so that an engine may add the index of a sample."""
_DIRECTLY = "Ask the engine itself, or a proxy that passes on token ids"


class EngineMismatch(RuntimeError):
    """An engine did something else than it was asked for: nothing trained on what it gave would be right."""


class NoAnswer(ValueError):
    """An engine says that it did not answer: an error in place of samples, or one that was broken off. It may yet."""


class Sampled(NamedTuple):
    """One sample as an engine gave it: token ids [T], their log-probs [T], and why it says that it ended."""

    ids: np.ndarray
    logps: np.ndarray
    reason: str


class _Share(NamedTuple):
    """Samples of a prompt that one question asks for. first: index of the first. size: how many. asked: for how many,
    one where all are the same."""

    first: int
    size: int
    asked: int
    temperature: float


def shares(sampling: SamplingConfig) -> list[_Share]:
    """The n samples of a prompt by temperature. A greedy one is asked for once, however often it is wanted."""
    found, first = list[_Share](), 0
    for temperature, some in itertools.groupby(sampling.temperatures):
        size = len(list(some))
        found.append(_Share(first, size, size if temperature else 1, temperature))
        first += size
    return found


def engine_seed(seed: int, prompt_id: str, first: int) -> int:
    """The seed of a question: of the run's, the prompt and the place of its first sample among the prompt's."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{first}/{prompt_id}".encode()).digest()[:4], "big") % _SEEDS


def ask_for(prompt: PromptGroup, share: _Share, sampling: SamplingConfig, model: str, ending: Ending) -> Question:
    """What an engine is asked. Every setting is said, since engines take those that are not from the model's folder."""
    stops = {"stop": list(ending.stop_strings)} if ending.stop_strings else {}
    seed = engine_seed(sampling.seed, prompt.prompt_id, share.first)
    return completion(
        model, prompt.prompt_ids.tolist(), n=share.asked, seed=seed,
        max_tokens=sampling.max_new_tokens, temperature=share.temperature, top_k=sampling.top_k or -1,
        top_p=sampling.top_p, min_p=sampling.min_p, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, stop_token_ids=sorted(ending.stop_ids), **stops, logprobs=0, return_token_ids=True)


def read_samples(answer: Mapping[str, Any], prompt_ids: np.ndarray, count: int) -> list[Sampled]:
    """The samples in an answer.

    Raises:
      NoAnswer, ValueError: it is no answer.
      EngineMismatch: token ids are missing, or are not those that were asked about.
    """
    if "choices" not in answer:
        raise NoAnswer(f"in place of samples: {str(dict(answer))[:200]}")
    if (broken := [choice["finish_reason"] for choice in answer["choices"]
                   if choice["finish_reason"] not in (STOP, LENGTH)]):
        raise NoAnswer(f"a sample that ended with reason {broken[0]!r}")
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} choices and n = {count}")
    read = choices[0].get("prompt_token_ids")
    if read is None or any(choice.get("token_ids") is None for choice in choices):
        raise EngineMismatch("the engine gives no token ids, and text is not tokenised again here: it must know "
                             "return_token_ids (vLLM does), and no proxy before it may drop that or its answer")
    if list(read) != prompt_ids.tolist():
        raise EngineMismatch(f"the prompt was tokenised again on its way: the engine read {_some(read)} and was given "
                             f"{_some(prompt_ids.tolist())}. {_DIRECTLY}")
    return [_sampled(choice) for choice in choices]


def _sampled(choice: Mapping[str, Any]) -> Sampled:
    ids, logps = np.asarray(choice["token_ids"]), np.asarray(choice["logprobs"]["token_logprobs"], np.float32)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind != "i" or not np.isfinite(logps).all():
        raise ValueError("token_ids or token_logprobs hold something else than numbers, or nothing")
    if len(ids) != len(logps):
        raise EngineMismatch(f"a sample was tokenised again on its way: {len(ids)} token ids and {len(logps)} "
                             f"log-probs. {_DIRECTLY}")
    return Sampled(ids.astype(np.int32), logps, str(choice.get("finish_reason")))


def _some(ids: Sequence[int]) -> str:
    return f"{len(ids)} tokens that begin with {list(ids)[:8]}"


class ExternalSampler:
    """Samples n continuations of many prompts through an engine, as `Sampler` does on our own devices.

    Args:
      sampling: settings, with an engine. vocab_size: of the model. ending: of a response.
    """

    def __init__(self, sampling: SamplingConfig, vocab_size: int, ending: Ending):
        assert sampling.engine is not None
        self.sampling, self.model = sampling, sampling.engine.model
        self._vocab_size, self._ending, self._shares = vocab_size, ending, shares(sampling)

    def generate(self, client: Client, prompts: Sequence[PromptGroup],
                 progress: Callable[[int], None] | None = None) -> list[PromptGroup]:
        """The prompts with their responses.

        Args:
          progress: called with the number of questions answered since the last call; there are `shares` a prompt.

        Raises:
          EngineMismatch: the engine did something else than it was asked for.
          RemoteError: it did not answer a question, or cannot be asked any further; answers so far are kept.
        """
        questions = [(prompt, share, question) for prompt in prompts
                     for share, question in zip(self._shares, self.questions(prompt), strict=True)]
        failures = Counter[str]()
        answers = client.ask([question for _, _, question in questions],
                             [partial(self._read, prompt, share) for prompt, share, _ in questions], failures, progress)
        if failures:
            reason, count = failures.most_common(1)[0]
            raise RemoteError(f"{client.addresses} gave no answer to {failures.total():,} of {len(questions):,} "
                              f"questions: to {count:,} since it {client.words[reason]}. The others' answers are kept: "
                              "give the same command again to ask these alone")
        found = iter(answers)
        return [dataclasses.replace(prompt, responses=tuple(
            response for some in itertools.islice(found, len(self._shares)) for response in some or ()))
            for prompt in prompts]

    def questions(self, prompt: PromptGroup) -> list[Question]:
        """What is asked of a prompt, one question a temperature."""
        return [ask_for(prompt, share, self.sampling, self.model, self._ending) for share in self._shares]

    def read(self, prompt: PromptGroup, answer: Mapping[str, Any]) -> PromptGroup:
        """The prompt with what was answered to its only question. Raises as `read_samples` and `response` do."""
        (share,) = self._shares
        return dataclasses.replace(prompt, responses=tuple(self._read(prompt, share, answer)))

    def _read(self, prompt: PromptGroup, share: _Share, answer: Mapping[str, Any]) -> list[Response]:
        found = read_samples(answer, prompt.prompt_ids, share.asked)
        return [self.response(sample, prompt) for sample in found] * (share.size // share.asked)

    def response(self, sample: Sampled, prompt: PromptGroup) -> Response:
        """A sample as a response. Raises EngineMismatch where it does not end as it was asked to."""
        if not 0 <= sample.ids.min() <= sample.ids.max() < self._vocab_size:
            raise EngineMismatch(f"the engine gave token {sample.ids.max()}, and the model has {self._vocab_size:,}: "
                                 "it serves another model")
        made = self._ending.response(sample.ids, sample.logps, prompt)
        most, length, last = self.sampling.max_new_tokens, len(sample.ids), int(sample.ids[-1])
        early = np.isin(made.ids[:-1], list(self._ending.stop_ids))
        if length > most or early.any():
            raise EngineMismatch(f"the engine went on after {'max_new_tokens' if length > most else 'a stop token'}: "
                                 f"a sample has {length} tokens, max_new_tokens is {most}, and its stop tokens are "
                                 f"{sorted(self._ending.stop_ids)}")
        if made.finish_reason == LENGTH and length < most:
            hint = "its context is too short for the prompt and max_new_tokens" if sample.reason == LENGTH else (
                f"token {last} is none of the stop tokens {sorted(self._ending.stop_ids)} of this model")
            raise EngineMismatch(f"the engine ended a sample after {length} of {most} tokens, with reason "
                                 f"{sample.reason!r}: {hint}")
        return made
