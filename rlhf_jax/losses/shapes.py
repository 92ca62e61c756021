"""Shape contracts: arrays that a loss combines have one shape. [N] against [N, 1] is an error, not [N, N] numbers.

Shapes are static, so the checks cost nothing in a compiled function.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax.numpy as jnp

F = TypeVar("F", bound=Callable[..., Any])


def check_one_shape(where: str, **arrays: Any) -> None:
    """Raises ValueError unless all arrays (None aside) have one shape."""
    shapes = {name: jnp.shape(x) for name, x in arrays.items() if x is not None}
    first = next(iter(shapes.values()))
    if odd := [name for name, shape in shapes.items() if shape != first]:
        raise ValueError(f"{where}: {odd[0]} has shape {list(shapes[odd[0]])} and {next(iter(shapes))} {list(first)}; "
                         "give arrays of one shape (an axis of size 1 goes away with x[..., 0], a number for all is "
                         "jnp.full_like(x, number))")


def check_rank(where: str, most: int, **arrays: Any) -> None:
    """Raises ValueError for an array with more than `most` axes; with fewer inside `jax.vmap`."""
    for name, x in arrays.items():
        if jnp.ndim(x) > most:
            expected = "a scalar" if most == 0 else f"[{', '.join('NM'[:most])}]"
            raise ValueError(f"{where}: {name} has shape {list(jnp.shape(x))}; it is {expected}")


def check_pairs(where: str, pair: Any, **more: Any) -> None:
    """Raises ValueError unless all arrays of a `PairLogps`, and `more` where given, are [N], one number per pair."""
    check_one_shape(where, **pair._asdict(), **more)
    check_rank(where, 1, chosen=pair.chosen)


WINS = ("chosen_win", "rejected_win")
PER_PAIR = ("mask", "margin", *WINS)
"""Arrays [N] that a loss may read beside the log-probabilities of N pairs."""


def of_pairs(loss: F) -> F:
    """A loss of a `PairLogps` that first checks the shapes of the pair, and of what else there is of each."""
    parameters = list(inspect.signature(loss).parameters)

    @functools.wraps(loss)
    def checked(*values: Any, **keywords: Any) -> Any:
        given = {**dict(zip(parameters, values, strict=False)), **keywords}
        check_pairs(loss.__name__, given[parameters[0]], **{name: given[name] for name in PER_PAIR if name in given})
        return loss(*values, **keywords)

    return cast(F, checked)
