"""What is measured of a scorer: held-out pairs, the length of what it likes, and how well it regresses ratings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from rlhf_jax.data.graded import pairs_from_scores
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation import Estimate, pair_margins, paired_difference, preference_accuracy, resampled_estimate
from rlhf_jax.evaluation.length_bias import length_bias
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.statistics import by_cluster


def merged(scored: Sequence[Sequence[PromptGroup]]) -> list[PromptGroup]:
    """The same groups with the scores of all scorers."""
    return [dataclasses.replace(groups[0], responses=tuple(
        dataclasses.replace(answers[0], scores={name: x for answer in answers for name, x in answer.scores.items()})
        for answers in zip(*(group.responses for group in groups), strict=True)))
        for groups in zip(*scored, strict=True)]


def paired(groups: Sequence[PromptGroup], truth: str, *scorers: str) -> list[PromptGroup]:
    """The groups with every pair of answers that differ in the number `truth` and that all `scorers` scored."""
    found = []
    for group in groups:
        values = [r.scores.get(truth) if all(name in r.scores for name in scorers) else None for r in group.responses]
        found.append(dataclasses.replace(group, pairs=pairs_from_scores(values)[0]))
    return found


def accuracy(groups: Sequence[PromptGroup], truth: str, scorer: str) -> tuple[Estimate, int] | None:
    """Share of pairs ordered as `truth` has them, with an interval over prompts, and the number of pairs."""
    margins, prompts = pair_margins(paired(groups, truth, scorer), scorer)
    if not len(margins):
        return None
    return preference_accuracy(margins, clusters=prompts).estimates["accuracy"], len(margins)


def difference(groups: Sequence[PromptGroup], truth: str, scorer: str, other: str) -> Estimate | None:
    """Accuracy of `scorer` minus that of `other` on the same pairs, with an interval over prompts."""
    some = paired(groups, truth, scorer, other)
    (mine, prompts), (theirs, _) = (pair_margins(some, name) for name in (scorer, other))
    if not len(mine):
        return None
    right = [np.where(margins == 0, 0.5, margins > 0) for margins in (mine, theirs)]
    return paired_difference(*right, clusters=prompts)


def follows_length(groups: Sequence[PromptGroup], scorer: str) -> Estimate | None:
    """Mean over prompts of the correlation of score and characters; None where no prompt has three scored answers."""
    try:
        return length_bias(groups, scorer, "characters").correlation
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class Regressed:
    """A regressed rating on held-out answers. error: root of the mean squared error, in 0 to 1. of_constant: the same
    of their mean. r2: share of the variance that is explained, with an interval over prompts. rank: correlation."""

    answers: int
    error: float
    of_constant: float
    r2: Estimate
    rank: float


def regressed(groups: Sequence[PromptGroup], truth: str, predicted: str) -> Regressed | None:
    """How well the numbers `predicted` give the numbers `truth`."""
    found = [(r.scores[truth], r.scores[predicted], prompt_name(group)) for group in groups for r in group.responses
             if truth in r.scores and predicted in r.scores]
    if len(found) < 3:
        return None
    y, x = np.array([row[:2] for row in found]).T
    squares = np.column_stack([(x - y) ** 2, (y - y.mean()) ** 2])
    r2 = resampled_estimate(by_cluster(squares, [row[2] for row in found]), lambda sums, _: 1.0 - sums[0] / sums[1])
    error, constant = np.sqrt(squares.mean(axis=0))
    return Regressed(len(found), float(error), float(constant), r2, float(spearmanr(x, y).statistic))


def scored_share(groups: Sequence[PromptGroup], scorer: str) -> float:
    """Share of the answers that have a score."""
    answers: list[Any] = [r for group in groups for r in group.responses]
    return sum(scorer in r.scores for r in answers) / len(answers)
