"""Answers to other prompts, as further branches of a prompt: what KTO's reference point is estimated from."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rlhf_jax.data.example import LABEL
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.on_disk import OnDisk

MISMATCHED = "mismatched"
"""The number that marks such a branch in `Response.scores`."""


def labelled_pairs(groups: Iterable[PromptGroup]) -> Sequence[PromptGroup]:
    """A group per pair: its chosen response with label 1 and its rejected one with label 0."""
    return OnDisk(dataclasses.replace(
        group, pairs=(), margins=(), responses=tuple(
            dataclasses.replace(group.responses[place], scores={**group.responses[place].scores, LABEL: label})
            for place, label in zip(pair, (1.0, 0.0), strict=True)))
        for group in groups for pair in group.pairs)


def with_mismatched(groups: Sequence[PromptGroup], seed: int) -> Sequence[PromptGroup]:
    """The groups with one more branch for each response: the response to another prompt.

    Whose it is follows from a random cycle through all responses: each takes the next one in it that answers another
    prompt, so that nearly every response is taken once. What is longer than the longest conversation of the set is cut.

    Raises:
      ValueError: all groups have the same prompt.
    """
    first, prompts, longest = array("q", [0]), np.zeros((len(groups), 16), np.uint8), 0  # first: answer of each group
    for number, group in enumerate(groups):
        first.append(first[-1] + len(group.responses))
        digest = hashlib.blake2b(group.prompt_ids.tobytes(), digest_size=16).digest()
        prompts[number] = np.frombuffer(digest, np.uint8)
        longest = max([longest, *(len(group.prompt_ids) + len(response.ids) for response in group.responses)])
    group_of = np.repeat(np.arange(len(groups)), np.diff(first))
    cycle = np.random.default_rng([seed, first[-1]]).permutation(first[-1])
    taken = np.zeros_like(cycle)
    answered = prompts[group_of]
    for position, place in enumerate(cycle):
        taken[place] = _next(cycle, position, answered)

    def made() -> Iterator[PromptGroup]:
        for number, group in enumerate(groups):
            others = ((int(group_of[place]), int(place)) for place in taken[first[number] : first[number + 1]])
            yield dataclasses.replace(group, responses=(*group.responses, *(
                _mismatched(groups[other].responses[place - first[other]], longest - len(group.prompt_ids))
                for other, place in others)))

    return OnDisk(made())


def _next(cycle: np.ndarray, position: int, prompts: np.ndarray) -> int:
    """The response behind this one in the cycle that answers another prompt. prompts: [R, 16] of each response."""
    mine = prompts[cycle[position]]
    for step in range(1, len(cycle)):
        place = int(cycle[(position + step) % len(cycle)])
        if (prompts[place] != mine).any():
            return place
    raise ValueError("KTO compares each prompt with an answer to another prompt, and all rows have the same prompt; "
                     "give rows of several prompts, or choose a loss without that, such as apo_zero_unpaired")


def _mismatched(response: Response, room: int) -> Response:
    return Response(response.ids[:room], response.loss_mask[:room], scores={MISMATCHED: 1.0})
