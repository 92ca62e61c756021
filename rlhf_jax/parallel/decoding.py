"""What a token costs the sampler on a host, and over how many of its devices weights are cut for that.

A group of `tensor` devices shares one copy of the weights and pays two all-reduces per layer; the groups share the
lanes. With more devices in a group, fewer bytes of weights are read for each token and more is sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.flops import forward_flops
from rlhf_jax.models.int8 import count_int8
from rlhf_jax.models.params import count_params
from rlhf_jax.parallel.accelerators import Chip

_LOGITS = 8
"""How often the float32 logits of a token are written or read: filters, softmax and the draw."""


class TokenBytes(NamedTuple):
    """Bytes that one device moves to and from its memory for one token of every lane."""

    weights: float
    caches: float
    logits: float


class TokenCost(NamedTuple):
    """One token of every lane of a host whose groups are of `tensor` devices. size: of what a device moves.

    read, compute, reduce: seconds that memory, arithmetic and all-reduces take. The first two overlap; an all-reduce
    waits for what it adds up, and the next layer for it.
    """

    tensor: int
    size: TokenBytes
    read: float
    compute: float
    reduce: float

    @property
    def seconds(self) -> float:
        return max(self.read, self.compute) + self.reduce


class Ways(NamedTuple):
    """Over how many devices the sampler cuts its weights, and why."""

    tensor: int
    why: str


def token_bytes(config: DecoderConfig, sampling: SamplingConfig, dtype: Any, groups: int, tensor: int) -> TokenBytes:
    """Of one device, if all lanes are busy and caches are looked at to their full depth; where they have less room than
    that (`cache_share`), to what there is. groups: share the slots."""
    width = np.dtype(dtype).itemsize
    slots, lanes = math.ceil(sampling.slots / groups), sampling.lanes_each
    cached = slots * ((sampling.prompt_length or 0) + lanes * sampling.max_new_tokens * sampling.cache_share)
    cache_width = width if sampling.cache_dtype == "auto" else np.dtype(sampling.cache_dtype).itemsize
    caches = 2 * config.layers * config.kv_heads * config.head_dim * cache_width * cached
    logits = slots * lanes * config.vocab_rows * 4 * _LOGITS
    weights = count_params(config) * width
    if sampling.weights_dtype == "int8":
        weights -= count_int8(config) * (width - 1)
    return TokenBytes(weights / tensor, caches / tensor, logits / tensor)


def token_cost(config: DecoderConfig, sampling: SamplingConfig, dtype: Any, devices: int, tensor: int, chip: Chip
               ) -> TokenCost:
    """Of a host of so many devices in groups of `tensor`."""
    groups, running = devices // tensor, sampling.in_flight
    size = token_bytes(config, sampling, dtype, groups, tensor)
    depth = (sampling.prompt_length or 0) + sampling.max_new_tokens
    flops = forward_flops(config, running, context=depth, targets=running).total / devices
    activations = math.ceil(running / groups) * config.embed * np.dtype(dtype).itemsize
    return TokenCost(tensor, size, sum(size) / chip.hbm_bandwidth, flops / chip.flops,
                     2 * config.layers * chip.all_reduce(activations, tensor))


def choose_ways(config: DecoderConfig, sampling: SamplingConfig, dtype: Any, devices: Sequence[Any],
                chip: Chip | None, memory: float | None) -> Ways:
    """The ways at which a token costs least, of those that leave half of each device's memory to the caches.

    Key heads and slots must divide. If no number of ways leaves room, it is the largest.

    Args:
      devices: of a host. chip: what is known of one; where its bandwidth is not, the fewest ways that leave room.
      memory: bytes of one; None of devices that do not tell (CPUs), where weights lie whole.
    """
    if memory is None:
        return Ways(1, f"tensor 1: a {devices[0].platform} device tells no memory, so weights lie whole on each")
    count = len(devices)
    even = [1 << power for power in range(count.bit_length())
            if count % (1 << power) == 0 and config.kv_heads % (1 << power) == 0]
    possible = [tensor for tensor in even if sampling.slots % (count // tensor) == 0] or even
    weights = count_params(config) * np.dtype(dtype).itemsize
    weights += count_int8(config) if sampling.weights_dtype == "int8" else 0  # beside the whole ones
    room = [tensor for tensor in possible if weights / tensor <= memory / 2]
    if not room:
        return Ways(possible[-1], f"tensor {possible[-1]}: the most there is, since {_gb(weights)} of weights leave "
                                  f"less than half of {_gb(memory)} to the caches")
    if chip is None:
        return Ways(room[0], f"tensor {room[0]}: the fewest that leave half of {_gb(memory)} to the caches; the "
                             f"bandwidth of a {devices[0].device_kind} is not known")
    costs = sorted((token_cost(config, sampling, dtype, count, tensor, chip) for tensor in room),
                   key=lambda cost: (cost.seconds, cost.tensor))
    return Ways(costs[0].tensor, _why(costs, sampling.in_flight, [t for t in possible if t not in room]))


def _why(costs: Sequence[TokenCost], lanes: int, full: Sequence[int]) -> str:
    best, *others = costs
    words = (f"tensor {best.tensor}: a token of {lanes} lanes takes {_ms(best.seconds)} ({_gb(best.size.weights)} of "
             f"weights and {_gb(best.size.caches)} of caches per device in {_ms(best.read)}, arithmetic "
             f"{_ms(best.compute)}, all-reduces {_ms(best.reduce)})")
    words += "".join(f", at tensor {other.tensor} {_ms(other.seconds)}" for other in others)
    return words + "".join(f", tensor {tensor} leaves the caches too little memory" for tensor in full)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
