"""Rotary position embedding (Su et al., arXiv 2104.09864), in Hugging Face's half-split layout."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from rlhf_jax.models.config import Rope


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """[Dr / 2] float32 angular frequencies of the Dr = fraction * Dh rotated dimensions, stretched as `rope` says."""
    rotated = int(rope.fraction * head_dim)
    freqs = rope.theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if rope.kind == "linear":
        freqs = freqs / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / freqs
        low = rope.original_max_position / rope.low_freq_factor
        high = rope.original_max_position / rope.high_freq_factor
        smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor)
        between = (1 - smooth) * freqs / rope.factor + smooth * freqs
        freqs = np.where(wavelength > low, freqs / rope.factor, np.where(wavelength < high, freqs, between))
    if rope.kind == "yarn":
        freqs = _yarn(freqs, rope, rotated)
    return freqs.astype(np.float32)


def _yarn(freqs: np.ndarray, rope: Rope, rotated: int) -> np.ndarray:
    """YaRN's frequencies: kept up to the dimension that turns `beta_fast` times over the first context, divided by
    `factor` from the one that turns `beta_slow` times, a ramp between; whole dimensions, as transformers takes them."""

    def dimension(turns: float) -> float:
        longest = rope.original_max_position / (turns * 2 * math.pi)
        return rotated * math.log(longest) / (2 * math.log(rope.theta))

    low, high = max(math.floor(dimension(rope.beta_fast)), 0), min(math.ceil(dimension(rope.beta_slow)), rotated - 1)
    ramp = np.clip((np.arange(rotated // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return freqs / rope.factor * ramp + freqs * (1 - ramp)


def rope_tables(rope: Rope, head_dim: int, positions: Array) -> tuple[Array, Array]:
    """cos and sin for `positions` [...]: two [..., Dr / 2] float32 arrays."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(rope, head_dim)
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def rotate(x: Array, tables: tuple[Array, Array]) -> Array:
    """Rotates the first Dr dimensions of x [..., heads, Dh] by the tables [..., Dr / 2]; computed in float32."""
    cos, sin = (t[..., None, :] for t in tables)
    half = cos.shape[-1]
    wide = x[..., : 2 * half].astype(jnp.float32)
    a, b = wide[..., :half], wide[..., half:]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return turned if 2 * half == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)
