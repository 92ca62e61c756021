"""Functions with their first arguments given, which are equal where those are: what is compiled for one serves all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Bound:
    """`fn(*given, *rest)` when called with the rest; unlike a `functools.partial` equal to any that does the same.

    `fn` is a function of a module: a method or a closure would be kept, with all it holds, by whatever keeps this.
    """

    fn: Callable[..., Any]
    given: tuple[Hashable, ...]

    def __call__(self, *rest: Any) -> Any:
        return self.fn(*self.given, *rest)


def bound(fn: Callable[..., Any], *given: Hashable) -> Bound:
    """`fn` with its first arguments given."""
    return Bound(fn, given)
