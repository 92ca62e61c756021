"""RRM's causal augmentation: answers to other prompts lose to an answer, and are neutral among themselves (2409.13156).

A preference model that learns what is good in an answer whatever was asked takes length and format for quality. Here an
answer that was written for the prompt beats every one that was not, however good that is elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.prompt_text import normalised, plain_text

NEUTRAL = "neutral"
"""The column that marks an example whose two answers are as good as each other."""
ROWS = 14
"""Made of one pair: 8 that an answer of its own wins, 6 neutral ones."""


def augmented(examples: Sequence[Example], seed: int, funnel: Funnel, keep: bool = False) -> Sequence[Example]:
    """The rows that each pair makes with the answers of two other pairs, j and k.

    The prompt is the pair's own. Its chosen and its rejected answer beat all four answers of j and k; any two of those
    four are neutral. j and k answer other prompts than the pair's, and follow from two random cycles through all pairs.

    Args:
      funnel: counts the rows that come to it.
      keep: the pairs themselves stay, before what they make; in the published code they do not.

    Raises:
      ValueError: a pair has fewer than two others that answer another prompt.
    """
    pairs = OnDisk((example, number, pair) for example in examples for number, pair in enumerate(example.pairs))
    prompts = [hashlib.sha256(normalised(plain_text(example.prompt)).encode()).digest() for example, _, _ in pairs]
    others = _others(prompts, seed)
    out = OnDisk[Example]()
    for place, (example, number, (chosen, rejected)) in enumerate(pairs):
        own = example.responses[chosen], example.responses[rejected]
        foreign = [pairs[other][0].responses[at] for other in others[place] for at in pairs[other][2]]
        won = [(mine, theirs, False) for mine in own for theirs in foreign]
        neutral = [(*two, True) for two in itertools.combinations(foreign, 2)]
        rows = [*([(*own, False)] if keep else []), *won, *neutral]
        out.extend(dataclasses.replace(
            example, responses=(first, second), pairs=((0, 1),), margins=(), scores=(), extra={NEUTRAL: same},
            prompt_id=f"{example.prompt_id}/{number}/{row}") for row, (first, second, same) in enumerate(rows))
    funnel.read += len(out) - len(examples)
    funnel.notes["augmented"] += ROWS * len(pairs)
    return out


def _others(prompts: Sequence[bytes], seed: int) -> list[tuple[int, int]]:
    """Of each place two other places, of other prompts than its own; j != k."""
    if not prompts or len(prompts) - max(Counter(prompts).values()) < 2:
        raise ValueError(f"augment = 'rrm' takes answers to two other prompts for each of the {len(prompts)} pairs, "
                         "and there are too few; give rows of more prompts, or leave augment out")
    cycles = [np.random.default_rng([seed, turn, len(prompts)]).permutation(len(prompts)).tolist() for turn in (0, 1)]
    at = [{place: position for position, place in enumerate(cycle)} for cycle in cycles]

    def following(turn: int, place: int, taken: int | None) -> int:
        cycle, start = cycles[turn], at[turn][place]
        return next(other for step in range(1, len(cycle)) if (other := cycle[(start + step) % len(cycle)]) != taken
                    and prompts[other] != prompts[place])

    return [(j, following(1, place, j)) for place in range(len(prompts)) for j in [following(0, place, None)]]
