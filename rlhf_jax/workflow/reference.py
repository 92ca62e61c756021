"""Log-probs of a data set under the reference policy: computed once, cached by content, the model then let go."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.data.groups import PromptGroup, check_ids
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.packing import RowShape
from rlhf_jax.models import Params, cast
from rlhf_jax.parallel import on_main, replicated
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.objectives import Compute

_AT_ONCE = 4096
"""Groups whose log-probs are in memory together."""


def params_fingerprint(params: Params) -> str:
    """A hash of all weights: on each device a sum of mixed (place, bits) words, so no weight travels to the host.

    For a given place the mixing is a bijection of the bits, so a change of one weight always changes the sums.
    """
    leaves = jax.tree.leaves(params)
    mesh = getattr(getattr(leaves[0], "sharding", None), "mesh", None)
    sums = jax.device_get(_sums(leaves, mesh and replicated(mesh)))
    names = [(jax.tree_util.keystr(path), x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)]
    return hashlib.sha256(repr([(*n, s.tolist()) for n, s in zip(names, sums, strict=True)]).encode()).hexdigest()


@partial(jax.jit, static_argnums=1)
def _sums(leaves: list[jax.Array], everywhere: NamedSharding | None = None) -> list[jax.Array]:
    """Two 32-bit sums a leaf, the same on every process."""

    def of_leaf(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):  # no reshape: each device numbers its own shard
            place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        words = (_mixed(bits ^ _mixed(place + jnp.uint32(seed))) for seed in (0x9E3779B9, 0x7F4A7C15))
        sums = jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])
        return sums if everywhere is None else jax.lax.with_sharding_constraint(sums, everywhere)

    return [of_leaf(x) for x in leaves]


def _mixed(word: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser: a bijection in which every input bit moves every output bit."""
    word = (word ^ (word >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> jnp.uint32(16))


def groups_fingerprint(groups: Sequence[PromptGroup]) -> str:
    """A hash of all token ids and loss masks: all that log-probs depend on. A stage's inputs take `groups_key`."""
    digest = hashlib.sha256()
    for group in groups:
        for array in (group.prompt_ids, *(x for r in group.responses for x in (r.ids, r.loss_mask))):
            digest.update(len(array).to_bytes(8, "little") + array.tobytes())
    return digest.hexdigest()


def reference_logps(compute: Compute, params: Params, groups: Sequence[PromptGroup], mesh: Mesh, *, dtype: Any,
                    cache: Path, rows: int, row_length: int | None = None) -> Sequence[Sequence[np.ndarray]]:
    """Per group and response, float32 log-probs of the trained tokens under `params`; on disk (see `OnDisk`).

    Found in `cache` if the same model, weights, tokens and dtype were seen before, else computed and stored there.

    Raises:
      ValueError: if the file in the cache is damaged.
    """
    check_ids(groups, compute.config.vocab_size)
    parts = params_fingerprint(params), groups_fingerprint(groups), jnp.dtype(dtype), compute.config
    key = hashlib.sha256(" ".join(map(str, parts)).encode())
    path = cache / f"reference-{key.hexdigest()[:20]}.f32"
    if on_main(path.is_file):
        return _cut(path, groups)
    found = OnDisk(_computed(logps_map(compute, mesh, rows_per_batch=rows, row_length=row_length),
                             cast(params, dtype), groups))

    def store() -> None:
        cache.mkdir(parents=True, exist_ok=True)
        for leftover in cache.glob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
        temporary = path.with_name(f".{path.name}.tmp")
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            stream.write(digest.digest())  # its place
            for data in (x.astype("<f4").tobytes() for group in found for x in group):
                digest.update(data)
                stream.write(data)
            stream.seek(0)
            stream.write(digest.digest())
        os.replace(temporary, path)

    on_main(store)
    return found


def _computed(logps: PackedMap, params: Params, groups: Sequence[PromptGroup]) -> Iterator[list[np.ndarray]]:
    """The log-probs of each group, some thousand groups at a time, all by one program."""
    chunks = [groups[start : start + _AT_ONCE] for start in range(0, len(groups), _AT_ONCE)]
    tokens = max(logps.shape(chunk).tokens for chunk in chunks)
    shapes = [logps.shape(chunk, tokens) for chunk in chunks]
    shape = RowShape(tokens, *(max(sizes) for sizes in zip(*((s.targets, s.slots, s.pairs) for s in shapes),
                                                           strict=True)))
    for chunk in chunks:
        yield from logps(params, list(chunk), shape=shape)


def _cut(path: Path, groups: Sequence[PromptGroup]) -> Sequence[Sequence[np.ndarray]]:
    """The log-probs of a file in the cache (their sha256 and then they), by group and response."""
    numbers = sum(int(r.loss_mask.sum()) for group in groups for r in group.responses)
    with path.open("rb") as stream:
        wanted, digest = stream.read(32), hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        if digest.digest() != wanted or stream.tell() != 32 + 4 * numbers:
            raise ValueError(f"the log-probs of the reference in {path} are not what was written there; delete that "
                             "file, and give the same command again to compute them anew")
        stream.seek(32)
        return OnDisk([np.frombuffer(stream.read(4 * int(r.loss_mask.sum())), "<f4") for r in group.responses]
                      for group in groups)
