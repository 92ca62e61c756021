"""Data-parallel evaluation: sums and counts over padded, sharded batches, divided once on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.parallel.bound import Bound
from rlhf_jax.parallel.mesh import auto_inside, batch_sharding, batch_ways, replicated

Sums = Mapping[str, tuple[Any, Any]]
"""Metric name -> (sum, weight)."""


def over_rows(fn: Callable[[Any, Any], Any], mesh: Mesh) -> jax.stages.Wrapped:
    """`fn` compiled: (params, batch) -> results that every device has; the batch's rows are cut over the mesh.

    One `Bound` has one program, however often it is asked for.
    """
    return _shared_over_rows(fn, mesh) if isinstance(fn, Bound) else _over_rows(fn, mesh)


def _over_rows(fn: Callable[[Any, Any], Any], mesh: Mesh) -> jax.stages.Wrapped:
    everywhere = replicated(mesh)
    return jax.jit(auto_inside(fn, mesh, everywhere), in_shardings=(None, batch_sharding(mesh)),
                   out_shardings=everywhere)


_shared_over_rows = lru_cache(maxsize=32)(_over_rows)


def data_parallel(
    fn: Callable[[Any, Mapping[str, Any]], Sums], mesh: Mesh
) -> Callable[[Any, Iterable[Mapping[str, np.ndarray]]], dict[str, float]]:
    """Turns `fn` into an evaluation over batches of any size on all devices of the mesh; what users call "pmapped".

    Args:
      fn: (params, batch) -> {metric: (sum, weight)}. `batch` holds arrays [B, ...] and a bool `mask` [B] that is False
        on padding; `fn` must weigh by it.
      mesh: rows are cut over its `data` and `fsdp` axes.

    Returns:
      (params, batches) -> {metric: sum / weight}. All batches are padded to the size of the first, rounded up to the
      device count, so that one program serves them all. A metric whose weight is zero is NaN.
    """
    compiled = over_rows(fn, mesh)

    def evaluate(params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        totals: dict[str, np.ndarray] = {}
        size = 0
        for batch in batches:
            count = len(next(iter(batch.values())))
            size = size or -(-count // batch_ways(mesh)) * batch_ways(mesh)
            if count > size:
                raise ValueError(f"a batch of {count} rows follows a first batch of {size}; give the largest first")
            padded = {name: _padded(np.asarray(value), size) for name, value in batch.items()}
            mask = padded.pop("mask", np.arange(size) < count)
            for name, pair in jax.device_get(compiled(params, {**padded, "mask": mask})).items():
                totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        return {name: float(s / w) if w else float("nan") for name, (s, w) in totals.items()}

    return evaluate


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
