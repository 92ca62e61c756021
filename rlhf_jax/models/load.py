"""Weights from Hugging Face folders, straight into sharded arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.folder import CheckpointError
from rlhf_jax.models.hf import (
    LM_HEAD,
    Stored,
    compare_tensors,
    from_hf,
    is_tied,
    open_tensors,
    parts,
    read_config,
    stored_tensors,
)
from rlhf_jax.models.params import Params, ParamSpec, is_spec, param_specs

_Block = tuple[slice, ...]


class TensorReader:
    """Tensors of a folder by name, one in memory at a time; `compare_tensors` has found them as they should be."""

    def __init__(self, stored: dict[str, Stored]):
        self._stored = stored
        self._files = {file: open_tensors(file) for file in {s.file for s in stored.values()}}

    def __call__(self, name: str, spec: ParamSpec) -> np.ndarray:
        file, in_file = self._stored[name]
        return from_hf(self._files[file].get_tensor(in_file), spec)


def _read_blocks(spec: ParamSpec, blocks: list[_Block], read: TensorReader, dtype: Any) -> list[np.ndarray]:
    """The given pieces of one weight; each tensor of the file is read once."""
    ranges = [[range(*cut.indices(size)) for cut, size in zip(block, spec.shape, strict=True)] for block in blocks]
    out = [np.empty([len(r) for r in block], dtype) for block in ranges]
    for name, index in parts(spec):
        wanted = [i for i, block in enumerate(ranges) if all(at in r for at, r in zip(index, block, strict=False))]
        whole = read(name, spec) if wanted else None
        for i in wanted:
            assert whole is not None
            at = tuple(n - r.start for n, r in zip(index, ranges[i], strict=False))
            out[i][at] = whole[blocks[i][spec.stacked:]]
    return out


def read_whole(spec: ParamSpec, read: TensorReader, dtype: Any) -> np.ndarray:
    """One weight as a numpy array."""
    return _read_blocks(spec, [tuple(slice(None) for _ in spec.shape)], read, dtype)[0]


def _sharded(spec: ParamSpec, sharding: jax.sharding.Sharding, read: TensorReader, dtype: Any) -> jax.Array:
    """One weight on the devices of this process that hold a part of it."""
    places = {device: block or () for device, block in sharding.addressable_devices_indices_map(spec.shape).items()}
    blocks = list({str(block): block for block in places.values()}.values())
    arrays = dict(zip(map(str, blocks), _read_blocks(spec, blocks, read, dtype), strict=True))
    shards = [jax.device_put(arrays[str(block)], device) for device, block in places.items()]
    return jax.make_array_from_single_device_arrays(spec.shape, sharding, shards)


_ROWS = 8192


def _check_tied(folder: Path, specs: dict[str, Any], stored: dict[str, Stored]) -> None:
    """Raises CheckpointError where a tied model's file has an output embedding that is not its input embedding."""
    if not is_tied(specs) or LM_HEAD not in stored:
        return
    head, embed = (open_tensors(file).get_slice(name)
                   for file, name in (stored[LM_HEAD], stored[specs["embed"].hf_name]))
    rows = embed.get_shape()[0]
    cuts = [slice(start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
    if head.get_shape() != embed.get_shape() or not all(np.array_equal(head[cut], embed[cut]) for cut in cuts):
        raise CheckpointError(f"{folder} says tie_word_embeddings = true, and its lm_head.weight is not the input "
                              "embedding. Set tie_word_embeddings to false in config.json to use it, as transformers "
                              "does, or take it out of the file")


def load_params(folder: str | Path, config: DecoderConfig | None = None, dtype: Any = jnp.float32,
                shardings: Any = None) -> Params:
    """Weights of a Hugging Face folder as our tree, layers stacked, in `dtype`.

    Args:
      shardings: tree of `Sharding`s as `parallel.param_shardings` gives; a host then holds no more than its own
        shards and one tensor of the file. None gives numpy arrays, whole.

    Raises:
      CheckpointError: if a file or a tensor is missing, or a tensor is unexpected or of another shape than the config
        says.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    stored, specs = stored_tensors(folder), param_specs(config)
    if differences := compare_tensors(specs, stored):
        kind = "reward model (sequence classifier)" if config.is_classifier else "language model"
        raise CheckpointError(
            f"{folder} does not hold the tensors of a {config.family} {kind}: {differences}. "
            "Check that config.json belongs to these weights and that the checkpoint is of the kind you ask for")
    _check_tied(folder, specs, stored)
    read = TensorReader(stored)
    if shardings is None:
        return jax.tree.map(lambda spec: read_whole(spec, read, dtype), specs, is_leaf=is_spec)
    return jax.tree.map(lambda spec, sharding: _sharded(spec, sharding, read, dtype), specs, shardings, is_leaf=is_spec)
