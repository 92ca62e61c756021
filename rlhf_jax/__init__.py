"""RLHF Workflow in JAX: reward models, the DPO family and online iterative DPO as pure, sharded functions.

The public Python API is what `__all__` lists (docs/python.md) and `rlhf_jax.losses`; all else is private, and may
change. Importing this package costs nothing, and `rlhf_jax.losses` one import of jax: the rest is imported when it is
first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlhf_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from rlhf_jax.api import Model, load, run
    from rlhf_jax.data.groups import PromptGroup, Response
    from rlhf_jax.data.jsonl import read_groups, write_groups

__all__ = ["Model", "PromptGroup", "Response", "load", "read_groups", "run", "write_groups"]

_PLACES = {"Model": "api", "PromptGroup": "data.groups", "Response": "data.groups", "load": "api",
           "read_groups": "data.jsonl", "run": "api", "write_groups": "data.jsonl"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rlhf_jax' has no attribute {name!r}; it has {', '.join(__all__)} and losses")
    return getattr(importlib.import_module(f"rlhf_jax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
