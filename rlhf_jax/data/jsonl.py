"""JSON Lines files: written whole or not at all, read with their line numbers. A name ending in .gz is compressed."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.groups import PromptGroup


class SourceError(ValueError):
    """A whole file, folder or data set cannot be read; the message names it and says what to do."""


def write_jsonl_atomic(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows to a temporary file beside `path`, syncs it to disk and renames it; returns the number of rows.

    Whoever looks sees the old file or the whole new one. The same rows give the same bytes, compressed or not.

    Raises:
      OSError: the disk is full or not writable; the temporary file is gone and an earlier `path` is untouched.
      ValueError: a row holds NaN or infinity, which JSON has no word for.

    Lone surrogates, which UTF-8 cannot hold, are written as JSON's escapes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # of a killed run: replaced, as it is written again
    renamed = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = _write_synced(temporary, rows, compress=path.suffix == ".gz")
        os.replace(temporary, path)
        renamed = True
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path}: {error.strerror or error}. Nothing was replaced: an earlier {path.name} is as it "
            "was and the partial file is removed. Free some space or fix the permissions, and run again",
        ) from error
    finally:
        if not renamed:
            temporary.unlink(missing_ok=True)
    return count


def _write_synced(path: Path, rows: Iterable[Mapping[str, Any]], compress: bool) -> int:
    count = 0
    with path.open("wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if compress else nullcontext(raw) as stream:
            for row in rows:
                stream.write(_line(row))
                count += 1
        raw.flush()
        os.fsync(raw.fileno())
    return count


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def open_bytes(path: str | Path) -> IO[bytes]:
    """The file opened for reading bytes, decompressed when its name ends in .gz."""
    path = Path(path)
    return io.BufferedReader(gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def scan_jsonl(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """Line number (from 1) and object of each line; a line that is no JSON object yields a BadRow in its place.

    Blank lines are passed over. Raises SourceError where the file itself cannot be read on.
    """
    try:
        with open_bytes(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _parse_line(line)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"cannot read {path}: {error}; the file is missing, unreadable or cut off") from error


def _parse_line(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"the line is not UTF-8 ({error}); convert the file")
    except json.JSONDecodeError as error:
        return BadRow("truncated_json", f"the line is not whole JSON ({error}): {line[:80]!r}; it was probably cut "
                                        "off while being written")
    except RecursionError:
        return BadRow("nested_too_deep", "the line holds lists or objects too deep inside one another to be read")
    except ValueError as error:  # of a number beyond Python's limit of digits
        return BadRow("number_too_long", f"the line holds a number that cannot be read ({error})")
    if not isinstance(row, dict):
        return BadRow("not_an_object", f"the line holds {type(row).__name__} {line[:60]!r}; each line must be one "
                                       "JSON object")
    return row


def read_jsonl(path: str | Path) -> list[Mapping[str, Any]]:
    """All rows of a file that one of our own stages wrote, so a bad line is an error: raises SourceError naming it."""
    return [row for _, row in own_rows(path)]


def own_rows(path: str | Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """As `read_jsonl`, one by one, each with the number of its line."""
    for number, row in scan_jsonl(path):
        if isinstance(row, BadRow):
            raise SourceError(f"{path}, line {number}: {row.message}") from row
        yield number, row


def write_groups(path: str | Path, groups: Iterable[PromptGroup]) -> int:
    """Writes prompt groups, one per line, whole or not at all; returns their number. Errors as write_jsonl_atomic."""
    return write_jsonl_atomic(path, (group.to_json() for group in groups))


def read_groups(path: str | Path) -> list[PromptGroup]:
    """The prompt groups that `write_groups` wrote, ids and log-probs bit for bit. Raises SourceError."""
    return list(scan_groups(path))


def scan_groups(path: str | Path) -> Iterator[PromptGroup]:
    """As `read_groups`, one by one."""
    for number, row in own_rows(path):
        try:
            yield PromptGroup.from_json(row)
        except ValueError as error:
            raise SourceError(f"{path}, line {number} is not a prompt group as this program writes it: {error}. Give "
                              "a file that `generate`, `score` or `pairs` wrote, or make it anew") from error
