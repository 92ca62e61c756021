"""Functions of a user's own by name, "package.module:function": losses, pair rules, row converters, scorers.

The working folder is searched too, so `my_rewards.py` beside a config is `my_rewards:score`. What a function is, its
module's source, is part of the key of every stage that uses it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

_NAME = re.compile(r"\w+(\.\w+)*:\w+")


def is_plugin(name: str | None) -> bool:
    """Whether a name is that of a user's own function rather than of one in a table here."""
    return name is not None and ":" in name


def load_function(path: str) -> Callable[..., Any]:
    """The function named "package.module:function".

    Raises:
      ValueError: there is no such function, with the reason.
    """
    if not _NAME.fullmatch(path):
        raise ValueError(f"function {path!r:.200} is not written 'package.module:function'")
    module, name = path.split(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function {path!r} cannot be imported: {error}. Is its package installed, or its folder the "
                         "working folder or on PYTHONPATH?") from error
    if not callable(found):
        raise ValueError(f"{path!r} is a {type(found).__name__}, not a function")
    return found


def check_call(function: Callable[..., Any], call: str, *values: Any, **named: Any) -> None:
    """Raises ValueError unless a function takes what it will be given. call: in words, say "f(values, rng)"."""
    try:
        inspect.signature(function).bind(*values, **named)
    except TypeError as error:
        raise ValueError(f"function {called(function)!r} cannot be called as {call}: {error}") from error


def called(function: Callable[..., Any]) -> str:
    """A function as `load_function` finds it."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"


@cache
def function_key(function: Callable[..., Any]) -> str:
    """Stands for a function in a stage's inputs: sha256 of its name and its module's source.

    The source is read once for a function: a file that is changed while a run goes on does not change what runs.

    Raises:
      ValueError: it was not written in Python, so nothing would tell one version from another.
    """
    if not hasattr(function, "__qualname__"):
        raise ValueError(f"{function!r:.200} is no function of its own, so nothing would tell one version of it from "
                         "another; write a function (def) that calls it")
    try:
        source = inspect.getsource(inspect.getmodule(function) or function)
    except (TypeError, OSError) as error:
        raise ValueError(f"{function!r} has no source in Python ({error}); write a function that calls it") from error
    return hashlib.sha256(f"{function.__qualname__}\n{source}".encode()).hexdigest()


def plugin_keys(*names: str | None) -> list[str]:
    """The keys of those names that are plug-ins."""
    return [function_key(load_function(name)) for name in names if name is not None and is_plugin(name)]
