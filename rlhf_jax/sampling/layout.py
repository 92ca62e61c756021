"""Where weights lie while sampling. Every token reads all of them, so they had better not come over the network.

Cut over `fsdp` as in training, each step of decoding gathers the whole model; for Llama-3-8B on 8 TPU v5p chips that is
five times what reading it from local memory takes. So weights are whole on every device (but for the `tensor` axis)
where a device's memory holds them beside the caches and the trainer's own, and stay cut where it does not.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models import DecoderConfig, count_params
from rlhf_jax.parallel import PRESETS, batch_ways, param_shardings
from rlhf_jax.parallel.accelerators import memory_of

SHARE = 0.85
"""Of a device's memory, what weights and caches may take."""


def cache_bytes(config: DecoderConfig, slots: int, lanes: int, prompt: int, response: int, width: int) -> int:
    """Bytes of all prompts' and all lanes' keys and values, over all devices."""
    return 2 * config.layers * config.kv_heads * config.head_dim * width * slots * (prompt + lanes * response)


def weights_stay_whole(config: DecoderConfig, mesh: Mesh, dtype: Any, caches: float, memory: float | None) -> bool:
    """Whether each device of `mesh` can hold the weights whole (over `tensor`).

    Args:
      caches: bytes over all devices; they count twice, since a block of decoding may copy them.
      memory: bytes of a device; None to ask it. A CPU's devices share one memory, so there nothing is repeated.
    """
    memory = memory_of(mesh.devices.flat[0]) if memory is None else memory
    if memory is None or batch_ways(mesh) == 1:
        return False
    params = count_params(config)
    whole = params * jnp.dtype(dtype).itemsize / mesh.shape["tensor"]
    trainer = params * jnp.dtype(jnp.float32).itemsize * mesh.shape["data"] / mesh.size
    cut = batch_ways(mesh) * (mesh.shape["tensor"] if config.kv_heads % mesh.shape["tensor"] == 0 else 1)
    return whole + trainer + 2 * caches / cut <= SHARE * memory


def sampling_shardings(config: DecoderConfig, mesh: Mesh, whole: bool) -> Any:
    """Tree of shardings of the weights while sampling."""
    return param_shardings(config, mesh, PRESETS["sampling" if whole else "fsdp"])


def prefill_rows(slots: int, mesh: Mesh) -> int:
    """Prompts read at a time: a quarter of the slots, and as many on each device."""
    ways = batch_ways(mesh)
    return math.ceil(max(1, slots // 4) / ways) * ways

