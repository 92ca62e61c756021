"""The one decoder. Parameters are a plain tree, the model is a function, layers run under `lax.scan`.

Trainer, sampler, reference and reward models all call `forward`; they differ only in the `attend` they pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.attention import WHOLE_ROWS, RowAttention, RowIds, score_rule, select_windowed
from rlhf_jax.models.blocked import RESULTS
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.experts import mixture_of_experts
from rlhf_jax.models.linear import dense
from rlhf_jax.models.params import Params
from rlhf_jax.models.rope import rope_tables, rotate

Attend = Callable[[Array, Array, Array, Any, bool | Array], tuple[Array, Any]]
"""(q [..., H, Dh], k [..., K, Dh], v, this layer's cache, whether it attends through the window: see `select_windowed`)
-> (output [..., H, Dh], what to keep for this layer)."""
Constrain = Callable[[Array, tuple[str | None, ...]], Array]
"""Pins an activation's sharding by the logical names of its axes; the identity where there is no mesh."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(RESULTS)),
}


def unconstrained(x: Array, axes: tuple[str | None, ...]) -> Array:
    """The `Constrain` of a lone device."""
    del axes
    return x


def rms_norm(x: Array, scale: Array, eps: float, offset: float = 0.0) -> Array:
    """x / rms(x) * (scale + offset) over the last axis, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


def _query_key_norm(x: Array, scale: Array, config: DecoderConfig) -> Array:
    """x [..., heads, Dh] normed, each head alone or all heads as one vector."""
    if config.qk_norm == "head":
        return rms_norm(x, scale, config.norm_eps, config.norm_offset)
    flat = rms_norm(x.reshape(*x.shape[:-2], -1), scale.reshape(-1), config.norm_eps, config.norm_offset)
    return flat.reshape(x.shape)


def _mlp(x: Array, mlp: Params, config: DecoderConfig) -> Array:
    activate = ACTIVATIONS[config.activation]
    if config.experts:
        return mixture_of_experts(x, mlp, config.experts_per_token, config.normalize_experts, activate)
    if "gate_up" in mlp:
        both = dense(x, mlp["gate_up"])
        gate, up = both[..., 0, :], both[..., 1, :]
    else:
        gate, up = dense(x, mlp["gate"]), dense(x, mlp["up"])
    return dense(activate(gate) * up, mlp["down"])


def _queries_keys_values(x: Array, attn: Params) -> tuple[Array, Array, Array]:
    if "qkv" not in attn:
        q, k, v = (dense(x, attn[name]) for name in "qkv")
        return q, k, v
    by_head = dense(x, attn["qkv"])  # [..., K, H / K + 2, Dh]
    q = by_head[..., :-2, :]
    return q.reshape(*x.shape[:-1], -1, q.shape[-1]), by_head[..., -2, :], by_head[..., -1, :]


def _layer(
    x: Array, weights: Params, cache: Any, local: bool | Array, config: DecoderConfig, tables: Any, attend: Attend,
    constrain: Constrain,
) -> tuple[Array, Any]:
    attn = weights["attention"]
    row_axes = ("batch", "seq", "embed")

    def norm(x: Array, name: str) -> Array:  # the table of weights says which norms a family has
        return rms_norm(x, weights[name], config.norm_eps, config.norm_offset) if name in weights else x

    with jax.named_scope("attention"):
        y = norm(x, "attention_norm")
        q, k, v = _queries_keys_values(y, attn)
        if config.qkv_bias:
            q, k, v = q + attn["q_bias"], k + attn["k_bias"], v + attn["v_bias"]
        if config.qk_norm != "none":
            q, k = _query_key_norm(q, attn["q_norm"], config), _query_key_norm(k, attn["k_norm"], config)
        table = select_windowed(local, *tables)
        out, kept = attend(rotate(q, table), rotate(k, table), v, cache, local)
        x = constrain(x + norm(dense(out, attn["o"], inputs=2), "attention_post_norm"), row_axes)
    with jax.named_scope("mlp"):
        y = _mlp(norm(x, "mlp_norm"), weights["mlp"], config)
        x = constrain(x + norm(y, "mlp_post_norm"), row_axes)
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
    constrain: Constrain = unconstrained,
) -> tuple[Array, Any]:
    """Runs the decoder.

    Args:
      params: tree of `param_specs(config)`, in the compute dtype; `unstacked`, its layers are not a loop, and those
        may be `merged`.
      tokens, positions: [B, T] int32.
      attend: attention for this use; gets each layer's slice of `cache`.
      cache: tree with the layers on the leading axis, or None.
      remat: key of `REMAT_POLICIES`, what the backward pass recomputes.
      constrain: see `Constrain`.

    Returns:
      hidden [B, T, D] after the final norm, and what `attend` kept, stacked over the layers.
    """
    x = jnp.take(params["embed"], tokens, axis=0)
    if config.embed_scale:
        x = x * jnp.asarray(math.sqrt(config.embed), x.dtype)
    x = constrain(x, ("batch", "seq", "embed"))
    full = rope_tables(config.rope, config.head_dim, positions)
    windowed = full if config.local_rope is None else rope_tables(config.local_rope, config.head_dim, positions)
    kinds = config.local_layers
    mixed = jnp.asarray(kinds) if len(set(kinds)) == 2 else None

    def body(x: Array, xs: tuple[Params, Any, Any]) -> tuple[Array, Any]:
        local = kinds[0] if mixed is None else xs[2]
        return _layer(x, xs[0], xs[1], local, config, (windowed, full), attend, constrain)

    if REMAT_POLICIES[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    if isinstance(params["layers"], tuple):
        every = []
        for index, weights in enumerate(params["layers"]):
            own = jax.tree.map(lambda stacked, index=index: stacked[index], cache)
            x, some = body(x, (weights, own, kinds[index]))
            every.append(some)
        kept = jax.tree.map(lambda *layers: jnp.stack(layers), *every)
    else:
        x, kept = jax.lax.scan(body, x, (params["layers"], cache, mixed))
    return rms_norm(x, params["final_norm"], config.norm_eps, config.norm_offset), kept


def packed_forward(
    params: Params, config: DecoderConfig, tokens: Array, positions: Array, group_ids: Array, branch_ids: Array,
    *, remat: str = "none", constrain: Constrain = unconstrained, rows: RowAttention = WHOLE_ROWS,
) -> Array:
    """Hidden states [B, T, D] of packed, prefix-shared rows (see `data.packing`). rows: how attention is computed."""
    ids = RowIds(group_ids, branch_ids, positions)
    seen = [rows.prepare(ids, window) for window in (config.window, None)]

    def attend(q: Array, k: Array, v: Array, cache: Any, local: bool | Array) -> tuple[Array, None]:
        del cache
        return rows.attend(q, k, v, select_windowed(local, *seen), **score_rule(config)), None

    return forward(params, config, tokens, positions, attend, remat=remat, constrain=constrain)[0]
