"""Log-probs of a data set under the reference policy: computed once, cached by content, the model then let go."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import Params, cast
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute


def params_fingerprint(params: Params) -> str:
    """A hash of all weights: on each device a position-weighted integer sum, so no weight travels to the host."""

    def of_leaf(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, bits.size)
        weight = (place * jnp.uint32(2654435761)) | jnp.uint32(1)
        mixed = bits ^ (bits >> 15)
        return jnp.stack([jnp.sum(bits * weight, dtype=jnp.uint32), jnp.sum(mixed * (weight ^ place),
                                                                           dtype=jnp.uint32)])

    sums = jax.device_get(jax.jit(lambda tree: [of_leaf(x) for x in jax.tree.leaves(tree)])(params))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return hashlib.sha256(repr([(p, s.tolist()) for p, s in zip(paths, sums, strict=True)]).encode()).hexdigest()


def groups_fingerprint(groups: Sequence[PromptGroup]) -> str:
    """A hash of all token ids and loss masks."""
    digest = hashlib.sha256()
    for group in groups:
        for array in (group.prompt_ids, *(x for r in group.responses for x in (r.ids, r.loss_mask))):
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return digest.hexdigest()


def reference_logps(compute: Compute, params: Params, groups: Sequence[PromptGroup], mesh: Mesh, *, dtype: Any,
                    cache: Path, rows: int, row_length: int | None = None) -> list[list[np.ndarray]]:
    """Per group and response, float32 log-probs of the trained tokens under `params`.

    Found in `cache` if the same weights, tokens and dtype were seen before, else computed and stored there.
    """
    key = hashlib.sha256(f"{params_fingerprint(params)} {groups_fingerprint(groups)} {jnp.dtype(dtype)}".encode())
    path = cache / f"reference-{key.hexdigest()[:20]}.npz"
    sizes = [[int(r.loss_mask.sum()) for r in group.responses] for group in groups]
    if path.is_file():
        with np.load(path) as stored:
            flat = stored["logps"]
        return _cut(flat, sizes)
    found = logps_map(compute, mesh, rows_per_batch=rows, row_length=row_length)(cast(params, dtype), groups)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, logps=np.concatenate([x for group in found for x in group]).astype(np.float32))
    os.replace(temporary, path)
    return found


def _cut(flat: np.ndarray, sizes: list[list[int]]) -> list[list[np.ndarray]]:
    edges = np.cumsum([0, *(n for group in sizes for n in group)])
    if edges[-1] != len(flat):
        raise ValueError("a cached reference file has another number of tokens than the data; delete the cache folder")
    pieces = iter([flat[a:b] for a, b in itertools.pairwise(edges)])
    return [[next(pieces) for _ in group] for group in sizes]
