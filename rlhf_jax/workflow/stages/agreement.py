"""Judges held against each other and against the labels of the pairs, from what `evaluate` wrote of each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.jsonl import SourceError, read_jsonl
from rlhf_jax.evaluation.agreement import agreement
from rlhf_jax.evaluation.paired import compare_all
from rlhf_jax.parallel import is_main_process
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import METRICS, ROWS
from rlhf_jax.workflow.stage import Stage, hash_path, write_json_atomic

LABELS = "labels"
"""What the pairs' own labels are called: people's, where people chose."""
Pair = tuple[str, tuple[int, int]]


class GivenVerdict(NamedTuple):
    """result: 1 for the chosen answer, 0 for the other, a half for a tie. prompt: equal for rows that ask the same."""

    result: float
    prompt: str


@dataclasses.dataclass(frozen=True)
class JudgeVerdicts:
    """A judge's verdicts: the output folder of `evaluate`, or a file of such rows (id, pair, result, prompt_hash)."""

    path: Path

    @property
    def file(self) -> Path:
        return self.path / ROWS if self.path.is_dir() else self.path

    @cached_property
    def key(self) -> str:
        return hash_path(self.file)

    @cached_property
    def by_pair(self) -> Mapping[Pair, GivenVerdict]:
        """(id, pair) -> its verdict, without what was not judged. A row that says nothing of its prompt has its own.

        Raises:
          SourceError: the file is not there, or a row is none that `evaluate` writes.
        """
        if not self.file.is_file():
            raise SourceError(f"there is no {self.file}; give output folders of `rlhf-jax evaluate`, or files of rows "
                              "with id, pair and result")
        found = {}
        for number, row in enumerate(read_jsonl(self.file), start=1):
            try:
                first, second = row.get("pair", (0, 1))
                name = str(row["id"]), (int(first), int(second))
                if row["result"] is not None:
                    found[name] = GivenVerdict(float(row["result"]), str(row.get("prompt_hash", row["id"])))
            except (KeyError, TypeError, ValueError) as error:
                raise SourceError(f"{self.file}, row {number}: a verdict has id, pair and result "
                                  f"({type(error).__name__}: {error})") from error
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementStage(Stage):
    """Agreement and kappa of every two judges, and of each judge with the labels, on the pairs that all judged; and by
    how much each judge meets the labels more often than another."""

    judges: tuple[JudgeVerdicts, ...]
    seed: int = 0

    @cached_property
    def pairs(self) -> list[Pair]:
        """What all judges gave a verdict on, in the order of the first.

        Raises:
          ValueError: there is no such pair.
        """
        found = [pair for pair in self.judges[0].by_pair if all(pair in judge.by_pair for judge in self.judges)]
        if not found:
            raise ValueError("no pair was judged by all: their rows have other ids. Evaluate the judges on the same "
                             "dataset_name")
        return found

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(funnel=Funnel(read=len(self.pairs)))

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        names = [str(judge.path) for judge in self.judges]
        given = {name: [judge.by_pair[pair].result for pair in self.pairs]
                 for name, judge in zip(names, self.judges, strict=True)}
        prompts = [self.judges[0].by_pair[pair].prompt for pair in self.pairs]
        ahead = [{"first": a, "second": b, **found.to_json()}
                 for (a, b), found in compare_all(given, prompts, self.seed).items()]
        given[LABELS] = [1.0] * len(self.pairs)
        found = [{"first": a, "second": b, **{name: estimate.to_json() for name, estimate in agreement(
            given[a], given[b], prompts, self.seed).items()}} for a, b in itertools.combinations(given, 2)]
        report = {"pairs": len(self.pairs), "judged": {name: len(judge.by_pair) for name, judge in zip(
            names, self.judges, strict=True)}, "agreements": found, "comparisons": ahead}
        if is_main_process():
            write_json_atomic(folder / METRICS, report)
        return report
