"""Entries of a mix as rows of a file, which `rows.parse_row` reads back to the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.example import LABEL, Example
from rlhf_jax.data.sources import SourceRow

CONTEXT = ("tools", "chat_template_kwargs")
"""Columns beside the texts that change what a model is shown; they are kept."""


def mix_row(example: Example, source: str) -> dict[str, Any]:
    """An example with one pair at most, as a row of the layout of its kind, with the name of its source."""
    row: dict[str, Any] = {"prompt_id": example.prompt_id}
    if example.prompt == "" and example.responses:
        return {**row, "text": example.responses[0], "source": source}
    row["prompt"] = example.prompt
    if example.pairs:
        row |= dict(zip(("chosen", "rejected"), example.responses, strict=True))
    elif example.responses:
        row["completion"] = example.responses[0]
    if example.margins:
        row["margin"] = example.margins[0]
    if example.scores and LABEL in example.scores[0]:
        row[LABEL] = bool(example.scores[0][LABEL])
    row |= {column: example.extra[column] for column in CONTEXT if column in example.extra}
    return {**row, "source": source}


def stored_example(example: Example) -> dict[str, Any]:
    """An example as a line of the file that keeps what was converted already."""
    where = example.origin
    return {"prompt": example.prompt, "responses": list(example.responses), "pairs": list(map(list, example.pairs)),
            "margins": list(example.margins), "scores": list(map(dict, example.scores)), "id": example.prompt_id,
            "extra": {column: example.extra[column] for column in CONTEXT if column in example.extra},
            "where": [where.source, where.number] if where else None}


def read_stored(row: Mapping[str, Any]) -> Example:
    """The inverse of `stored_example`."""
    where = row["where"]
    return Example(row["prompt"], tuple(row["responses"]), tuple(map(tuple, row["pairs"])), tuple(row["margins"]),
                   tuple(row["scores"]), prompt_id=row["id"], extra=row["extra"],
                   origin=SourceRow(where[0], where[1], {}) if where else None)
