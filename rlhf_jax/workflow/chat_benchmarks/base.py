"""What a chat benchmark is, and who judges its answers: a served model asked as the protocol says, or any scorer."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from rlhf_jax.data.benchmark_files import Answer, Question, Rows
from rlhf_jax.data.groups import Text, text_group
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.parallel import map_over_processes
from rlhf_jax.remote import Client, chat
from rlhf_jax.scoring import Comparing, Scorer, preference
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.workflow.stage import hash_path, write_json_atomic

T = TypeVar("T")
Answers = Mapping[str, Answer]
"""uid -> a model's answer."""


@dataclasses.dataclass(frozen=True)
class OfficialJudge:
    """A served model that is asked as the benchmark's protocol says. max_tokens: of a reply; None for the protocol's.

    key: stands for the model and what it is asked. progress: (answered, of how many) -> None.
    """

    client: Client
    model: str
    max_tokens: int | None
    key: str
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    progress: Callable[[int, int], None] = lambda done, total: None

    @property
    def name(self) -> str:
        return self.model

    def ask(self, conversations: Sequence[Sequence[Mapping[str, str]]], read: Callable[[Mapping[str, Any]], T],
            **settings: Any) -> list[T | None]:
        """What `read` makes of the reply to each conversation, each process asking its share; None without a reply."""
        def asked(some: Sequence[Any]) -> list[T | None]:
            questions, answered = [chat(self.model, messages, **settings) for messages in some], itertools.count()

            def one_more(count: int) -> None:
                done = max(next(answered) for _ in range(count)) + 1
                self.progress(done, len(questions))

            return self.client.ask(questions, read, self.failures, one_more)

        return map_over_processes(list(conversations), asked)


Judge = OfficialJudge | Scorer


class Judged(NamedTuple):
    """What a judge said. rows: of the official file. report: counts and shares, for the stage's record."""

    rows: Rows
    report: Mapping[str, Any]


class ChatBenchmark(Protocol):
    """A row of `CHAT_BENCHMARKS`, with the official files of one folder."""

    @property
    def key(self) -> str:
        """Changes when its questions, its baseline or its prompts do."""
        ...

    @property
    def questions(self) -> Sequence[Question]: ...

    @property
    def answer_tokens(self) -> int:
        """Which an answer may have, where the user says nothing else."""
        ...

    def temperature(self, question: Question) -> float | None:
        """At which a question is answered; None where the protocol leaves it open."""
        ...

    def check_judge(self, judge: Judge) -> None:
        """Raises ValueError for a judge that cannot judge it, SourceError where its files are missing."""
        ...

    def answers_name(self, model: str) -> str:
        """Of the official file of a model's answers."""
        ...

    def answer_rows(self, answers: Answers, model: str) -> Rows: ...

    def read_answers(self, path: Path) -> dict[str, Answer]:
        """Raises SourceError for what is no file of answers to these questions."""
        ...

    def annotations_name(self, model: str, judge: str) -> str:
        """Of the official file of what a judge said."""
        ...

    def judge(self, answers: Answers, model: str, judge: Judge) -> Judged:
        """Raises ValueError where the judge said nothing that can be read."""
        ...

    def score(self, annotations: Path, answers: Answers | None, seed: int, model: str | None = None) -> dict[str, Any]:
        """The benchmark's figures. answers: of the model, for figures that need more than the judgements. model: of
        which, where a file may hold judgements of several.

        Raises:
          SourceError: `annotations` is no file of judgements of these questions.
          ValueError: it holds nothing to score.
        """
        ...


def file_name(name: str) -> str:
    """A model's name as part of a file's."""
    return name.strip("/").replace("/", "_") or "model"


def write_rows(path: Path, rows: Rows) -> None:
    """JSON lines, or a JSON list where the name ends in .json; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json_atomic(path, rows)
    else:
        write_jsonl_atomic(path, rows)


def files_key(*files: Path | None) -> list[str | None]:
    """Hashes of files, None for one that is not there."""
    return [None if file is None else hash_path(file) for file in files]


def check_answered(found: Sequence[Any], judge: Judge, wanted: str, replies: Sequence[str] = ()) -> None:
    """Raises ValueError if a judge gave nothing that can be read, with the first reply."""
    if any(value is not None for value in found):
        return
    said = f"its first reply begins {replies[0][:200]!r}" if replies else f"failures: {dict(judge.failures)}"
    raise ValueError(f"the judge {judge.name!r} never answered in the format: {wanted} ({said}). So there is nothing "
                     "to score; use a judge that follows instructions, or look at its prompt")


def beats(scorer: Scorer, prompts: Sequence[Text], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
    """P(first better than second) of each prompt: the scorer's comparison, or what its scores come to."""
    if isinstance(scorer, Comparing):
        found = map_over_processes(list(zip(prompts, first, second, strict=True)), scorer.compare)
        scorer.release()
        return found
    groups = [text_group(str(i), prompt, [(text, {}) for text in pair])
              for i, (prompt, *pair) in enumerate(zip(prompts, first, second, strict=True))]
    scores = scores_in(map_over_processes(groups, scorer.score))
    scorer.release()
    return [preference(scorer, *pair) for pair in scores]


def user_turn(text: str) -> list[dict[str, Any]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]
