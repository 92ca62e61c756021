"""The style of an answer as Arena-Hard counts it: headers, list entries and bold texts of its Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CODE = re.compile(r"```([^`]*)```")


def markdown_counts(answer: str) -> dict[str, dict[str, int]]:
    """`header_count`, `list_count` and `bold_count` of an answer whose fenced code is left out, as upstream counts.

    What stands between fences is removed wherever it occurs; the fences stay.
    """
    for block in _CODE.findall(answer):
        answer = answer.replace(block, "")

    def lines(pattern: str) -> int:
        return len(re.findall(pattern, answer, re.MULTILINE))

    return {"header_count": {f"h{n}": lines(rf"^#{{{n}}}\s") for n in range(1, 7)},
            "list_count": {"ordered": lines(r"^\s*\d+\.\s"), "unordered": lines(r"^\s*[-*+]\s")},
            "bold_count": {"**": len(re.findall(r"\*\*[^*\n]+\*\*", answer)),
                           "__": len(re.findall(r"__[^_\n]+__", answer))}}


def style_of(metadata: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Tokens, headers, list entries and bold texts, from an answer's `metadata`.

    Raises:
      ValueError: a count is missing.
    """
    try:
        return (int(metadata["token_len"]), *(sum(metadata[name].values()) for name in
                                              ("header_count", "list_count", "bold_count")))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"an answer's metadata lacks {error}; style control needs token_len, header_count, "
                         "list_count and bold_count of every answer") from error
