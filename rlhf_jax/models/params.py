"""One table describes every weight: `ParamSpec`. Initial values, sharding, counts and Hugging Face names follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.config import DecoderConfig

Params = dict[str, Any]
"""A nested dict of arrays: the weights, wherever they are used (trainer, sampler, reference, reward model)."""


class ParamSpec(NamedTuple):
    """What there is to know about one weight.

    shape: with the stacked layers first where `axes[0]` is "layers". axes: logical names, one a dimension.
    init: "normal", "ones" or "zeros". hf_name: tensor name, `{layer}` for the layer number.
    inputs: None where Hugging Face keeps the same shape; else the number of leading input axes of a projection
      [in..., out...] that Hugging Face stores as [prod(out), prod(in)]; 0 for a plain [prod(out)] vector.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: str
    hf_name: str
    inputs: int | None = None


def is_spec(x: Any) -> bool:
    return isinstance(x, ParamSpec)


def param_specs(config: DecoderConfig) -> dict[str, Any]:
    """The tree of `ParamSpec`s of a decoder; the parameter tree has the same keys."""
    c, n = config, config.layers
    layer = "model.layers.{layer}."

    def linear(shape: tuple[int, ...], axes: tuple[str, ...], name: str, inputs: int = 1) -> ParamSpec:
        return ParamSpec((n, *shape), ("layers", *axes), "normal", layer + name + ".weight", inputs)

    def vector(shape: tuple[int, ...], axes: tuple[str, ...], init: str, name: str) -> ParamSpec:
        return ParamSpec((n, *shape), ("layers", *axes), init, layer + name, 0)

    attention = {
        "q": linear((c.embed, c.heads, c.head_dim), ("embed", "heads", "head_dim"), "self_attn.q_proj"),
        "k": linear((c.embed, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "self_attn.k_proj"),
        "v": linear((c.embed, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "self_attn.v_proj"),
        "o": linear((c.heads, c.head_dim, c.embed), ("heads", "head_dim", "embed"), "self_attn.o_proj", inputs=2),
    }
    if c.qkv_bias:
        for key, heads, axis in (("q", c.heads, "heads"), ("k", c.kv_heads, "kv_heads"), ("v", c.kv_heads, "kv_heads")):
            attention[key + "_bias"] = vector((heads, c.head_dim), (axis, "head_dim"), "zeros",
                                              f"self_attn.{key}_proj.bias")
    if c.qk_norm:
        for key in "qk":
            attention[key + "_norm"] = vector((c.head_dim,), ("head_dim",), "ones", f"self_attn.{key}_norm.weight")
    specs: dict[str, Any] = {
        "embed": ParamSpec((c.vocab_size, c.embed), ("vocab", "embed"), "normal", "model.embed_tokens.weight"),
        "layers": {
            "attention": attention,
            "attention_norm": vector((c.embed,), ("embed",), "ones", "input_layernorm.weight"),
            "mlp": {
                "gate": linear((c.embed, c.mlp), ("embed", "mlp"), "mlp.gate_proj"),
                "up": linear((c.embed, c.mlp), ("embed", "mlp"), "mlp.up_proj"),
                "down": linear((c.mlp, c.embed), ("mlp", "embed"), "mlp.down_proj"),
            },
            "mlp_norm": vector((c.embed,), ("embed",), "ones", "post_attention_layernorm.weight"),
        },
        "final_norm": ParamSpec((c.embed,), ("embed",), "ones", "model.norm.weight"),
    }
    if c.is_classifier:
        specs["score"] = ParamSpec((c.num_labels, c.embed), ("labels", "embed"), "normal", "score.weight")
    elif not c.tie_embeddings:
        specs["head"] = ParamSpec((c.vocab_size, c.embed), ("vocab", "embed"), "normal", "lm_head.weight")
    return specs


def map_specs(fn: Callable[..., Any], specs: dict[str, Any], *trees: Any) -> Any:
    """`jax.tree.map` over a spec tree (and parallel trees)."""
    return jax.tree.map(fn, specs, *trees, is_leaf=is_spec)


def count_params(config: DecoderConfig) -> int:
    leaves = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
    return sum(math.prod(spec.shape) for spec in leaves)


def init_params(key: Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Fresh weights: normal(0, initializer_range), output projections scaled by 1/sqrt(2 L) (GPT-2), norms one."""
    specs = param_specs(config)
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)

    def one(index: int, spec: ParamSpec) -> Array:
        if spec.init != "normal":
            return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0, dtype)
        scale = config.initializer_range
        if spec.hf_name.endswith(("o_proj.weight", "down_proj.weight")):
            scale /= math.sqrt(2 * config.layers)
        return (scale * jax.random.normal(jax.random.fold_in(key, index), spec.shape, jnp.float32)).astype(dtype)

    return jax.tree.unflatten(tree, [one(i, spec) for i, spec in enumerate(leaves)])


def cast(params: Params, dtype: Any) -> Params:
    """Floating-point leaves in another dtype (a float32 master copy to its bfloat16 working copy)."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def output_head(params: Params) -> Array:
    """[V, D] output embedding, tied or not."""
    return params["head"] if "head" in params else params["embed"]


def as_classifier(params: Params, key: Array, config: DecoderConfig) -> Params:
    """A language model's backbone under a fresh scalar head (`config` already has `num_labels`)."""
    score = init_params(key, config)["score"]
    backbone = {name: value for name, value in params.items() if name not in ("head", "score")}
    return {**backbone, "score": score.astype(params["embed"].dtype)}
