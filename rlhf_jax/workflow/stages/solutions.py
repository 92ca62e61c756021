"""Evaluating scored solutions: votes among a problem's samples, and a process model's steps against their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.answers import find_rule
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.evaluation.step_accuracy import judged_solution, step_accuracy
from rlhf_jax.evaluation.voting import Ballot, ballot_of, voting
from rlhf_jax.parallel import is_main_process
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import METRICS, ROWS
from rlhf_jax.workflow.stage import Stage, write_json_atomic
from rlhf_jax.workflow.stages.shards import ShardFolder, counted


def check_scored(groups: Sequence[PromptGroup], score: str) -> None:
    """Raises ValueError if no response has a score of this name."""
    there = sorted({name for group in groups for response in group.responses for name in response.scores})
    if score not in there:
        raise ValueError(f"no response has the score {score!r}; there are {', '.join(there) or 'none'}. Name one of "
                         "them, or set score: null for votes alone")


def _write(folder: Path, rows: Iterable[Mapping[str, Any]], found: Any) -> None:
    if is_main_process():
        write_jsonl_atomic(folder / ROWS, rows)
        write_json_atomic(folder / METRICS, found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotingStage(Stage):
    """pass@n, majority@n and, with a score, weighted_majority@n and best_of@n.

    Attributes:
      score: its name in the shards; None for votes alone.
      answers: name of the answer rule. answer_column: of the references.
      max_n: samples of a prompt that take part; None for the most that one has.
      seed: of the bootstrap.
    """

    source: ShardFolder
    score: str | None
    answers: str
    answer_column: str
    max_n: int | None = None
    seed: int = 0

    def _ballots(self) -> tuple[Sequence[PromptGroup], list[Ballot | None]]:
        groups, rule = self.source.read(), find_rule(self.answers)
        if self.score is not None:
            check_scored(groups, self.score)
        return groups, [ballot_of(group, rule, self.answer_column, self.score) for group in groups]

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=Funnel(read=len(self._ballots()[0])))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        groups, ballots = self._ballots()
        found = voting(groups, ballots, self.max_n, self.seed).to_json()
        _write(folder, ({"id": group.prompt_id, "candidates": [] if b is None else b.candidates.tolist(),
                         "correct": [] if b is None else b.correct.tolist()}
                        for group, b in zip(groups, ballots, strict=True)), found)
        return {"voting": found}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepAccuracyStage(Stage):
    """A process model's numbers of labelled steps against the labels. score: its name. seed: of the bootstrap."""

    source: ShardFolder
    score: str
    seed: int = 0

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=counted(self.source))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        groups = self.source.read()
        check_scored(groups, self.score)
        judged = [(group.prompt_id, judged_solution(group, self.score)) for group in groups]
        solutions = [solution for _, solution in judged if solution is not None]
        numbers = {name: estimate.to_json() for name, estimate in step_accuracy(solutions, self.seed).items()}
        found = {"numbers": numbers, "solutions": len(solutions), "unscored": len(judged) - len(solutions)}
        _write(folder, ({"id": name, "first_error": s.first_error, "found": s.found, "right": s.right.tolist(),
                         "likely": s.likely.tolist()} for name, s in judged if s is not None), found)
        return {"step_accuracy": found}
