"""Which attention decodes where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.sharding import Mesh

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models import DecoderConfig
from rlhf_jax.models.attention import KeyValues
from rlhf_jax.sampling.cache import scatter_pages, store_pages
from rlhf_jax.sampling.lanes import lanes_attention
from rlhf_jax.sampling.paged import paged_lanes, read_pages
from rlhf_jax.sampling.tpu_pages import LINE, fetch_pages


class PagedAttention(NamedTuple):
    """How decoding attends where responses lie in pages.

    attend: `lanes.lanes_attention`, or what gives the same.
    append: stores a block's tokens, `cache.scatter_pages` or what does the same.
    apart: whether layers are taken apart once a call, because XLA would copy a layer's weights for each token.
    """

    attend: Callable[..., Array]
    append: Callable[..., KeyValues]
    apart: bool


def paged_attention(mesh: Mesh, config: DecoderConfig, sampling: SamplingConfig, cache_dtype: Any
                    ) -> PagedAttention | None:
    """By kernels on GPUs, whatever there is room for; elsewhere where less than all is reserved, by a kernel on TPUs.
    None for room in every lane, which XLA reads whole."""
    platform, whole = mesh.devices.flat[0].platform, cache_dtype != jnp.int8
    if platform == "gpu" and whole and config.head_dim == pl.next_power_of_2(config.head_dim) >= 16:
        return PagedAttention(lanes_attention, scatter_pages, apart=True)
    if sampling.cache_share == 1:
        return None
    fits = platform == "tpu" and whole and config.head_dim % LINE == 0
    return PagedAttention(partial(paged_lanes, read=fetch_pages if fits else read_pages),
                          store_pages if platform == "tpu" else scatter_pages, apart=False)
