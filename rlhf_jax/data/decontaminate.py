"""Prompts that a benchmark asks too: those that share 13 words in a row with one of its questions.

The run of 13 words is that of GPT-3 (Brown et al., arXiv 2005.14165, appendix C). A first turn that is shorter counts
as one run, and is then found where both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.data.prompt_text import plain_text
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


def benchmark_index(sources: Iterable[str]) -> dict[str, Question]:
    """Run of words -> the first question that it stands in.

    Raises:
      SourceError: a source is missing, or a row of it has no question that could be found.
    """
    index: dict[str, Question] = {}
    for source in sources:
        for located in locate_rows(source):
            turns = _turns(located.row, f"{located.source}, row {located.number}")
            for run in word_runs(turns):
                index.setdefault(run, Question(located.source, located.number, turns[0]))
    return index


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
