"""What a row of the table of converters holds, and what several converters share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow, PromptAlone
from rlhf_jax.data.example import NotedRow

Row = Mapping[str, Any]
Function = Callable[..., Row | list[Row]]
Join = Callable[..., Sequence[Row | BadRow]]


@dataclasses.dataclass(frozen=True)
class Converter:
    """A row of `CONVERTERS`.

    Attributes:
      function: a foreign row -> a row of ours, or a list of rows; options by keyword.
      join_by_prompt: the converted rows of one prompt, wherever they stood, in order -> what stands for them in the
        place of the first; options by keyword. None: rows stay as they are.
      options: name -> value here, of the keywords of both; a user may give others (`converter_options`).
    """

    function: Function
    join_by_prompt: Join | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, row: Row) -> Row | list[Row]:
        return self.function(row, **self._taken(self.function))

    def join(self, rows: Sequence[Row]) -> Sequence[Row | BadRow]:
        """What stands for the rows of one prompt."""
        return rows if self.join_by_prompt is None else self.join_by_prompt(rows, **self._taken(self.join_by_prompt))

    def with_options(self, name: str, given: Mapping[str, Any]) -> Converter:
        """This converter, called `name`, with other options.

        Raises:
          ValueError: it has no such option, or the value is of another type than the one in the table.
        """
        for option, value in given.items():
            if option not in self.options:
                has = f"it has {', '.join(self.options)}" if self.options else "it has none"
                raise ValueError(f"converter {name!r} has no option {option!r}; {has}")
            known = self.options[option]
            fits = isinstance(value, int | float) if isinstance(known, int | float) else isinstance(value, type(known))
            if not fits or isinstance(value, bool):
                raise ValueError(f"converter_options.{option} = {value!r}; give a value like {known!r}")
        return dataclasses.replace(self, options={**self.options, **given})

    def _taken(self, function: Callable[..., Any]) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name in _keywords(function)}


@functools.cache
def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def one_row_of_answers(rows: Sequence[Row]) -> list[Row]:
    """Graded rows of one prompt as one row with all their responses."""
    if len(rows) == 1:
        return list(rows)
    notes = {"joined_rows": len(rows) - 1}
    return [NotedRow({**rows[0], "responses": [answer for row in rows for answer in row["responses"]]}, **notes)]


def largest_margins(rows: Sequence[Row], *, max_pairs: int) -> list[Row | BadRow]:
    """The `max_pairs` pairs of one prompt with the largest margins; the others as left out."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["margin"])  # stable: of equal ones the first
    kept = set(order[:max_pairs])
    beyond = BadRow("beyond_max_pairs", f"the prompt has more than {max_pairs} pairs, and others differ by more")
    return [row if i in kept else beyond for i, row in enumerate(rows)]


def turns(question: str, answer: str | None = None) -> list[Row]:
    """A user's message, and the assistant's answer to it."""
    messages: list[Row] = [{"role": "user", "content": question}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def others(row: Row, *used: str) -> dict[str, Any]:
    """The columns that the converter does not turn into others: ids, system messages, tools, and what scorers read."""
    return {column: value for column, value in row.items() if column not in used}


def equal_ratings(ratings: Any, row: Row) -> PromptAlone:
    """A pair of which neither answer is the better one. row: with its prompt, as it would be made."""
    return PromptAlone("equal_ratings", f"both answers have the rating {ratings}; neither is preferred", row)
