"""Converters of OpenAssistant's message trees: a `prompt` with `replies` inside `replies`, ranked by people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_jax.data.bad_row import PromptAlone
from rlhf_jax.data.converters.base import Row
from rlhf_jax.data.groups import Message

_ROLES = {"prompter": "user", "assistant": "assistant"}


def oasst(row: Row) -> Row:
    """The conversation along the best-ranked replies of a tree, up to the last answer of the assistant."""
    messages, node = [], row["prompt"]
    while node is not None:
        messages.append(_message(node))
        node = min(_replies(node), key=_rank, default=None)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise PromptAlone("no_responses", "nobody answered in this tree", _question(row))
    return {"id": row["message_tree_id"], "messages": messages}


def oasst_ranked(row: Row) -> list[Row]:
    """A graded row per turn that has several ranked answers; a score is minus the rank, so that rank 0 is the best."""
    graded = [{"id": f"{row['message_tree_id']}/{number}", "prompt": messages, "responses": answers}
              for number, (messages, answers) in enumerate(_ranked(row["prompt"], []))]
    if not graded:
        raise PromptAlone("no_pair", "no turn of this tree has two ranked answers", _question(row))
    return list(graded)


def _question(row: Row) -> Row:
    return {"id": row["message_tree_id"], "prompt": [_message(row["prompt"])]}


def _ranked(node: Row, before: list[Message]) -> Iterator[tuple[list[Message], list[dict[str, Any]]]]:
    messages = [*before, _message(node)]
    replies = _replies(node)
    answers = [{"text": reply["text"], "score": -reply["rank"]} for reply in replies
               if reply["role"] == "assistant" and reply.get("rank") is not None]
    if len(answers) > 1:
        yield messages, answers
    for reply in replies:
        yield from _ranked(reply, messages)


def _replies(node: Row) -> list[Row]:
    return [reply for reply in node.get("replies") or () if not reply.get("deleted")]


def _rank(node: Row) -> float:
    rank = node.get("rank")
    return float("inf") if rank is None else rank


def _message(node: Row) -> Message:
    return {"role": _ROLES[node["role"]], "content": node["text"]}
