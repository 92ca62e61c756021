"""One local file of rows, by its ending: JSON Lines, JSON, CSV, TSV, text, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.json_values import without_padding
from rlhf_jax.data.jsonl import SourceError, open_bytes, scan_jsonl

Row = Mapping[str, Any] | BadRow


def file_format(path: str | Path) -> str:
    """The ending that says how to read a file, without a closing .gz; empty when it is none of ours."""
    path = Path(Path(path).name.lower())
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    compressible = path.suffix != ".gz" or suffix not in (".parquet", ".arrow")
    return suffix if suffix in FILE_READERS and compressible else ""


def read_file(path: Path, header: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Row number (from 1; the line in files of lines) and row of one file; see `sources.read_rows`.

    Raises:
      SourceError: the ending is unknown, or the file is missing, cut off or not of its format.
    """
    suffix = file_format(path)
    if not suffix:
        raise SourceError(f"{path} has an unknown ending; known are {', '.join(FILE_READERS)}, text ones also .gz")
    if header is not None and suffix not in (".csv", ".tsv"):
        raise SourceError(f"header= names the columns of .csv and .tsv files; {path} is neither")
    try:
        yield from FILE_READERS[suffix](path, header)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise SourceError(f"cannot read {path}: {error}; the file is cut off, or not what its ending says") from error


def _jsonl(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    return scan_jsonl(path)


def _json(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    with open_bytes(path) as stream:
        text = stream.read().decode("utf-8-sig")
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise SourceError(f"{path} is not whole JSON ({error}); one object a line belongs in a .jsonl file") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} holds a number of too many digits, or values too deep inside one another ({error}); "
                          "in a .jsonl file such a row is left out by itself") from error
    if isinstance(content, dict):
        content = content.get("instances", content.get("data"))
    if not isinstance(content, list):
        raise SourceError(f"{path} must hold a JSON array of objects, or an object with the list 'instances' or 'data'")
    for number, row in enumerate(content, start=1):
        yield number, row if isinstance(row, dict) else BadRow(
            "not_an_object", f"entry {number} is {type(row).__name__}; each entry must be an object")


def _table(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    """CSV as RFC 4180 has it; in TSV a quotation mark is a character like any other."""
    csv.field_size_limit(sys.maxsize)
    tabs = file_format(path) == ".tsv"
    with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(stream, strict=True)
        rows = _table_rows(path, reader)
        columns = list(header) if header is not None else next(rows, [])
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise SourceError(f"{path} has two columns of the name {twice[0]!r}, of which only one could be read; "
                              "rename one")
        for cells in rows:
            if len(cells) == len(columns):
                row = dict(zip(columns, cells, strict=True))
                lists = [name for name in _TEXTS if _MESSAGES.match(row.get(name, ""))]
                yield reader.line_num, row if not lists else BadRow(
                    "messages_as_text", f"column {lists[0]!r} holds message lists as text, which would be learned as "
                                        "written; write JSON Lines (pandas: to_json(orient='records', lines=True))")
            elif cells:
                yield reader.line_num, BadRow(
                    "wrong_number_of_columns", f"the row has {len(cells)} cells, the header {len(columns)} "
                                               f"({', '.join(columns)})")


_TEXTS = ("prompt", "chosen", "rejected", "completion", "response")
"""Columns that may hold messages as well as text."""
_MESSAGES = re.compile(r"""\s*\[\s*\{(?=.*?['"](role|from)['"]\s*:)(?=.*?['"](content|value)['"]\s*:)""", re.DOTALL)
"""A list of messages, as JSON or as Python prints it."""


def _table_rows(path: Path, reader: Any) -> Iterator[list[str]]:
    """The reader's rows. Raises SourceError, with the line, for a quotation mark not closed or inside a cell."""
    begun = 1
    try:
        for cells in reader:
            yield cells
            begun = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"cannot read {path}: {error}, in the row that begins at line {begun}. In CSV quotation "
                          'marks enclose a whole cell and are doubled inside it ("say ""x"" twice"); mend that row, or '
                          "write the file as .tsv or .jsonl") from error


def _lines(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _text_row(line, "utf-8-sig" if number == 1 else "utf-8")


def _text_row(line: bytes, encoding: str) -> Row:
    try:
        return {"text": line.decode(encoding).rstrip("\r\n")}
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"the line is not UTF-8 ({error}); convert the file")


def _parquet(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from enumerate((without_padding(row) for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowInvalid as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def _arrow(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import datasets
    import pyarrow

    try:
        yield from enumerate(map(without_padding, datasets.Dataset.from_file(str(path))), start=1)
    except pyarrow.ArrowInvalid as error:
        raise SourceError(f"cannot read {path}: {error}") from error


FILE_READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
