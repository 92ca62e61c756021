"""The data funnel: how many rows were read, were valid and were kept, and where each of the others went.

Silent loss of rows is the commonest root of spoiled runs. Nothing leaves the data
path here without a reason and a count, and rows that cannot be used lie in a quarantine file with their row number.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.context_columns import SYSTEM_COLUMNS
from rlhf_jax.data.converters import CONVERTERS, ONE_ANSWER_A_ROW
from rlhf_jax.data.example import NotedRow
from rlhf_jax.data.json_values import check_depth, writable
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.rows import BadRow, Example, Kind, ParseOptions, canonical_prompt, parse_row
from rlhf_jax.data.sources import SourceRow, locate_rows
from rlhf_jax.plugins import is_plugin, load_function

SELECTED_OUT = ("no_pair",)
"""Reasons that tell of a choice, not of a fault: sound rows that the pair rule leaves out. They spend no budget."""

Located = tuple[SourceRow, Mapping[str, Any] | BadRow]
"""Where a row stood, and what a converter made of it."""
Converter = Callable[[Mapping[str, Any]], Mapping[str, Any] | list[Mapping[str, Any]]]


@dataclasses.dataclass
class Funnel:
    """Counts of rows: read -> valid -> kept.

    Attributes:
      read: rows read, after a converter has split or joined them.
      invalid: rows that could not be used, by reason; valid = read - invalid.
      dropped: valid rows left out on purpose (ties, duplicates, too long), by reason; kept = valid - dropped.
      notes: what was done to kept rows, by kind (truncations, renamed ids, responses left out, rows of one answer that
        were joined to an earlier one of their prompt); they change no sum.
      quarantine: where invalid rows are kept apart while they are read and rendered; no part of the counts.
    """

    read: int = 0
    invalid: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    quarantine: Quarantine | None = dataclasses.field(default=None, compare=False, repr=False)

    def refuse(self, where: SourceRow | None, error: BadRow) -> None:
        """Counts a row that cannot be used and puts it aside. Raises TooManyBadRows as `Quarantine.add`."""
        self.invalid[error.reason] += 1
        if self.quarantine is not None:
            self.quarantine.add(where or SourceRow("(no file)", self.read, error), error)

    @property
    def valid(self) -> int:
        return self.read - self.invalid.total()

    @property
    def kept(self) -> int:
        return self.valid - self.dropped.total()

    def merged(self, other: Funnel) -> Funnel:
        """The sum of two funnels over different rows, for example those of two hosts."""
        return Funnel(self.read + other.read, self.invalid + other.invalid, self.dropped + other.dropped,
                      self.notes + other.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain counts for a manifest or a metrics file; keys sorted."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("invalid", "dropped", "notes")}
        return {"read": self.read, "valid": self.valid, "kept": self.kept, **counts}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Funnel:
        invalid, dropped, notes = (Counter(row[name]) for name in ("invalid", "dropped", "notes"))
        return Funnel(row["read"], invalid, dropped, notes)

    def __str__(self) -> str:
        """A small table for the terminal and the run page."""
        lines = [f"rows read  {self.read:>9,}"]
        lines += [f"  invalid  {-count:>9,}  {reason}" for reason, count in self.invalid.most_common()]
        lines += [f"valid      {self.valid:>9,}"]
        lines += [f"  dropped  {-count:>9,}  {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"kept       {self.kept:>9,}"]
        lines += [f"  of these {count:>9,}  {note}" for note, count in self.notes.most_common()]
        return "\n".join(lines)


class TooManyBadRows(ValueError):
    """More rows are unusable than the budget `max_bad_rows` allows."""


@dataclasses.dataclass
class Quarantine:
    """Rows that could not be used, kept apart with row number, reason and message, within a budget.

    Attributes:
      path: JSONL file they go to when `close` is called; None keeps only the counts.
      max_bad_rows: an int is a number of rows, checked at each one; a float in [0, 1] is a share, checked at the end.
    """

    path: str | Path | None = None
    max_bad_rows: int | float = 0.02
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, where: SourceRow, error: BadRow) -> None:
        """Puts one row aside. Raises TooManyBadRows when a budget in rows is spent."""
        row = where.row if isinstance(where.row, Mapping) else None
        self.rows.append({"source": where.source, "row_number": where.number, "reason": error.reason,
                          "message": error.message, "row": writable(row, exact=True)})
        if isinstance(self.max_bad_rows, int) and len(self.rows) > self.max_bad_rows:
            self.close(read=None)

    def close(self, read: int | None) -> None:
        """Writes the file (also over one of an earlier run) and holds the share of bad rows against the budget.

        Args:
          read: number of rows read in all; None where reading stopped early.

        Raises:
          TooManyBadRows: the budget is exceeded; the first rows are shown.
        """
        if self.path is not None:
            write_jsonl_atomic(self.path, self.rows)
        if isinstance(self.max_bad_rows, int):
            exceeded, budget = len(self.rows) > self.max_bad_rows, f"{self.max_bad_rows} rows"
        else:
            exceeded, budget = len(self.rows) > self.max_bad_rows * (read or 0), f"{self.max_bad_rows:.2%} of the rows"
        if exceeded:
            first = "\n".join(f"  {r['source']}, row {r['row_number']}: {r['message']} [{r['reason']}]"
                              for r in self.rows[:3])
            where = f" All of them are in {self.path}." if self.path is not None else ""
            raise TooManyBadRows(
                f"{len(self.rows)} of {'the first' if read is None else read} rows cannot be used and max_bad_rows "
                f"allows {budget}. The first of them:\n{first}\nRepair the data, choose a converter, or raise "
                f"max_bad_rows.{where}")


def load_examples(
    sources: str | Sequence[str],
    kind: Kind,
    *,
    split: str | None = None,
    name: str | None = None,
    header: Sequence[str] | None = None,
    converter: str | Converter | None = None,
    options: ParseOptions | None = None,
    max_bad_rows: int | float = 0.02,
    quarantine_path: str | Path | None = None,
    drop_duplicate_prompts: bool = False,
) -> tuple[list[Example], Funnel]:
    """Reads, converts and validates all rows of one or several sources, in order.

    Prompt ids come out unique, because random keys are derived from them: the second row of id `x` becomes `x#1`.

    Args:
      sources, split, name, header: see `sources.read_rows`.
      kind, options: see `rows.parse_row`.
      converter: a name in CONVERTERS, or a function from a foreign row to one row or a list of rows. Of those in
        ONE_ANSWER_A_ROW the rows of one prompt, wherever they stand, become one in the place of the first.
      max_bad_rows: budget of unusable rows, a number (int) or a share (float).
      quarantine_path: JSONL file for the unusable rows, with their row numbers; written also when there are none.
      drop_duplicate_prompts: keep the first row of each prompt (same text up to white space).

    Raises:
      SourceError: a source is missing or unreadable.
      TooManyBadRows: the budget is exceeded.
      ValueError: no row was kept, or no such kind or converter.
    """
    convert = _find_converter(converter)
    quarantine = Quarantine(quarantine_path, max_bad_rows)
    funnel = Funnel(quarantine=quarantine)
    examples: list[Example] = []
    prompts: set[str] = set()
    rows: Iterable[Located] = (
        (where, row) for source in ([sources] if isinstance(sources, str) else sources)
        for where in locate_rows(source, split=split, name=name, header=header) for row in _converted(where, convert))
    for where, row in _joined(rows) if isinstance(converter, str) and converter in ONE_ANSWER_A_ROW else rows:
        funnel.read += 1
        example = _parsed(row, kind, options)
        if isinstance(example, BadRow) and example.reason in SELECTED_OUT:
            funnel.dropped[example.reason] += 1
            continue
        if isinstance(example, BadRow):
            funnel.refuse(where, example)
            continue
        prompt = canonical_prompt(example.prompt)
        if drop_duplicate_prompts and prompt in prompts:
            funnel.dropped["duplicate_prompt"] += 1
            continue
        prompts.add(prompt)
        funnel.notes.update(example.notes)
        examples.append(dataclasses.replace(example, origin=where))
    quarantine.close(funnel.read)
    if not examples:
        raise ValueError(f"no row of {sources!r} can be used as {kind} data:\n{funnel}")
    return unique_prompt_ids(examples, funnel), funnel


def _find_converter(converter: str | Converter | None) -> Converter | None:
    if isinstance(converter, str):
        if is_plugin(converter):
            return load_function(converter)
        if converter not in CONVERTERS:
            raise ValueError(f"there is no converter {converter!r}; known ones are {', '.join(sorted(CONVERTERS))}, or "
                             "module:function")
        return CONVERTERS[converter]
    return converter


def _converted(where: SourceRow, convert: Converter | None) -> Sequence[Mapping[str, Any] | BadRow]:
    if isinstance(where.row, BadRow):
        return [where.row]
    try:
        check_depth(where.row)
        rows = where.row if convert is None else convert(where.row)
    except BadRow as error:
        return [error]
    except KeyError as error:
        return [BadRow("missing_column", f"the converter needs the column {error}; the row has "
                                         f"{', '.join(map(str, where.row))}")]
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        return [BadRow("not_for_this_converter", f"the converter cannot read this row ({type(error).__name__}: {error})"
                                                 "; a column holds another kind of value than it expects")]
    rows = [rows] if isinstance(rows, Mapping) else rows
    return rows or [BadRow("converter_gave_nothing", "the converter made no row of this one")]


def _joined(rows: Iterable[Located]) -> list[Located]:
    """The rows of each prompt (the same up to white space, system message included) as one in the place of the first.

    Bad rows, and rows whose prompt is empty or no text, stay as they are.
    """
    out: list[Located] = []
    found: dict[tuple[str, ...], NotedRow] = {}
    for where, row in rows:
        prompt = "" if isinstance(row, BadRow) else row["prompt"]
        if isinstance(row, BadRow) or not isinstance(prompt, str) or not prompt.strip():
            out.append((where, row))
            continue
        name = (canonical_prompt(prompt), *(str(row.get(column)) for column in SYSTEM_COLUMNS))
        if name in found:
            found[name]["responses"] += row["responses"]
            found[name].notes["joined_rows"] = found[name].notes.get("joined_rows", 0) + 1
        else:
            found[name] = NotedRow({**row, "responses": list(row["responses"])})
            out.append((where, found[name]))
    return out


def _parsed(row: Mapping[str, Any] | BadRow, kind: Kind, options: ParseOptions | None) -> Example | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        return parse_row(row, kind, options)
    except BadRow as error:
        return error


def unique_prompt_ids(examples: Sequence[Example], funnel: Funnel | None = None) -> list[Example]:
    """The examples with `#1`, `#2` ... after prompt ids that came before, so that none occurs twice."""
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    unique = []
    for example in examples:
        prompt_id = example.prompt_id
        while prompt_id in taken:
            repeats[example.prompt_id] += 1
            prompt_id = f"{example.prompt_id}#{repeats[example.prompt_id]}"
        taken.add(prompt_id)
        unique.append(example if prompt_id == example.prompt_id else dataclasses.replace(example, prompt_id=prompt_id))
    if funnel is not None and repeats:
        funnel.notes["renamed_prompt_id"] += sum(a is not b for a, b in zip(examples, unique, strict=True))
    return unique
