"""The stages of a chat benchmark: official answers from samples, judgements, scores."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.data.benchmark_files import Answer
from rlhf_jax.parallel import gather_counts, is_main_process
from rlhf_jax.remote import LOST, RemoteError
from rlhf_jax.scoring import answer_text
from rlhf_jax.workflow.chat_benchmarks import ChatBenchmark, Judge, OfficialJudge, write_rows
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import METRICS
from rlhf_jax.workflow.stage import Stage, check_made, hash_path, write_json_atomic
from rlhf_jax.workflow.stages.shards import ShardFolder


@dataclasses.dataclass(frozen=True)
class OfficialFile:
    """A file in a benchmark's official layout. stage_key: of the stage that wrote it, if one of this run did."""

    path: Path
    stage_key: str | None = None

    @cached_property
    def key(self) -> str:
        return self.stage_key or hash_path(self.path)

    def checked(self) -> Path:
        """The path; DamagedProduct where it is no longer what a stage made."""
        check_made(self.path)
        return self.path


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersStage(Stage):
    """The official file of a model's answers, from the samples of each turn."""

    benchmark: ChatBenchmark
    turns: tuple[tuple[ShardFolder, ...], ...]
    model: str

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        texts: dict[str, list[str]] = {}
        for sources in self.turns:
            for group in (group for source in sources for group in source.groups()):
                texts.setdefault(group.extra["uid"], []).append(answer_text(group.responses[0].text))
        answers = {uid: Answer(tuple(said)) for uid, said in texts.items()}
        if is_main_process():
            rows = self.benchmark.answer_rows(answers, self.model)
            write_rows(folder / self.benchmark.answers_name(self.model), rows)
        lengths = [len(said) for answer in answers.values() for said in answer.turns]
        return {"answers": len(lengths), "mean_characters": sum(lengths) / len(lengths),
                "empty": sum(length == 0 for length in lengths)}

@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgementStage(Stage):
    """What a judge says of a model's answers, in the official file.

    accept_missing: also where a question got no reply because the server failed.
    """

    benchmark: ChatBenchmark
    outputs: OfficialFile
    model: str
    judge: Judge
    accept_missing: bool = False

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        judge, before = self.judge, Counter(self.judge.failures)
        if isinstance(judge, OfficialJudge):
            judge = dataclasses.replace(judge, progress=context.progress)
        answers = self.benchmark.read_answers(self.outputs.checked())
        judged = self.benchmark.judge(answers, self.model, judge)
        failures = gather_counts(self.judge.failures - before)
        lost = {reason: count for reason, count in failures.items() if reason in LOST}
        if lost and not self.accept_missing:
            words = judge.client.words if isinstance(judge, OfficialJudge) else {}
            told = "".join(f"; the server {words[reason]}" for reason in lost if reason in words)
            raise RemoteError(f"{sum(lost.values())} questions got no reply from the judge ({lost}{told}), and "
                              "judgements without them would lack them for good. The replies so far are kept: give the "
                              "same command again to ask these alone, or accept_missing: true to do without")
        if is_main_process():
            write_rows(folder / self.benchmark.annotations_name(self.model, self.judge.name), judged.rows)
        return {**judged.report, "failures": failures}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkScoreStage(Stage):
    """The benchmark's figures: `metrics.json`, and `leaderboard.csv` where there is an official one.

    outputs: the model's answers, for figures that need more than the judgements. chosen: whose judgements are scored,
    of a file that holds those of several models.
    """

    benchmark: ChatBenchmark
    annotations: OfficialFile
    outputs: OfficialFile | None
    model: str
    seed: int
    chosen: str | None = None

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        answers = None if self.outputs is None else self.benchmark.read_answers(self.outputs.checked())
        found = self.benchmark.score(self.annotations.checked(), answers, self.seed, self.chosen)
        if is_main_process():
            write_json_atomic(folder / METRICS, found)
            if "win_rate" in found:
                (folder / "leaderboard.csv").write_text(leaderboard(self.model, found))
        return found


LEADERBOARD = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode",
               "avg_length", "length_controlled_winrate", "lc_standard_error")
"""Columns of AlpacaEval's leaderboard.csv."""


def leaderboard(model: str, found: Mapping[str, Any]) -> str:
    """A model's row of AlpacaEval's leaderboard.csv, with its header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["", *LEADERBOARD])
    writer.writerow([model, *({"mode": "community", **found}.get(name) for name in LEADERBOARD)])
    return out.getvalue()
