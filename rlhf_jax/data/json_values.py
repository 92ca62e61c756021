"""Values that JSON can hold: what a foreign row carries beside its texts, checked or made writable."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.bad_row import BadRow, checked_text

MAX_DEPTH = 64
"""Lists and objects inside one another, at most. Deeper ones end recursive code, the JSON reader's own included."""
PADDED = ("tools", "tool_calls", "chat_template_kwargs")
"""Keys under which Arrow's tables put `null` for every key that another row has there."""


def check_depth(row: Mapping[str, Any]) -> None:
    """Raises BadRow (nested_too_deep) where values lie more than MAX_DEPTH levels deep."""
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level if isinstance(value, Mapping | list | tuple)
                 for inner in (value.values() if isinstance(value, Mapping) else value)]
        if not level:
            return
    raise BadRow("nested_too_deep", f"the row holds values more than {MAX_DEPTH} levels deep; flatten them")


def checked_json(value: Any, column: str) -> Any:
    """The value itself, if a chat template can write it and JSON can hold it.

    Raises:
      BadRow: lone_surrogate, non_finite_number, not_json.
    """
    if isinstance(value, Mapping):
        return {checked_text(str(key), column): checked_json(item, column) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [checked_json(item, column) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("non_finite_number", f"column {column!r} holds {value}, for which JSON has no word")
    if value is not None and not isinstance(value, str | bool | int | float):
        raise BadRow("not_json", f"column {column!r} holds a {type(value).__name__}; only text, numbers, true, false, "
                                 "lists and objects can be written into a conversation")
    return checked_text(value, column) if isinstance(value, str) else value


def writable(value: Any, exact: bool = False, depth: int = 0) -> Any:
    """The value as JSON can hold it: dates and other foreign objects as their words, what lies too deep as "...".

    exact: NaN and infinities as their words too; else as null, so that a column of numbers holds numbers alone.
    """
    if isinstance(value, Mapping | list | tuple) and depth > MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): writable(item, exact, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item, exact, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if exact else None
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def count_non_finite(value: Any) -> int:
    """How many NaN and infinities `writable` makes null."""
    if isinstance(value, Mapping):
        return sum(map(count_non_finite, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(count_non_finite, value))
    return int(isinstance(value, float) and not math.isfinite(value))


def without_padding(value: Any, inside: bool = False) -> Any:
    """A row of an Arrow table without the `null`s that its schema puts inside tool schemas and tool calls."""
    if isinstance(value, Mapping):
        return {key: without_padding(item, inside or key in PADDED) for key, item in value.items()
                if not (inside and item is None)}
    return [without_padding(item, inside) for item in value] if isinstance(value, list) else value
