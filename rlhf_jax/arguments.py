"""What the public Python API is given: wrong shapes and objects without a plain value are refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.groups import PromptGroup

_PROMPT = "a prompt is a string or a list of messages: [[{...}]]"
_RESPONSE = "a response is a string or a list of messages: [[{...}]]"
_CONVERSATION = "a conversation is a list of them: score([[...]])"


def several(what: str, given: Any, example: str) -> list[Any]:
    """What is given of a method's argument `what`, as a list; any iterable will do, a generator too.

    Args:
      example: a call that shows a list.

    Raises:
      ValueError: it is one text, mapping or group instead of several, or nothing to go through.
    """
    one = {str: "one string", bytes: "bytes", PromptGroup: "one PromptGroup"}.get(type(given))
    if one is None and isinstance(given, Mapping):
        one = f"one mapping of {_names(given)}"
    if one is None and not isinstance(given, Iterable):
        one = f"of type {type(given).__name__}"
    if one is not None:
        raise ValueError(f"{what} is {one}; give a list: {example}")
    return list(given)


def texts(what: str, given: Any, call: str) -> list[Any]:
    """`several` prompts or responses. call: one that shows lists."""
    found = several(what, given, call)
    for number, one in enumerate(found):
        _check_no_mapping(f"{what}[{number}]", one, _PROMPT if what == "prompts" else _RESPONSE)
    return found


def conversations(given: Any) -> list[Any]:
    """`several` conversations of `score`. Raises ValueError also for a lone pair, and for what is no conversation."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
        raise ValueError("conversations is one pair (prompt, response); give a list: score([(prompt, response)])")
    found = several("conversations", given, 'score([("the cat", " sat.")])')
    for number, one in enumerate(found):
        name = f"conversations[{number}]"
        _check_no_mapping(name, one, _CONVERSATION)
        if isinstance(one, PromptGroup):
            raise ValueError(f"{name} is a PromptGroup; groups are scored by scored(groups)")
        if not isinstance(one, str | list | tuple):
            raise ValueError(f"{name} is of type {type(one).__name__}; give a string, a list of messages, or a pair "
                             "(prompt, response)")
    return found


def groups(given: Any) -> list[PromptGroup]:
    """`several` groups of `scored`. Raises ValueError also for anything among them that is no group."""
    found = several("groups", given, "scored([group])")
    for number, one in enumerate(found):
        if not isinstance(one, PromptGroup):
            raise ValueError(f"groups[{number}] is of type {type(one).__name__}; give PromptGroups, as generate and "
                             "read_groups do, or use score for texts and messages")
    return found


def plain(key: str, value: Any) -> Any:
    """A key's value as a config file could hold it: numbers and arrays of NumPy and JAX by value, paths as text.

    Raises:
      ValueError: an object that is no plain value, with the way to give what it stands for.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): plain(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(f"{key}[{number}]", inner) for number, inner in enumerate(value)]
    raise ValueError(f"{key} is of type {type(value).__name__}, which is no plain value; {_way_out(value)}")


def _way_out(value: Any) -> str:
    if isinstance(value, type | np.dtype):
        return 'give its name, such as "bfloat16"'
    if hasattr(value, "checkpoint"):
        return "give the folder of the model"
    if callable(value):
        return 'name the function, "module:function"'
    if isinstance(value, Iterable):
        return "write the rows to a .jsonl file and give its path"
    return "give text, a number, a list or a mapping"


def _check_no_mapping(name: str, one: Any, shape: str) -> None:
    if isinstance(one, Mapping):
        message = "role" in one and "content" in one
        raise ValueError(f"{name} is {'one chat message' if message else f'a mapping of {_names(one)}'}; {shape}")


def _names(given: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, given)) or "nothing"
