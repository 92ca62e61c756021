"""Messages and turns: how a cell of a data row becomes chat messages, and where a shared prompt ends.

A prompt that is not given is found on message boundaries: the longest common prefix of whole messages. It is never a
prefix of characters, which would cut words and move the first letters of an answer into the prompt.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow, checked_text, short, turn_of
from rlhf_jax.data.groups import SYSTEM_ROLES, Message, Text
from rlhf_jax.data.message_fields import message_fields

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Role names people write, and ours. `human`, `gpt` and the like come from ShareGPT files."""

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def as_messages(value: Any, column: str) -> list[Message]:
    """The chat messages in a cell: a list of {role, content} or ShareGPT {from, value}, or one such object.

    A system message that says nothing is none.

    Raises:
      BadRow: not_messages, unknown_role, not_text_content, lone_surrogate, and those of `message_fields`.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes) or not turns:
        raise BadRow("not_messages", f"column {column!r} holds {short(value)}, not a list of chat messages; "
                                     'give [{"role": "user", "content": "..."}, ...]')
    messages = [_as_message(turn, column) for turn in turns]
    return [m for m in messages if m["role"] not in SYSTEM_ROLES or m["content"].strip() or len(m) > 2] or messages


def without_empty_rounds(cell: Any) -> Any:
    """The turns of a cell without rounds in which neither the user nor the assistant says anything.

    Whatever else it is, and turns of which nothing would be left, stay as they are.
    """
    if not isinstance(cell, list | tuple) or not all(isinstance(turn, Mapping) for turn in cell):
        return cell
    said = [_speaker(turn) for turn in cell]
    kept, place = [], 0
    while place < len(cell):
        if said[place : place + 2] == [("user", False), ("assistant", False)]:
            place += 2
        else:
            kept.append(cell[place])
            place += 1
    left = any(role == "user" for role, _ in map(_speaker, kept))
    return kept if left and len(kept) < len(cell) else cell


def _speaker(turn: Mapping[str, Any]) -> tuple[Any, bool]:
    """The role of a raw turn, by our name where it is known, and whether it says or calls anything."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    known = ROLES.get(role, role) if isinstance(role, str) else role
    return known, bool(content.strip() if isinstance(content, str) else content) or bool(turn.get("tool_calls"))


def _as_message(turn: Any, column: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow("not_messages", f"column {column!r} holds {short(turn)} where a message object belongs; "
                                     'give {"role": ..., "content": ...}')
    said = {str(key): value for key, value in turn.items() if value is not None}
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("unknown_role", f"column {column!r} has a message with role {short(role)}; known roles are "
                                     f"{', '.join(ROLES)}")
    fields = message_fields(said, ROLES[role], column)
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if content is None and ("tool_calls" in fields or ROLES[role] in SYSTEM_ROLES):
        content = ""
    if not isinstance(content, str):
        raise BadRow("not_text_content", f"column {column!r} has a message whose content is {short(content)}; "
                                         "only text is supported")
    return {"role": ROLES[role], "content": checked_text(content, column), **fields}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def as_text(value: Any, column: str) -> Text:
    """A cell as plain text or as messages, whichever it holds."""
    return checked_text(value, column) if isinstance(value, str) else as_messages(value, column)


def is_empty(text: Text) -> bool:
    """True for a string of white space, no message at all, or any message of white space that calls no tool and is no
    tool's answer, which may have nothing to say."""
    if isinstance(text, str):
        return not text.strip()
    return not text or any(
        not m["content"].strip() and "tool_calls" not in m and m["role"] != "tool" for m in text)


def check_alternation(messages: Sequence[Message], column: str, first: str = "user") -> None:
    """Requires an optional system or developer message and then strictly alternating turns that begin with `first`.

    What tools answered, in one or several messages, stands where a user's turn would.

    Raises:
      BadRow: not_alternating.
    """
    roles = [m["role"] for m in messages]
    turns = [role for before, role in itertools.pairwise(["", *roles]) if (before, role) != ("tool", "tool")]
    turns = turns[1:] if turns[:1] and turns[0] in SYSTEM_ROLES and first == "user" else turns
    turns = [*turns[:1], *("user" if role == "tool" else role for role in turns[1:])]
    other = "assistant" if first == "user" else "user"
    expected = [first if i % 2 == 0 else other for i in range(len(turns))]
    if turns != expected:
        raise BadRow("not_alternating", f"column {column!r} has turns {', '.join(roles) or '(none)'}; turns must "
                                        f"alternate and begin with {first}")


def parse_hh(text: str, column: str) -> list[Message]:
    r"""Messages of a dialogue written the HH-RLHF way: "\n\nHuman: ... \n\nAssistant: ...".

    Raises:
      BadRow: implicit_prompt_needs_messages when the text is no such dialogue.
    """
    pieces = _HH_TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise BadRow("implicit_prompt_needs_messages",
                     f"column {column!r} holds plain text {short(text)} and the row has no 'prompt', so where the "
                     "prompt ends is unknown; add a 'prompt' column, or give message lists")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[speaker], "content": checked_text(content.strip(), column)}
            for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)]


def as_dialogue(value: Any, column: str) -> list[Message]:
    """A whole conversation that ends with the assistant, from messages or an HH-RLHF string.

    Raises:
      BadRow: as `as_messages` and `parse_hh`; not_alternating, last_turn_not_assistant, empty_prompt.
    """
    messages = parse_hh(value, column) if isinstance(value, str) else as_messages(value, column)
    check_alternation(messages, column)
    if messages[-1]["role"] != "assistant":
        raise BadRow("last_turn_not_assistant", f"column {column!r} ends with {turn_of(messages[-1]['role'])}; a "
                                                "conversation to learn from ends with the assistant")
    if is_empty(messages[:-1]):
        raise BadRow("empty_prompt", f"column {column!r} has an empty turn before the last one, or only one turn")
    return messages


def split_pair(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected response of two whole conversations: the RLHFlow validity filter.

    Both must have the same number of turns, and the same text in all but the last.

    Raises:
      BadRow: unequal_turns, differs_before_last_turn.
    """
    if len(chosen) != len(rejected):
        raise BadRow("unequal_turns", f"'chosen' has {len(chosen)} turns and 'rejected' {len(rejected)}; a pair "
                                      "differs in its last turn alone")
    shared = len(_common_prefix(chosen, rejected))
    if shared < len(chosen) - 1:
        raise BadRow("differs_before_last_turn", f"'chosen' and 'rejected' differ already in turn {shared + 1} of "
                                                 f"{len(chosen)}; a pair shares every turn but the last")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _common_prefix(a: list[Message], b: list[Message]) -> list[Message]:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return a[:i]
    return a[: min(len(a), len(b))]
