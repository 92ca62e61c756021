"""Prompts that a benchmark asks too: those that share 13 words in a row with one of its questions.

The run of 13 words is that of GPT-3 (Brown et al., arXiv 2005.14165, appendix C). A first turn that is shorter counts
as one run, and is then found where both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.groups import Text
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.data.prompt_text import plain_text, user_turns
from rlhf_jax.data.sources import locate_rows

WORDS = 13
QUESTION_COLUMNS = ("prompt", "instruction", "question", "turns", "text", "input", "problem")
"""Where benchmarks keep their questions, in the order they are looked for."""
_WORD = re.compile(r"\w+")


class Question(NamedTuple):
    """A row of a benchmark: its file, its row number and its first turn."""

    benchmark: str
    row_number: int
    text: str


def word_runs(turns: Sequence[str]) -> Iterator[str]:
    """The runs of 13 words of each turn, in lower case; of a shorter first turn the whole."""
    for number, turn in enumerate(turns):
        words = _WORD.findall(turn.lower())
        if len(words) < WORDS and number == 0 and words:
            yield " ".join(words)
        for start in range(len(words) - WORDS + 1):
            yield " ".join(words[start : start + WORDS])


class Contamination(NamedTuple):
    """How many prompts were looked at, how many of them a benchmark asks too, and the first such question."""

    prompts: int
    found: int
    first: Question | None = None

    @property
    def warning(self) -> str:
        """A sentence; empty where no prompt was found."""
        if self.first is None:
            return ""
        return (f"warning: {self.found:,} of {self.prompts:,} prompts are asked by a benchmark too (13 words in a row),"
                f" first {self.first.text[:80]!r} ({self.first.benchmark}, row {self.first.row_number}); its numbers "
                "flatter a model that was trained on them. `rlhf-jax data --benchmarks` leaves such rows out")


def contaminated(prompts: Iterable[Text], index: Mapping[str, Question]) -> Contamination:
    """Looks for the questions of an index in all prompts, which are none the fewer for it."""
    looked_at = found = 0
    first = None
    for prompt in prompts:
        hit = contamination(user_turns(prompt), index)
        looked_at, found = looked_at + 1, found + (hit is not None)
        first = hit[1] if first is None and hit is not None else first
    return Contamination(looked_at, found, first)


def question_index(questions: Iterable[Question], turns: Iterable[Sequence[str]]) -> dict[str, Question]:
    """Run of words -> the first question that it stands in. turns: of each question."""
    index: dict[str, Question] = {}
    for question, said in zip(questions, turns, strict=True):
        for run in word_runs(said):
            index.setdefault(run, question)
    return index


def benchmark_index(sources: Iterable[str]) -> dict[str, Question]:
    """Run of words -> the first question that it stands in.

    Raises:
      SourceError: a source is missing, or a row of it has no question that could be found.
    """
    questions, turns = [], []
    for source in sources:
        for located in locate_rows(source):
            turns.append(_turns(located.row, f"{located.source}, row {located.number}"))
            questions.append(Question(located.source, located.number, turns[-1][0]))
    return question_index(questions, turns)


def _turns(row: Mapping[str, Any] | BadRow, where: str) -> list[str]:
    """The turns of the question in a row."""
    if isinstance(row, BadRow):
        raise SourceError(f"{where}: {row.message}")
    for column in QUESTION_COLUMNS:
        if row.get(column):
            turns = row[column] if isinstance(row[column], list) else [row[column]]
            texts = [turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else turn for turn in turns]
            if all(isinstance(text, str) for text in texts):
                return [plain_text(text) for text in texts]
    raise SourceError(f"{where} holds no question of a benchmark: it has the columns {', '.join(row)}, and none of "
                      f"{', '.join(QUESTION_COLUMNS)} with text; rename the column")


def contamination(turns: Sequence[str], index: Mapping[str, Question]) -> tuple[str, Question] | None:
    """The first run of words that a benchmark shares with these user turns, and its question."""
    return next(((run, index[run]) for run in word_runs(turns) if run in index), None)
