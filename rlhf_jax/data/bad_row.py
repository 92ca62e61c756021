"""The fault of one row of data, and the check that a text is text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BadRow(ValueError):
    """One row of data cannot be used.

    Attributes:
      reason: short snake_case key, counted by the funnel.
      message: what was given, why it cannot work, what to do.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(f"{message} [{reason}]")
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.message)


class PromptAlone(BadRow):
    """A row of whose answers none is preferred or judged; where prompts are read, it is as good as any.

    Attributes:
      row: with the prompt, as a converter would make it.
    """

    def __init__(self, reason: str, message: str, row: Mapping[str, Any]):
        super().__init__(reason, message)
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.message, self.row)


def checked_text(text: str, column: str) -> str:
    """The text itself; a lone surrogate (half of an escaped emoji), which no tokenizer accepts, raises BadRow."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadRow("lone_surrogate", f"column {column!r} holds half a surrogate pair, which is not valid text; "
                                       "repair the file's escapes")
    return text


def turn_of(role: str) -> str:
    """A turn with its article: an assistant turn, a user turn."""
    return f"{'an' if role == 'assistant' else 'a'} {role} turn"


def short(value: Any, length: int = 60) -> str:
    """A value as an error message shows it."""
    shown = repr(value)
    return shown if len(shown) <= length else shown[:length] + "..."
