"""Does a process model see where a solution goes wrong? Its numbers of the steps against their labels.

The first error and the F1 of the two kinds of solutions are those of ProcessBench (Zheng et al., arXiv 2412.06559).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.steps import LABELS
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.statistics import Estimate, by_cluster, mean_estimate, resampled_estimate


class JudgedSolution(NamedTuple):
    """A solution's steps. right: [n] bool by the labels (anything above 0). likely: [n] P(+) of each."""

    prompt: str
    right: np.ndarray
    likely: np.ndarray

    @property
    def first_error(self) -> int:
        """Place of the first wrong step; the number of steps where there is none."""
        return int(np.argmin(np.append(self.right, False)))

    @property
    def found(self) -> int:
        """Place of the first step that the model finds wrong; the number of steps where it finds none."""
        return int(np.argmin(np.append(self.likely > 0.5, False)))


def judged_solution(group: PromptGroup, score: str) -> JudgedSolution | None:
    """The labels of a row of steps and the scores of its steps; None where it has no score.

    Raises:
      ValueError: the row has no labels, or scores of other steps.
    """
    labels = group.extra.get(LABELS)
    if not isinstance(labels, list) or len(group.responses) != 1:
        raise ValueError(f"prompt {group.prompt_id!r} is no row of labelled steps; score some with `rlhf-jax score "
                         "--kind process --dataset_name STEPS`")
    scores = group.responses[0].scores
    if score not in scores:
        return None
    names = [f"{score}/step-{place}" for place in range(1, len(labels) + 1)]
    if not all(name in scores for name in names) or f"{score}/step-{len(labels) + 1}" in scores:
        raise ValueError(f"prompt {group.prompt_id!r} has {len(labels)} labelled steps, and {score!r} has no number "
                         "for each of them; it is the score of no process model, or of other steps")
    return JudgedSolution(prompt_name(group), np.array(labels) > 0, np.array([scores[name] for name in names]))


def step_accuracy(solutions: Sequence[JudgedSolution], seed: int = 0) -> dict[str, Estimate]:
    """Numbers with intervals over prompts.

    accuracy: share of steps, up to the first wrong one, whose label is the model's (behind it a step continues an
    error, and the model reads + for it). first_error: share of solutions whose first wrong step the model finds, or
    that have none and it finds none; first_error/wrong and first_error/right: of either kind. f1: their harmonic mean.

    Raises:
      ValueError: there is no solution.
    """
    if not solutions:
        raise ValueError("no solution has a score; see `failures` of the stage that scored them")
    seen = [min(s.first_error + 1, len(s.right)) for s in solutions]
    hits = [int(((s.likely > 0.5) == s.right)[:n].sum()) for s, n in zip(solutions, seen, strict=True)]
    exact = np.array([float(s.found == s.first_error) for s in solutions])
    wrong = np.array([float(not s.right.all()) for s in solutions])
    prompts = [s.prompt for s in solutions]

    def ratio(over: np.ndarray, under: np.ndarray) -> Estimate:
        totals = by_cluster(np.column_stack([over, under]).astype(float), prompts)
        return resampled_estimate(totals, lambda sums, units: sums[0] / max(sums[1], 1.0), seed)

    numbers = {"accuracy": ratio(np.array(hits), np.array(seen)),
               "first_error": mean_estimate(exact, seed, clusters=prompts)}
    for name, which in (("wrong", wrong), ("right", 1 - wrong)):
        if which.any():
            numbers[f"first_error/{name}"] = ratio(exact * which, which)
    if 0 < wrong.sum() < len(wrong):
        totals = by_cluster(np.column_stack([exact * wrong, wrong, exact * (1 - wrong), 1 - wrong]), prompts)

        def f1(sums: np.ndarray, units: int) -> float:
            a, b = sums[0] / max(sums[1], 1.0), sums[2] / max(sums[3], 1.0)
            return float(2 * a * b / (a + b)) if a + b else 0.0

        numbers["f1"] = resampled_estimate(totals, f1, seed)
    return numbers
