"""Evaluating a scorer on held-out preference pairs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.config.data import GradedOptions, RowOptions
from rlhf_jax.data.decontaminate import Contamination, Question, contaminated, question_index
from rlhf_jax.data.example import as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Text, named
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.prompt_text import plain_text, user_turns
from rlhf_jax.data.rows import Example
from rlhf_jax.evaluation.agreement import position_bias
from rlhf_jax.evaluation.benchmarks import JudgedRow, incomplete, measured_rows
from rlhf_jax.evaluation.calibration import TieRule
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.preference import ScorerReport, preference_accuracy
from rlhf_jax.evaluation.statistics import Coverage
from rlhf_jax.parallel import gather_counts, is_main_process, map_over_processes
from rlhf_jax.scoring import Comparing, InBothOrders, Scorer, log_odds
from rlhf_jax.workflow.benchmarking import (
    check_subsets,
    find_benchmark,
    incomplete_sentences,
    missing_sentences,
    write_metrics,
    write_official,
)
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, data_key, read_data
from rlhf_jax.workflow.products import ROWS
from rlhf_jax.workflow.stage import Stage, fingerprint

SIDES = ("chosen", "rejected")
"""Names of the two scores of a verdict."""
FIRST, SECOND = "p_shown_first", "p_shown_second"
"""Names of P(chosen is better) where it is shown first, and where it is shown second."""


@dataclasses.dataclass(frozen=True)
class PreferenceRows:
    """Preference rows as text, which every scorer renders by itself.

    Attributes:
      quarantine: file for unusable rows.
      benchmark: whose rows they are.
    """

    rows: RowOptions
    graded: GradedOptions = GradedOptions()
    quarantine: Path | None = None
    benchmark: str = "preference"

    @cached_property
    def _given(self) -> RowOptions:
        """The rows with the benchmark's own converter, if it has one."""
        converter = find_benchmark(self.benchmark).converter
        return self.rows if converter is None else dataclasses.replace(self.rows, converter=converter)

    @cached_property
    def key(self) -> str:
        return data_key("preference", self._given, self.graded)

    def read(self) -> tuple[Sequence[Example], Funnel]:
        """Raises ValueError for rows that are not the benchmark's."""
        examples, funnel = read_data(self._given, "preference", self.quarantine, self.graded,
                                     to_judge=find_benchmark(self.benchmark).row is not None)
        check_subsets(self.benchmark, examples)
        return examples, funnel


@dataclasses.dataclass(frozen=True)
class TrainingRows:
    """Rows that a scorer was trained on, of which the prompts alone are looked at."""

    rows: RowOptions

    @cached_property
    def key(self) -> str:
        return data_key("prompt", self.rows, GradedOptions())

    def asked_by(self, examples: Sequence[Example]) -> Contamination:
        """Which of their prompts stand in the evaluated rows too."""
        questions = [Question("the evaluated rows", number, plain_text(example.prompt))
                     for number, example in enumerate(examples, start=1)]
        index = question_index(questions, [user_turns(example.prompt) for example in examples])
        return contaminated((example.prompt for example in read_data(self.rows, "prompt")[0]), index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Accuracy, likelihood and calibration of a scorer, and the numbers of a benchmark.

    Attributes:
      seed: of the bootstrap.
      tie_rule: what an equal score counts; None for what the benchmark's authors do.
      model: what the benchmark's own file calls the scorer; no input.
      trained_on: what the scorer was trained on, where that is to be looked at.
    """

    scorer: Scorer
    data: PreferenceRows
    seed: int = 0
    tie_rule: TieRule | None = None
    model: str = ""
    trained_on: TrainingRows | None = None

    def inputs(self) -> dict[str, Any]:
        idle = {"model", *(["trained_on"] if self.trained_on is None else [])}
        return {name: value for name, value in super().inputs().items() if name not in idle}

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=self.data.read()[1])

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        examples, funnel = self.data.read()
        context.run.announce(str(funnel))
        known = self._contamination(examples, context)
        name = self.data.benchmark
        report, verdicts = evaluate_scorer(self.scorer, examples, funnel, self.seed, name, self.tie_rule)
        rows = rows_of(verdicts)
        for sentence in (*missing_sentences(name, rows),
                         *incomplete_sentences(name, report.incomplete, report.failures)):
            context.run.announce(sentence)
        if is_main_process():
            write_jsonl_atomic(folder / ROWS, [verdict.to_json() for verdict in verdicts])
            write_metrics(folder, name, report.numbers(), self.tie_rule)
            write_official(folder, name, rows, self.tie_rule, self.model)
        return {**report.to_json(), **known}

    def _contamination(self, examples: Sequence[Example], context: Context) -> dict[str, Any]:
        """What the report says of training rows that are asked here too, which is announced."""
        if self.trained_on is None:
            return {}
        found = self.trained_on.asked_by(examples)
        context.run.announce(found.warning or f"none of {found.prompts:,} prompts of the training rows is asked here")
        return {"trained_on": {"prompts": found.prompts, "asked_here": found.found}}


@dataclasses.dataclass(frozen=True)
class PairVerdict:
    """What a scorer says of one pair. prompt: equal for rows that ask the same. scores: of chosen and rejected, or
    P(chosen is better), also where the chosen is shown first and second; empty where it failed."""

    prompt_id: str
    prompt: str
    pair: tuple[int, int]
    scores: Mapping[str, float]
    subset: Any = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.prompt_id, "prompt_hash": fingerprint(self.prompt)[:16], "subset": self.subset,
                "pair": self.pair, "scores": self.scores, "result": self.result}

    @property
    def gap(self) -> float | None:
        """By how much the chosen response is preferred; None where the scorer failed."""
        if not self.scores:
            return None
        return self.scores["p"] - 0.5 if "p" in self.scores else self.scores["chosen"] - self.scores["rejected"]

    @property
    def result(self) -> float | None:
        """1 for the chosen, 0 for the rejected, a half for a tie; None where the scorer failed."""
        return None if self.gap is None else 0.5 if self.gap == 0 else float(self.gap > 0)


def verdicts_on(scorer: Scorer, examples: Sequence[Example]) -> list[PairVerdict]:
    """The scorer's verdict on every pair, in order."""
    groups = [as_text(example) for example in examples]
    pairs = [(g, chosen, rejected) for g in groups for chosen, rejected in g.pairs]
    scores: list[Mapping[str, float]]
    if isinstance(scorer, Comparing):
        games = [(g.prompt, g.responses[c].text, g.responses[r].text) for g, c, r in pairs]
        scores = _compared(scorer, games)
    else:
        by_group = map_over_processes(groups, scorer.score)
        sides = [(v[c], v[r]) for g, v in zip(groups, by_group, strict=True) for c, r in g.pairs]
        scores = [{} if c is None or r is None else {**named("chosen", c), **named("rejected", r)} for c, r in sides]
    scorer.release()
    return [PairVerdict(g.prompt_id, prompt_name(g), (c, r), s, g.extra.get("subset"))
            for (g, c, r), s in zip(pairs, scores, strict=True)]


def _compared(scorer: Comparing, games: Sequence[tuple[Text, Text, Text]]) -> list[Mapping[str, float]]:
    """What a scorer that compares says of each game, in both orders where it is asked in both."""
    if not isinstance(scorer, InBothOrders):
        return [{} if p is None else {"p": p} for p in map_over_processes(games, scorer.compare)]
    return [{} if both is None else {"p": scorer.joined(both), **({} if any(map(math.isnan, both)) else {
        FIRST: both[0], SECOND: both[1]})} for both in map_over_processes(games, scorer.orders)]


def rows_of(verdicts: Sequence[PairVerdict]) -> list[JudgedRow]:
    """The rows that the verdicts are on, in order, each with all its pairs."""
    rows: dict[str, list[PairVerdict]] = {}
    for verdict in verdicts:
        rows.setdefault(verdict.prompt_id, []).append(verdict)
    return [JudgedRow(name, found[0].prompt, str(found[0].subset or ""), tuple(v.pair for v in found),
                      tuple(v.gap for v in found),
                      {place: v.scores[side] for v in found for place, side in zip(v.pair, SIDES, strict=True)
                       if side in v.scores}) for name, found in rows.items()]


def evaluate_scorer(scorer: Scorer, examples: Sequence[Example], funnel: Funnel, seed: int,
                    benchmark: str = "preference", tie_rule: TieRule | None = None
                    ) -> tuple[ScorerReport, list[PairVerdict]]:
    """Accuracy, likelihood and calibration of a scorer on held-out preference pairs, intervals by prompt.

    Returns:
      What it came to, the numbers of the benchmark included, and the verdict on every pair.

    Raises:
      ValueError: no pair could be judged.
    """
    before = Counter(scorer.failures)
    verdicts = verdicts_on(scorer, examples)
    failures = gather_counts(scorer.failures - before)
    judged = [verdict for verdict in verdicts if verdict.scores]
    if not judged:
        raise ValueError(f"none of the {len(verdicts)} pairs could be judged; responses or comparisons failed for "
                         f"these reasons: {failures}. Raise scorer.max_length, or see what is unlike the scorer's own "
                         "data")
    found = find_benchmark(benchmark)
    settings: dict[str, Any] = {"clusters": [verdict.prompt for verdict in judged], "seed": seed,
                                "tie_rule": tie_rule or found.tie_rule}
    if isinstance(scorer, Comparing):
        report = preference_accuracy(probabilities=[v.scores["p"] for v in judged], **settings)
    else:
        report = preference_accuracy([log_odds(scorer, v.scores["chosen"]) - log_odds(scorer, v.scores["rejected"])
                                      for v in judged], **settings)
    reason = next(iter(failures)) if len(failures) == 1 else "not_judged"
    lost = len(examples) - len({verdict.prompt_id for verdict in judged})
    funnel = funnel.merged(Funnel(dropped=+Counter({reason: lost})))
    rows = rows_of(verdicts)
    numbers = measured_rows(found, rows, tie_rule, seed)
    fallen = incomplete(found, rows, tie_rule)
    if (whole := Coverage(sum(row.judged for row in rows), len(rows))).judged < whole.of:
        fallen = {**dict.fromkeys(report.estimates, whole), **fallen}
    if decided := [v for v in judged if FIRST in v.scores]:
        orders = [(v.scores[FIRST], v.scores[SECOND]) for v in decided]
        numbers = {**numbers, **position_bias(orders, [v.prompt for v in decided], seed)}
    return ScorerReport(report, len(verdicts), failures, funnel, numbers, fallen), verdicts
