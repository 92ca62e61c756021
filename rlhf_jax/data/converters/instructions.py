"""Converters of instructions and their answers."""

from __future__ import annotations

from rlhf_jax.data.context_columns import SYSTEM_COLUMNS
from rlhf_jax.data.converters.base import Row, others, turns

INSTRUCTION = ("instruction", "input", "output", "history")
LAYOUT = ("prompt", "completion", "text", "messages", "conversations", "context_messages", "responses")
"""Columns in which files of instructions repeat them in another layout."""


def instruction(row: Row, given: str = "input") -> str:
    """The instruction, and behind it what it is about where column `given` says anything."""
    about = row.get(given)
    return f"{row['instruction']}\n\n{about}" if about else row["instruction"]


def alpaca(row: Row) -> Row:
    """Alpaca instructions: `instruction`, `input`, `output`, and LIMA's `history` of earlier [question, answer]."""
    earlier = [message for question, answer in row.get("history") or () for message in turns(question, answer)]
    return {**others(row, *INSTRUCTION, *LAYOUT), "messages": [*earlier, *turns(instruction(row), row["output"])]}


def dolly(row: Row) -> Row:
    """Dolly: `instruction`, `context`, `response` and a `category`."""
    return {**others(row, "instruction", "context", "response", *LAYOUT),
            "messages": turns(instruction(row, "context"), row["response"])}


def self_instruct(row: Row) -> list[Row]:
    """Seed tasks of Self-Instruct: an `instruction` with `instances` [{input, output}], each a row."""
    kept = {column: row[column] for column in ("id", "name", *SYSTEM_COLUMNS) if column in row}
    return [{**kept, "messages": turns(instruction({**instance, "instruction": row["instruction"]}),
                                       instance["output"])} for instance in row["instances"]]


def story_prompt(row: Row) -> Row:
    """A story opening: a plain-text prompt that the model continues."""
    return {"prompt": row["prompt"], **{column: row[column] for column in ("id", *SYSTEM_COLUMNS) if column in row}}
