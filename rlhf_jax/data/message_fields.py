"""What a message says beside its role and its text: fields for the chat template, and whether it is trained on.

| field                                   | becomes                                                                |
|-----------------------------------------|------------------------------------------------------------------------|
| `weight`, `train`, `train_on_turn`, `loss` | 0 or false: an assistant's turn is seen and not trained on          |
| `mask`, `masked`                        | the same, of 1 or true                                                 |
| null, empty text, empty list or object  | nothing: it says nothing                                               |
| `tool_calls`                            | handed to the chat template, arguments written as JSON as the object   |
| any other                               | handed to the chat template (`template_reading` sees whether it is read) |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow, short
from rlhf_jax.data.json_values import checked_json

TRAIN = "train"
"""Field of our own messages: False on an assistant's turn that is seen and not trained on, else absent."""
_TRAINS = {"weight": True, "train": True, "train_on_turn": True, "loss": True, "mask": False, "masked": False}
"""Field -> what its 1 or true says about training on the turn."""
_KNOWN = ("role", "from", "content", "value")


def message_fields(said: Mapping[str, Any], role: str, column: str) -> dict[str, Any]:
    """The fields of a message that are kept, from those of a row that are not null.

    Raises:
      BadRow: bad_turn_weight, trained_turn_not_assistant, bad_tool_calls, and those of `checked_json`.
    """
    fields = {key: checked_json(value, column) for key, value in said.items()
              if key not in _KNOWN and key not in _TRAINS and not _is_nothing(value)}
    if "tool_calls" in fields:
        fields["tool_calls"] = _tool_calls(fields["tool_calls"], column)
    if _trained(said, role, column) is False and role == "assistant":
        fields[TRAIN] = False
    return fields


def _trained(said: Mapping[str, Any], role: str, column: str) -> bool | None:
    """What the message says about training on it; None where it says nothing."""
    found = {}
    for key in _TRAINS.keys() & said.keys():
        if isinstance(said[key], str) or said[key] not in (0, 1):
            raise BadRow("bad_turn_weight", f"column {column!r} has a message with {key} = {short(said[key])}; a turn "
                                            "is trained on or not: give 0, 1, true or false")
        found[key] = _TRAINS[key] == bool(said[key])
    if len(set(found.values())) > 1:
        raise BadRow("bad_turn_weight", f"column {column!r} has a message whose {' and '.join(sorted(found))} "
                                        "contradict each other; keep one")
    trained = next(iter(found.values()), None)
    if trained and role != "assistant":
        raise BadRow("trained_turn_not_assistant", f"column {column!r} has a {role} turn with {next(iter(found))} = "
                                                   f"{said[next(iter(found))]}; the assistant's turns alone are "
                                                   "trained on. Leave it out")
    return trained


def _tool_calls(calls: Any, column: str) -> list[dict[str, Any]]:
    """The calls with their arguments as objects.

    OpenAI's rows hold them as a string of JSON. Templates write arguments as JSON, of a string a quoted one that no
    tool could read; vLLM hands objects to templates too.
    """
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow("bad_tool_calls", f"column {column!r} has a message with tool_calls {short(calls)}; give a list "
                                       "of objects")
    made = []
    for call in calls:
        inner = call.get("function", call)
        if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
            inner = {**inner, "arguments": _arguments(inner["arguments"], column)}
        made.append({**call, "function": inner} if "function" in call else inner)
    return made


def _arguments(text: str, column: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadRow("bad_tool_calls", f"column {column!r} has a tool call with the arguments {short(text)}, which are "
                                       "no JSON object; write one, {} where there are none")
    checked: dict[str, Any] = checked_json(found, column)
    return checked


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str | Sequence | Mapping) and not value
