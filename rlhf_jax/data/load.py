"""Rows of sources as examples, read one by one: every one that is left out is counted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.bad_row import BadRow, PromptAlone
from rlhf_jax.data.context_columns import SYSTEM_COLUMNS
from rlhf_jax.data.converters import CONVERTERS, Converter, find_converter
from rlhf_jax.data.funnel import Funnel, Quarantine
from rlhf_jax.data.json_values import check_depth, writable
from rlhf_jax.data.on_disk import OnDisk, Seen
from rlhf_jax.data.rows import Example, Kind, ParseOptions, canonical_prompt, parse_row
from rlhf_jax.data.sources import SourceRow, locate_rows
from rlhf_jax.data.turns import as_text

SELECTED_OUT = ("no_pair", "equal_ratings", "small_score_ratio", "beyond_max_pairs", "labels_disagree")
"""Reasons that tell of a choice, not of a fault: sound rows that a rule leaves out. They spend no budget."""
UNREADABLE = ("missing_column", "missing_score", "not_messages", "not_for_this_converter", "no_responses",
              "implicit_prompt_needs_messages", "prompt_ends_with_assistant")
"""Reasons that tell of another layout than the one that was expected."""

Row = Mapping[str, Any]
Located = tuple[SourceRow, Row | BadRow]
"""Where a row stood, and what a converter made of it."""


def load_examples(
    sources: str | Sequence[str],
    kind: Kind,
    *,
    split: str | None = None,
    name: str | None = None,
    header: Sequence[str] | None = None,
    converter: str | Converter | Callable[[Row], Row | list[Row]] | None = None,
    converter_options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    options: ParseOptions | None = None,
    max_bad_rows: int | float = 0.02,
    quarantine_path: str | Path | None = None,
    drop_duplicate_prompts: bool = False,
    max_samples: int | None = None,
) -> tuple[Sequence[Example], Funnel]:
    """Reads, converts and validates the rows of one or several sources, in order.

    Prompt ids come out unique, because random keys are derived from them: the second row of id `x` becomes `x#1`. The
    examples lie on disk (see `OnDisk`), however many there are.

    Args:
      sources, split, name, header: see `sources.read_rows`.
      kind, options: see `rows.parse_row`.
      converter: a name in CONVERTERS, "module:function", or a function from a foreign row to one row or a list of rows.
        One with `join_by_prompt` reads all rows before the first comes out.
      converter_options: of the converter that is named, other values than those of the table.
      columns: name of a column as it is wanted -> what it is called in the rows; before the converter.
      max_bad_rows: budget of unusable rows, a number (int) or a share (float).
      quarantine_path: JSONL file for the unusable rows, with their row numbers; written also when there are none.
      drop_duplicate_prompts: keep the first row of each prompt (same text up to white space), and all without one.
      max_samples: so many examples at most; rows behind them are not read.

    Raises:
      SourceError: a source is missing or unreadable.
      TooManyBadRows: the budget is exceeded.
      ValueError: no row was kept, or no such kind or converter.
    """
    convert = _converter(converter, converter_options or {})
    quarantine = Quarantine(quarantine_path, max_bad_rows)
    funnel = Funnel(quarantine=quarantine)
    rows: Iterator[Located] = (
        (where, row) for source in ([sources] if isinstance(sources, str) else sources)
        for where in locate_rows(source, split=split, name=name, header=header)
        for row in _converted(where, columns or {}, convert))
    rows = rows if convert is None or convert.join_by_prompt is None else _joined(rows, convert)
    used = _used(rows, kind, options, funnel, Seen() if drop_duplicate_prompts else None)
    examples = OnDisk(unique_prompt_ids(itertools.islice(used, max_samples), funnel))
    cut = len(examples) == max_samples and next(rows, None) is not None
    quarantine.close(funnel.read, cut=cut)
    if not examples:
        raise ValueError(f"no row of {sources!r} can be used as {kind} data:\n{funnel}\n{quarantine.hint}".rstrip())
    return examples, funnel


def _used(rows: Iterable[Located], kind: Kind, options: ParseOptions | None, funnel: Funnel, prompts: Seen | None
          ) -> Iterator[Example]:
    """The examples of rows that can be used; `funnel` counts all. prompts: that came before, None for all to stay."""
    quarantine = funnel.quarantine
    assert quarantine is not None
    for where, row in rows:
        funnel.read += 1
        example = _parsed(row, kind, options)
        if isinstance(example, BadRow):
            if example.reason in SELECTED_OUT:
                funnel.dropped[example.reason] += 1
                continue
            if not quarantine.hint and example.reason in UNREADABLE and isinstance(where.row, Mapping):
                quarantine.hint = _fitting(where.row, kind, options)
            funnel.refuse(where, example)
            continue
        if prompts is not None and example.prompt and not prompts.add(canonical_prompt(example.prompt)):
            funnel.dropped["duplicate_prompt"] += 1
            continue
        funnel.notes.update(example.notes)
        yield dataclasses.replace(example, origin=_plain(where))


def _converter(converter: str | Converter | Callable[[Row], Row | list[Row]] | None,
               options: Mapping[str, Any]) -> Converter | None:
    if isinstance(converter, str):
        return find_converter(converter, options)
    if options:
        raise ValueError("converter_options has no effect without the name of a converter; give both, or leave it out")
    return converter if converter is None or isinstance(converter, Converter) else Converter(converter)


def _converted(where: SourceRow, columns: Mapping[str, str], convert: Converter | None) -> Sequence[Row | BadRow]:
    if isinstance(where.row, BadRow):
        return [where.row]
    try:
        check_depth(where.row)
        row = _mapped(where.row, columns)
        made: Any = row if convert is None else convert(row)
    except BadRow as error:
        return [error]
    except KeyError as error:
        return [BadRow("missing_column", f"the converter needs the column {error}; the row has "
                                         f"{', '.join(map(str, where.row))}")]
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        return [BadRow("not_for_this_converter", f"the converter cannot read this row ({type(error).__name__}: {error})"
                                                 "; a column holds another kind of value than it expects")]
    several = isinstance(made, Iterable) and not isinstance(made, Mapping | str)
    rows = list(made) if several else [] if made is None else [made]
    if odd := [row for row in rows if not isinstance(row, Mapping | BadRow)]:
        return [BadRow("converter_gave_no_row", f"the converter made a {type(odd[0]).__name__} of this row, no row of "
                                                "columns")]
    return rows or [BadRow("converter_gave_nothing", "the converter made no row of this one")]


def _mapped(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under the names that are wanted."""
    for ours, theirs in columns.items():
        if theirs not in row:
            turned = f". Our name comes first: --columns.{theirs} {ours}" if ours in row else ""
            raise BadRow("missing_column", f"columns names {theirs!r}, which the row does not have; it has "
                                           f"{', '.join(map(str, row))}{turned}")
    return {**{name: value for name, value in row.items() if name not in columns.values()},
            **{ours: row[theirs] for ours, theirs in columns.items()}} if columns else row


def _joined(rows: Iterable[Located], converter: Converter) -> Iterator[Located]:
    """What stands for the rows of each prompt (the same up to white space, system message included), where the first
    of them stood.

    Bad rows, and rows whose prompt is empty or no text, stay as they are.
    """
    located = OnDisk((_plain(where), row) for where, row in rows)
    groups: dict[bytes, list[int]] = {}
    for number, (_, row) in enumerate(located):
        name = json.dumps(_prompt_name(row) or [number])
        groups.setdefault(hashlib.sha256(name.encode()).digest(), []).append(number)
    for numbers in groups.values():
        some = [located[number] for number in numbers]
        places, found = [where for where, _ in some], [row for _, row in some if not isinstance(row, BadRow)]
        yield from some if len(found) < len(some) else zip(places, converter.join(found), strict=False)


def _plain(where: SourceRow) -> SourceRow:
    """The row as the quarantine file has it, so that it can be kept whatever objects it held."""
    return dataclasses.replace(where, row=writable(where.row, exact=True)) if isinstance(where.row, Mapping) else where


def _prompt_name(row: Row | BadRow) -> tuple[str, ...] | None:
    """What the rows of one prompt have in common; None for a row that is joined to no other."""
    try:
        prompt = None if isinstance(row, BadRow) else canonical_prompt(as_text(row["prompt"], "prompt"))
    except BadRow:
        return None
    return (prompt, *(str(row.get(column)) for column in SYSTEM_COLUMNS)) if prompt and isinstance(row, Mapping) else (
        None)


def _parsed(row: Row | BadRow, kind: Kind, options: ParseOptions | None) -> Example | BadRow:
    row = row.row if isinstance(row, PromptAlone) and kind == "prompt" else row
    if isinstance(row, BadRow):
        return row
    try:
        return parse_row(row, kind, options)
    except BadRow as error:
        return error


def _fitting(row: Row, kind: Kind, options: ParseOptions | None) -> str:
    """Which converters read a row that could not be read, as a sentence; nothing where none does."""
    where = SourceRow("", 0, row)

    def fit(options: ParseOptions | None) -> list[str]:
        return [name for name, converter in CONVERTERS.items() if all(
            not isinstance(example, BadRow) or example.reason in SELECTED_OUT
            for example in (_parsed(made, kind, options) for made in _converted(where, {}, converter)))]

    if names := fit(options):
        return f"Rows like the first one can be read with converter: {' or '.join(names)}. "
    if kind == "prompt" and (options is None or options.prompts_from is None):
        within = dataclasses.replace(options or ParseOptions(), prompts_from="first_user")
        if not isinstance(_parsed(row, kind, within), BadRow):
            return "Rows like the first one hold whole conversations: set prompts_from. "
        if names := fit(within):
            return f"Rows like the first one can be read with prompts_from and converter: {' or '.join(names)}. "
    return ""


def unique_prompt_ids(examples: Iterable[Example], funnel: Funnel | None = None) -> Iterator[Example]:
    """The examples with `#1`, `#2` ... after prompt ids that came before, so that none occurs twice."""
    taken = Seen()
    repeats: Counter[str] = Counter()
    for example in examples:
        prompt_id = example.prompt_id
        while not taken.add(prompt_id):
            repeats[example.prompt_id] += 1
            prompt_id = f"{example.prompt_id}#{repeats[example.prompt_id]}"
        if prompt_id != example.prompt_id and funnel is not None:
            funnel.notes["renamed_prompt_id"] += 1
        yield example if prompt_id == example.prompt_id else dataclasses.replace(example, prompt_id=prompt_id)
