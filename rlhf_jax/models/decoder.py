"""The one decoder. Parameters are a plain tree, the model is a function, layers run under `lax.scan`.

Trainer, sampler, reference and reward models all call `forward`; they differ only in the `attend` they pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.attention import attention, packed_mask
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.lora import LoraWeight
from rlhf_jax.models.params import Params
from rlhf_jax.models.rope import rope_tables, rotate

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""(q [..., H, Dh], k [..., K, Dh], v, this layer's cache) -> (output [..., H, Dh], what to keep for this layer)."""
Constrain = Callable[[Array, tuple[str | None, ...]], Array]
"""Pins an activation's sharding by the logical names of its axes; the identity where there is no mesh."""

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    del axes
    return x


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x / rms(x) * scale over the last axis, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def dense(x: Array, weight: Array | LoraWeight, inputs: int = 1) -> Array:
    """Contracts the last `inputs` axes of x with the first `inputs` axes of the weight; low-rank update included."""
    if isinstance(weight, LoraWeight):
        low = jnp.tensordot(x, weight.a, axes=inputs) * weight.scale.astype(x.dtype)
        return jnp.tensordot(x, weight.base, axes=inputs) + jnp.tensordot(low, weight.b, axes=1)
    return jnp.tensordot(x, weight, axes=inputs)


def _layer(
    x: Array, weights: Params, cache: Any, config: DecoderConfig, tables: tuple[Array, Array], attend: Attend,
    constrain: Constrain,
) -> tuple[Array, Any]:
    attn, mlp = weights["attention"], weights["mlp"]
    row_axes = ("batch", "seq", "embed")
    with jax.named_scope("attention"):
        y = rms_norm(x, weights["attention_norm"], config.norm_eps)
        q, k, v = (dense(y, attn[name]) for name in "qkv")
        if config.qkv_bias:
            q, k, v = q + attn["q_bias"], k + attn["k_bias"], v + attn["v_bias"]
        if config.qk_norm:
            q = rms_norm(q, attn["q_norm"], config.norm_eps)
            k = rms_norm(k, attn["k_norm"], config.norm_eps)
        out, kept = attend(rotate(q, tables), rotate(k, tables), v, cache)
        x = constrain(x + dense(out, attn["o"], inputs=2), row_axes)
    with jax.named_scope("mlp"):
        y = rms_norm(x, weights["mlp_norm"], config.norm_eps)
        y = jax.nn.silu(dense(y, mlp["gate"])) * dense(y, mlp["up"])
        x = constrain(x + dense(y, mlp["down"]), row_axes)
    return x, kept


def forward(
    params: Params,
    config: DecoderConfig,
    tokens: Array,
    positions: Array,
    attend: Attend,
    cache: Any = None,
    *,
    remat: str = "none",
    constrain: Constrain = _unconstrained,
) -> tuple[Array, Any]:
    """Runs the decoder.

    Args:
      params: tree of `param_specs(config)`, in the compute dtype.
      tokens, positions: [B, T] int32.
      attend: attention for this use; gets each layer's slice of `cache`.
      cache: tree with the layers on the leading axis, or None.
      remat: key of `REMAT_POLICIES`, what the backward pass recomputes.
      constrain: see `Constrain`.

    Returns:
      hidden [B, T, D] after the final norm, and what `attend` kept, stacked over the layers.
    """
    x = constrain(jnp.take(params["embed"], tokens, axis=0), ("batch", "seq", "embed"))
    tables = rope_tables(config, positions)

    def body(x: Array, xs: tuple[Params, Any]) -> tuple[Array, Any]:
        return _layer(x, xs[0], xs[1], config, tables, attend, constrain)

    if REMAT_POLICIES[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    x, kept = jax.lax.scan(body, x, (params["layers"], cache))
    return rms_norm(x, params["final_norm"], config.norm_eps), kept


def packed_forward(
    params: Params, config: DecoderConfig, tokens: Array, positions: Array, group_ids: Array, branch_ids: Array,
    *, remat: str = "none", constrain: Constrain = _unconstrained,
) -> Array:
    """Hidden states [B, T, D] of packed, prefix-shared rows (see `data.packing`)."""
    window = None if config.window is None else jnp.asarray(config.window, jnp.int32)
    mask = packed_mask(group_ids, branch_ids, positions, window)

    def attend(q: Array, k: Array, v: Array, cache: Any) -> tuple[Array, None]:
        del cache
        return attention(q, k, v, mask), None

    return forward(params, config, tokens, positions, attend, remat=remat, constrain=constrain)[0]


def score_heads(params: Params, hidden: Array) -> Array:
    """[..., labels] float32 outputs of the scalar head(s) at hidden [..., D] (kept float32: bfloat16 scores tie)."""
    return jnp.einsum("...d,ld->...l", hidden.astype(jnp.float32), params["score"].astype(jnp.float32))
