"""Arrays onto devices: each process brings its own rows of a batch; weights move from training to sampling."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.params import Params, cast
from rlhf_jax.parallel.accelerators import Chip, chip_of, memory_of
from rlhf_jax.parallel.decoding import choose_ways
from rlhf_jax.parallel.mesh import PRESETS, make_mesh, param_shardings


def rows_here(sharding: NamedSharding, rows: int, axis: int = 0) -> list[int]:
    """Which of `rows` rows (dimension `axis`) lie on devices of this process, in order: what it has to pack."""
    shape = (1,) * axis + (rows,)
    mine = sharding.addressable_devices_indices_map(shape).values()
    return sorted({row for index in mine for row in range(*(index or (slice(None),))[axis].indices(rows))})


def shaped(tree: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s of a tree, where `shardings` (a tree like it, or one for all) says."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def place(batch: Any, sharding: NamedSharding, rows: int, axis: int = 0) -> Any:
    """A tree of numpy arrays that hold this process's rows (see `rows_here`) as global arrays of `rows` rows.

    On one process these are all rows, and they are returned as they are: a jitted function places them itself.
    """
    if jax.process_count() == 1:
        return batch
    mine = {row: i for i, row in enumerate(rows_here(sharding, rows, axis))}

    def one(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = [mine[row] for row in range(*index[axis].indices(rows))]
            return np.take(local, wanted, axis=axis)

        shape = (*local.shape[:axis], rows, *local.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(one, batch)


def local_mesh(mesh: Mesh) -> Mesh:
    """A mesh for what a process does by itself (scoring its share): `mesh` if it is alone, else its own devices."""
    return mesh if jax.process_count() == 1 else make_mesh(MeshConfig(), jax.local_devices())


class SamplingLayout(NamedTuple):
    """The sampler's mesh of one process's devices: weights cut over `tensor`, prompts over `data`; and why so."""

    mesh: Mesh
    why: str


def sampling_layout(config: DecoderConfig, dtype: Any, mesh: Mesh, sampling: SamplingConfig, chip: Chip | None = None
                    ) -> SamplingLayout:
    """How this process's devices of `mesh` sample. chip: what they stand for, None to ask them."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    memory = memory_of(devices[0]) if chip is None else chip.hbm_bytes
    tensor, why = choose_ways(config, sampling, dtype, devices, chip or chip_of(devices[0]), memory)
    return SamplingLayout(_sampling_mesh(devices, tensor), why)


def _sampling_mesh(devices: Sequence[Any], tensor: int) -> Mesh:
    """Of one process's devices, which every process lays out alike."""
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor), sorted(devices, key=lambda device: device.id))


class HandOver(NamedTuple):
    """Weights in the sampler's layout. seconds: that it took. bytes: that this process's devices hold of them."""

    params: Params
    seconds: float
    bytes: int


def reshard_for_sampling(params: Params, config: DecoderConfig, dtype: Any, mesh: Mesh) -> HandOver:
    """Weights cast and moved to every process's own `sampling_layout`, from device to device.

    Args:
      params: global arrays, in any layout. mesh: of this process, as `sampling_layout` gives it.
    """
    start, here = time.perf_counter(), param_shardings(config, mesh, PRESETS["sampling"])
    if jax.process_count() == 1:
        moved = jax.device_put(cast(params, dtype), here)
    else:
        everywhere = side_by_side(jax.tree.leaves(params)[0].sharding.device_set, mesh.shape["tensor"])
        moved = jax.device_put(cast(params, dtype), param_shardings(config, everywhere, PRESETS["sampling"]))
        moved = jax.tree.map(_own, moved, here)
    jax.block_until_ready(moved)
    size = sum(shard.data.nbytes for x in jax.tree.leaves(moved) for shard in x.addressable_shards)
    return HandOver(moved, time.perf_counter() - start, size)


def side_by_side(devices: Iterable[Any], tensor: int) -> Mesh:
    """The sampling meshes of all processes as one, along `data`.

    A mesh made of all devices at once would not do: it lies along the network's lines, which cross processes, so that a
    device would have another part of a weight than in its process's own mesh.
    """
    by_process: dict[int, list[Any]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    meshes = [_sampling_mesh(some, tensor) for _, some in sorted(by_process.items())]
    first = meshes[0]
    return Mesh(np.concatenate([mesh.devices for mesh in meshes]), first.axis_names, axis_types=first.axis_types)


def _own(x: jax.Array, here: NamedSharding) -> jax.Array:
    """A global array's parts in this process as an array of its own, whose devices must have the same parts of it."""
    there, wanted = x.sharding.addressable_devices_indices_map(x.shape), here.addressable_devices_indices_map(x.shape)
    if there != wanted:
        raise RuntimeError(f"devices have {there} of an array {x.shape} and should have {wanted}: the meshes of all "
                           "processes and of this one do not fit together. It is a fault of the program; report it")
    return jax.make_array_from_single_device_arrays(x.shape, here, [shard.data for shard in x.addressable_shards])
