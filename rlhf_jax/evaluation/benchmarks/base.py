"""What a benchmark of reward models is: judged rows in, named numbers with intervals clustered by prompt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_jax.evaluation.calibration import Sums, TieRule
from rlhf_jax.evaluation.statistics import Estimate, by_cluster, resampled_estimate


@dataclasses.dataclass(frozen=True)
class JudgedRow:
    """A row as a scorer judged it.

    Attributes:
      id: of the row.
      prompt: what it asks; rows of one prompt are one unit of the intervals.
      subset: the part of the benchmark it belongs to.
      pairs: (better, worse) responses, by place.
      gaps: per pair, by how much the scorer prefers the better one: a difference of scores, or P(better) - 1/2 of a
        scorer that compares; 0 is a tie, None a failure.
    """

    id: str
    prompt: str
    subset: str
    pairs: tuple[tuple[int, int], ...]
    gaps: tuple[float | None, ...]

    def wins(self, tie_rule: TieRule) -> list[float | None]:
        """Per pair: 1 where the better response is preferred, 0 where the other is; None where the scorer failed."""
        tie = 0.5 if tie_rule == "half" else 0.0
        return [None if gap is None else tie if gap == 0 else float(gap > 0) for gap in self.gaps]


Numbers = Callable[[Sequence[JudgedRow], TieRule], Mapping[str, Sums]]
"""Judged rows -> name -> what each row adds to some sums, and the number that follows from their totals."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of `BENCHMARKS`.

    Attributes:
      numbers: what it reports.
      tie_rule: what an equal score counts, as its authors have it.
    """

    numbers: Numbers
    tie_rule: TieRule = "half"


def measured_rows(benchmark: Benchmark, rows: Sequence[JudgedRow], seed: int = 0, confidence: float = 0.95,
                  resamples: int = 2000) -> dict[str, Estimate]:
    """Every number of a benchmark, with an interval over prompts."""
    return {name: over_rows(sums, rows, seed, confidence, resamples)
            for name, sums in benchmark.numbers(rows, benchmark.tie_rule).items()}


def over_rows(sums: Sums, rows: Sequence[JudgedRow], seed: int, confidence: float, resamples: int) -> Estimate:
    """A number with its interval over prompts.

    Rows that add nothing to it (those of other subsets, those without a verdict) take no part.
    """
    counted = np.flatnonzero(np.any(sums.columns, axis=1))
    totals = by_cluster(sums.columns[counted], [rows[place].prompt for place in counted.tolist()])
    return resampled_estimate(totals, lambda drawn, units: sums.statistic(drawn), seed, confidence, resamples)


def mean_of_pairs(rows: Sequence[JudgedRow], tie_rule: TieRule, subset: str | None = None) -> Sums:
    """The share of pairs won, over all rows or those of one subset; [rows, 2] sums of pairs and of wins."""
    columns = np.zeros((len(rows), 2))
    for place, row in enumerate(rows):
        if subset in (None, row.subset):
            wins = [win for win in row.wins(tie_rule) if win is not None]
            columns[place] = len(wins), sum(wins)
    return Sums(columns, lambda sums: float(sums[1] / sums[0]))
