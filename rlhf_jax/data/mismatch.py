"""Answers to other prompts, as further branches of a prompt: what KTO's reference point is estimated from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.example import LABEL
from rlhf_jax.data.groups import PromptGroup, Response

MISMATCHED = "mismatched"
"""The number that marks such a branch in `Response.scores`."""


def labelled_pairs(groups: Sequence[PromptGroup]) -> list[PromptGroup]:
    """A group per pair: its chosen response with label 1 and its rejected one with label 0."""
    return [dataclasses.replace(
        group, pairs=(), margins=(), responses=tuple(
            dataclasses.replace(group.responses[place], scores={**group.responses[place].scores, LABEL: label})
            for place, label in zip(pair, (1.0, 0.0), strict=True)))
        for group in groups for pair in group.pairs]


def with_mismatched(groups: Sequence[PromptGroup], seed: int) -> list[PromptGroup]:
    """The groups with one more branch for each response: the response to another prompt.

    Whose it is follows from a random cycle through all responses: each takes the next one in it that answers another
    prompt, so that nearly every response is taken once. What is longer than the longest conversation of the set is cut.

    Raises:
      ValueError: all groups have the same prompt.
    """
    places = [(group, branch) for group, each in enumerate(groups) for branch in range(len(each.responses))]
    cycle = np.random.default_rng([seed, len(places)]).permutation(len(places)).tolist()
    prompts = [group.prompt_ids.tobytes() for group in groups]
    longest = max(len(group.prompt_ids) + len(response.ids) for group in groups for response in group.responses)
    added: list[list[Response]] = [[] for _ in groups]
    taken = {place: _next(cycle, position, places, prompts) for position, place in enumerate(cycle)}
    for place, (group, _) in enumerate(places):
        other, branch = places[taken[place]]
        added[group].append(_mismatched(groups[other].responses[branch], longest - len(groups[group].prompt_ids)))
    return [dataclasses.replace(group, responses=(*group.responses, *more))
            for group, more in zip(groups, added, strict=True)]


def _next(cycle: Sequence[int], position: int, places: Sequence[tuple[int, int]], prompts: Sequence[bytes]) -> int:
    mine = prompts[places[cycle[position]][0]]
    for step in range(1, len(cycle)):
        place = cycle[(position + step) % len(cycle)]
        if prompts[places[place][0]] != mine:
            return place
    raise ValueError("KTO compares each prompt with an answer to another prompt, and all rows have the same prompt; "
                     "give rows of several prompts, or choose a loss without that, such as apo_zero_unpaired")


def _mismatched(response: Response, room: int) -> Response:
    return Response(response.ids[:room], response.loss_mask[:room], scores={MISMATCHED: 1.0})
