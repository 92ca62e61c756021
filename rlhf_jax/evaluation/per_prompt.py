"""From responses to one number per row of prompts, and two runs over the same prompts side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.rows import canonical_prompt
from rlhf_jax.evaluation.statistics import Estimate, mean_estimate

ResponseNumber = Callable[[Response], float | None]
"""A number of one response, or None where it was not measured."""


def score_of(name: str) -> ResponseNumber:
    """Reads a stored score; None where that scorer gave the response no verdict."""
    return lambda response: response.scores.get(name)


def measured(group: PromptGroup, *numbers: ResponseNumber) -> np.ndarray:
    """[responses, numbers]: the values of those responses of a group that have all of them."""
    rows = [[number(response) for number in numbers] for response in group.responses]
    complete = [row for row in rows if None not in row]
    return np.array(complete, np.float64).reshape(len(complete), len(numbers))


def prompt_means(groups: Sequence[PromptGroup], number: ResponseNumber) -> list[float | None]:
    """Per group: the mean of a number over its responses; None where no response has it."""
    values = (measured(group, number) for group in groups)
    return [float(v.mean()) if len(v) else None for v in values]


def prompt_name(group: PromptGroup) -> str:
    """Equal for groups that ask the same (white space aside): their answers are not independent of one another."""
    return canonical_prompt(group.prompt) if group.prompt else group.prompt_id


def over_prompts(groups: Sequence[PromptGroup], values: Sequence[float | None], seed: int = 0,
                 confidence: float = 0.95, resamples: int = 2000) -> Estimate | None:
    """The mean of one value per group, with an interval over prompts; None where no group has a value.

    Groups of one prompt are one unit of the resampling; those without a value take no part.
    """
    kept = [(value, prompt_name(group)) for group, value in zip(groups, values, strict=True) if value is not None]
    if not kept:
        return None
    numbers, names = zip(*kept, strict=True)
    return mean_estimate(numbers, seed, confidence, resamples, names)


def matched(groups: Sequence[PromptGroup], others: Sequence[PromptGroup]) -> list[tuple[PromptGroup, PromptGroup]]:
    """The two groups of each prompt, in the order of `groups`.

    Raises:
      ValueError: a prompt_id occurs twice, or in one of the two sequences alone.
    """
    by_id = {group.prompt_id: group for group in others}
    here = {group.prompt_id for group in groups}
    if len(here) != len(groups) or len(by_id) != len(others):
        raise ValueError("a prompt_id occurs twice; a comparison needs each prompt once on each side")
    if alone := sorted(here ^ by_id.keys()):
        raise ValueError(f"{len(alone)} of {len(here | by_id.keys())} prompts occur on one side alone (first: "
                         f"{alone[0]!r}); sample both policies from the same prompts")
    return [(group, by_id[group.prompt_id]) for group in groups]
