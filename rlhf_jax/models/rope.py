"""Rotary position embedding (Su et al., arXiv 2104.09864), in Hugging Face's half-split layout."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from rlhf_jax.models.config import DecoderConfig


def frequencies(config: DecoderConfig) -> np.ndarray:
    """[Dh / 2] float32 angular frequencies, Llama-3.1 scaling applied where the config asks for it."""
    freqs = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        wavelength = 2 * math.pi / freqs
        low = scaling.original_max_position / scaling.low_freq_factor
        high = scaling.original_max_position / scaling.high_freq_factor
        smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor)
        between = (1 - smooth) * freqs / scaling.factor + smooth * freqs
        freqs = np.where(wavelength > low, freqs / scaling.factor, np.where(wavelength < high, freqs, between))
    return freqs.astype(np.float32)


def rope_tables(config: DecoderConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin for `positions` [...]: two [..., Dh / 2] float32 arrays."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, tables: tuple[Array, Array]) -> Array:
    """Rotates x [..., heads, Dh] by the tables [..., Dh / 2] of its positions; computed in float32."""
    cos, sin = (t[..., None, :] for t in tables)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
