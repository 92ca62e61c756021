"""What a benchmark of reward models is: judged rows in, named numbers with intervals clustered by prompt out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.calibration import Sums, TieRule
from rlhf_jax.evaluation.statistics import Coverage, Estimate, by_cluster, resampled_estimate

Accuracies = Mapping[str, float]
"""Subset -> its accuracy."""


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
      scores: response -> its score; empty where the scorer compares.
    """

    id: str
    prompt: str
    subset: str
    pairs: tuple[tuple[int, int], ...]
    gaps: tuple[float | None, ...]
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether no pair failed."""
        return None not in self.gaps

    def wins(self, tie_rule: TieRule) -> list[float | None]:
        """Per pair: 1 where the better response is preferred, 0 where the other is; None where the scorer failed."""
        tie = 0.5 if tie_rule == "half" else 0.0
        return [None if gap is None else tie if gap == 0 else float(gap > 0) for gap in self.gaps]

    def share(self, tie_rule: TieRule) -> float | None:
        """The share of its pairs that are won; None where none was judged."""
        wins = [win for win in self.wins(tie_rule) if win is not None]
        return sum(wins) / len(wins) if wins else None


Numbers = Callable[[Sequence[JudgedRow], TieRule], Mapping[str, Sums]]
"""Judged rows -> name -> what each row adds to some sums, and the number that follows from their totals."""
OfficialFile = Callable[[Sequence[JudgedRow], TieRule, str], Mapping[str, Any]]
"""(judged rows, tie rule, name of the scorer) -> file name -> its contents, as JSON."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of `BENCHMARKS`.

    Attributes:
      numbers: what it reports.
      row: from a row as its authors publish it to one of a known layout; None where rows are in one already.
      tie_rule: what an equal score counts, as its authors have it.
      parts: part -> the subsets it needs; empty where any subset may stand in the rows.
      others: subsets that are in its files and in no part.
      scored: parts that need scores, so that a scorer that compares has no number for them.
      official: writes its authors' own result file; None where they have none.
      unit: what a row is resampled with; None for the prompt.
    """

    numbers: Numbers
    row: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    tie_rule: TieRule = "half"
    parts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    official: OfficialFile | None = None
    unit: Callable[[JudgedRow], str] | None = None

    @property
    def converter(self) -> str | None:
        """`row` as "module:function", by which the data path finds it and stages are keyed."""
        return None if self.row is None else f"{self.row.__module__}:{self.row.__qualname__}"

    @property
    def subsets(self) -> tuple[str, ...]:
        """All that its rows can be of; empty for any."""
        return (*(subset for subsets in self.parts.values() for subset in subsets), *self.others)

    def missing(self, here: Collection[str]) -> dict[str, list[str]]:
        """Part -> the subsets of it that are not among those that are `here`."""
        found = {part: [subset for subset in subsets if subset not in here] for part, subsets in self.parts.items()}
        return {part: subsets for part, subsets in found.items() if subsets}

    def complete(self, rows: Sequence[JudgedRow]) -> list[str]:
        """The parts of which all subsets were judged."""
        missing = self.missing(present(rows))
        return [part for part in self.parts if part not in missing]


def measured_rows(benchmark: Benchmark, rows: Sequence[JudgedRow], tie_rule: TieRule | None = None, seed: int = 0,
                  confidence: float = 0.95, resamples: int = 2000) -> dict[str, Estimate]:
    """Every number of a benchmark that some row adds to, with an interval over prompts.

    tie_rule: what an equal score counts; None for what the benchmark's authors do.
    """
    units = [row.prompt if benchmark.unit is None else benchmark.unit(row) for row in rows]
    return {name: over_units(sums, units, seed, confidence, resamples)
            for name, sums in benchmark.numbers(rows, tie_rule or benchmark.tie_rule).items() if np.any(sums.columns)}


def incomplete(benchmark: Benchmark, rows: Sequence[JudgedRow], tie_rule: TieRule | None = None
               ) -> dict[str, Coverage]:
    """Number -> how many of its rows were judged, for the numbers of `measured_rows` of which some were not."""
    judged, rule = np.array([row.judged for row in rows], bool), tie_rule or benchmark.tie_rule
    if judged.all():
        return {}
    measured = [name for name, sums in benchmark.numbers(rows, rule).items() if np.any(sums.columns)]
    without_failures = benchmark.numbers(_as_if_judged(rows), rule)
    counted = {name: np.any(without_failures[name].columns, axis=1) for name in measured}
    return {name: Coverage(int((here & judged).sum()), int(here.sum()))
            for name, here in counted.items() if np.any(here & ~judged)}


def _as_if_judged(rows: Sequence[JudgedRow]) -> list[JudgedRow]:
    """The rows as if no pair had failed: every response scored alike, or no preference where the scorer compares."""
    scored = any(row.scores for row in rows)
    return [dataclasses.replace(row, gaps=(0.0,) * len(row.pairs), scores={
        place: 0.0 for pair in row.pairs for place in pair} if scored else {}) for row in rows]


def over_units(sums: Sums, units: Sequence[str], seed: int, confidence: float, resamples: int) -> Estimate:
    """A number with its interval; `units` says which unit of the resampling each row belongs to.

    Rows that add nothing to it (those of other subsets, those without a verdict) take no part.
    """
    counted = np.flatnonzero(np.any(sums.columns, axis=1))
    totals = by_cluster(sums.columns[counted], [units[place] for place in counted.tolist()])
    return resampled_estimate(totals, lambda drawn, units: sums.statistic(drawn), seed, confidence, resamples,
                              outcomes=sums.share)


def mean_of(values: Sequence[float | None]) -> Sums:
    """The mean of one value per row; None takes no part."""
    columns = np.array([[value is not None, value or 0.0] for value in values], np.float64)
    return Sums(columns, lambda sums: float(sums[1] / sums[0]), share=True)


def mean_of_pairs(rows: Sequence[JudgedRow], tie_rule: TieRule, subset: str | None = None) -> Sums:
    """The share of pairs won, over all rows or those of one subset; [rows, 2] sums of pairs and of wins."""
    columns = np.zeros((len(rows), 2))
    for place, row in enumerate(rows):
        if subset in (None, row.subset):
            wins = [win for win in row.wins(tie_rule) if win is not None]
            columns[place] = len(wins), sum(wins)
    return Sums(columns, lambda sums: float(sums[1] / sums[0]), share=True)


def combined(rows: Sequence[JudgedRow], values: Sequence[float | None], subsets: Sequence[str],
             rule: Callable[[Accuracies], float]) -> Sums:
    """A function of the accuracies of some subsets: of their means of one value per row, None taking no part.

    Where a resample draws no row of a subset, the rule gets the accuracies of the others.
    """
    place = {subset: number for number, subset in enumerate(subsets)}
    columns = np.zeros((len(rows), len(subsets), 2))
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        if row.subset in place and value is not None:
            columns[number, place[row.subset]] = 1.0, value

    def statistic(sums: np.ndarray) -> float:
        counts, totals = sums.reshape(len(subsets), 2).T
        return rule({subset: float(totals[i] / counts[i]) for subset, i in place.items() if counts[i]})

    return Sums(columns.reshape(len(rows), -1), statistic, share=True)


def present(rows: Sequence[JudgedRow]) -> list[str]:
    """The subsets that rows are of whose every pair was judged, in the order they come in."""
    return list(dict.fromkeys(row.subset for row in rows if row.subset and row.judged))


def by_subset(rows: Sequence[JudgedRow], tie_rule: TieRule) -> dict[str, Sums]:
    """"subset/NAME" -> the accuracy of each subset, over the pairs that were judged."""
    return {f"subset/{subset}": mean_of_pairs(rows, tie_rule, subset)
            for subset in dict.fromkeys(row.subset for row in rows) if subset}


def plain_mean(accuracies: Accuracies) -> float:
    """The mean of subsets, each counting the same."""
    return sum(accuracies.values()) / len(accuracies)


def as_question(prompt: Any) -> list[dict[str, Any]]:
    """A prompt as one user message, so that a scorer renders it by its chat template."""
    return [{"role": "user", "content": prompt}]
