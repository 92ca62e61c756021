"""Groups as rows that other software (and `dataset_name` here) reads: RLHFlow's scored samples, TRL's pairs."""

from __future__ import annotations

from typing import Any

from rlhf_jax.data.context_columns import TEMPLATE_COLUMNS
from rlhf_jax.data.groups import PromptGroup, Text


def scored_row(group: PromptGroup, scorer: str) -> dict[str, Any]:
    """RLHFlow's layout of scored samples; a response without a score has null."""
    return {"prompt_id": group.prompt_id, "prompt": group.prompt,
            "responses": [response.text for response in group.responses],
            "rewards": [response.scores.get(scorer) for response in group.responses]}


def pair_rows(group: PromptGroup) -> list[dict[str, Any]]:
    """TRL's layout of preference pairs, which RLHFlow's trainer reads too; a margin and the columns that the chat
    template reads where there are some."""
    read = {column: group.extra[column] for column in TEMPLATE_COLUMNS if column in group.extra}
    rows = []
    for place, (chosen, rejected) in enumerate(group.pairs):
        row = {**read, "prompt": group.prompt, "chosen": _answer(group, chosen), "rejected": _answer(group, rejected)}
        rows.append(row | {"margin": group.margins[place]} if group.margins else row)
    return rows


def _answer(group: PromptGroup, place: int) -> Text:
    """As text after a prompt of text, as messages after a prompt of messages."""
    text = group.responses[place].text
    if isinstance(group.prompt, str) or not isinstance(text, str):
        return text
    return [{"role": "assistant", "content": text}]
