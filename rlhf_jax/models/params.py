"""One table describes every weight: `ParamSpec`. Initial values, sharding, counts and Hugging Face names follow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.config import DecoderConfig, Gate
from rlhf_jax.models.families import FAMILIES, NAMES

Params = dict[str, Any]
"""A nested dict of arrays: the weights, wherever they are used (trainer, sampler, reference, reward model)."""


class ParamSpec(NamedTuple):
    """What there is to know about one weight.

    shape: with the stacked axes ("layers", then "experts") first. axes: logical names, one a dimension.
    init: "normal", "output" (normal, scaled down by depth), "ones" or "zeros".
    hf_name: tensor name, `{layer}` and `{expert}` for their numbers.
    inputs: None where Hugging Face keeps the same shape; else the number of leading input axes of a projection
      [in..., out...] that Hugging Face stores as [prod(out), prod(in)]; 0 for a plain [prod(out)] vector.
    fused: (first row, rows of the whole) where the file keeps several weights in one tensor.
    padding: rows at the end of axis 0 that exist here and not in the file.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: str
    hf_name: str
    inputs: int | None = None
    fused: tuple[int, int] | None = None
    padding: int = 0

    @property
    def stacked(self) -> int:
        """How many leading axes count tensors of the file."""
        return sum(axis in STACKED for axis in self.axes[:2])


STACKED = ("layers", "experts")


def is_spec(x: Any) -> bool:
    return isinstance(x, ParamSpec)


def _attention_specs(c: DecoderConfig, weight: Callable[..., ParamSpec]) -> dict[str, ParamSpec]:
    heads = {"q": (c.heads, "heads"), "k": (c.kv_heads, "kv_heads"), "v": (c.kv_heads, "kv_heads")}
    specs = {key: weight(key, (c.embed, count, c.head_dim), ("embed", axis, "head_dim"))
             for key, (count, axis) in heads.items()}
    specs["o"] = weight("o", (c.heads, c.head_dim, c.embed), ("heads", "head_dim", "embed"), inputs=2, init="output")
    if c.qkv_bias:
        specs |= {f"{key}_bias": weight(f"{key}_bias", (count, c.head_dim), (axis, "head_dim"), inputs=0, init="zeros")
                  for key, (count, axis) in heads.items()}
    for key in "qk" if c.qk_norm != "none" else "":
        count, axis = heads[key]
        shape, axes = ((c.head_dim,), ("head_dim",)) if c.qk_norm == "head" else \
            ((count, c.head_dim), (axis, "head_dim"))
        specs[f"{key}_norm"] = weight(f"{key}_norm", shape, axes, inputs=0)
    return specs


def _mlp_specs(c: DecoderConfig, weight: Callable[..., ParamSpec]) -> dict[str, ParamSpec]:
    many, axis = ((c.experts,), ("experts",)) if c.experts else ((), ())
    specs = {key: weight(key, (*many, c.embed, c.mlp), (*axis, "embed", "mlp")) for key in ("gate", "up")}
    specs["down"] = weight("down", (*many, c.mlp, c.embed), (*axis, "mlp", "embed"), init="output")
    if c.experts:
        specs["router"] = weight("router", (c.embed, c.experts), ("embed", "router"))
    return specs


def _fuse(specs: dict[str, ParamSpec]) -> dict[str, ParamSpec]:
    """Weights of the same name share a tensor of the file: one after another, in the order given."""
    rows = {key: math.prod(spec.shape[spec.stacked + (spec.inputs or 0):]) for key, spec in specs.items()}
    first, whole = {}, Counter[str]()
    for key, spec in specs.items():
        first[key] = whole[spec.hf_name]
        whole[spec.hf_name] += rows[key]
    return {key: spec if whole[spec.hf_name] == rows[key] else
            spec._replace(fused=(first[key], whole[spec.hf_name])) for key, spec in specs.items()}


def _gate_specs(c: DecoderConfig, gate: Gate) -> dict[str, Any]:
    widths = [c.embed, *[gate.hidden] * gate.layers, c.num_labels]
    axes = ["embed", *["gate"] * gate.layers, "labels"]
    layers: dict[str, Any] = {f"layer_{i}": {
        "weight": ParamSpec(tuple(widths[i : i + 2]), tuple(axes[i : i + 2]), "normal", f"gating.layers.{i}.weight", 1),
        "bias": ParamSpec((widths[i + 1],), (axes[i + 1],), "zeros", f"gating.layers.{i}.bias"),
    } for i in range(gate.layers + 1)}
    scale = ParamSpec((1,), ("gate",), "ones", "gating.logit_scale")
    transform = ParamSpec((c.num_labels, c.num_labels), ("labels", "labels"), "normal", "reward_transform_matrix")
    return {"gating": {**layers, "logit_scale": scale}, "reward_transform": transform}


def param_specs(config: DecoderConfig) -> dict[str, Any]:
    """The tree of `ParamSpec`s of a decoder; the parameter tree has the same keys."""
    c = config
    names = {**NAMES, **FAMILIES[c.family].names}
    norm_init = "zeros" if c.norm_offset else "ones"  # a scale of one, whatever the family adds to what it stores

    def weight(key: str, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1, init: str = "normal"
               ) -> ParamSpec:
        init = norm_init if key.endswith("norm") else init
        return ParamSpec((c.layers, *shape), ("layers", *axes), init, "model.layers.{layer}." + names[key], inputs)

    layers: dict[str, Any] = {"attention": _fuse(_attention_specs(c, weight)), "mlp": _fuse(_mlp_specs(c, weight))}
    for key in ("attention", "mlp"):
        if c.norms in ("pre", "both"):
            layers[f"{key}_norm"] = weight(f"{key}_norm", (c.embed,), ("embed",), 0)
        if c.norms in ("post", "both"):
            layers[f"{key}_post_norm"] = weight(f"{key}_post_norm", (c.embed,), ("embed",), 0)
    table = ParamSpec((c.vocab_rows, c.embed), ("vocab", "embed"), "normal", "model.embed_tokens.weight",
                      padding=c.vocab_rows - c.vocab_size)
    final = ParamSpec((c.embed,), ("embed",), norm_init, "model.norm.weight")
    specs: dict[str, Any] = {"embed": table, "layers": layers, "final_norm": final}
    if c.is_classifier:
        name = "score.weight" if c.gate is None else "regression_layer.weight"
        specs["score"] = ParamSpec((c.num_labels, c.embed), ("labels", "embed"), "normal", name)
        if c.gate is not None:
            specs |= _gate_specs(c, c.gate)
    elif not c.tie_embeddings:
        specs["head"] = table._replace(hf_name="lm_head.weight")
    return specs


def map_specs(fn: Callable[..., Any], specs: dict[str, Any], *trees: Any) -> Any:
    """`jax.tree.map` over a spec tree (and parallel trees)."""
    return jax.tree.map(fn, specs, *trees, is_leaf=is_spec)


def count_params(config: DecoderConfig) -> int:
    """Weights of the model as it is published: padding of the vocabulary does not count."""
    leaves = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
    return sum(math.prod((spec.shape[0] - spec.padding, *spec.shape[1:])) for spec in leaves)


def init_params(key: Array, config: DecoderConfig, dtype: Any = jnp.float32) -> Params:
    """Fresh weights: normal(0, initializer_range), output projections scaled by 1/sqrt(2 L) (GPT-2), norms one."""
    specs = param_specs(config)
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
    return jax.tree.unflatten(tree, [_init_weight(key, i, spec, config).astype(dtype) for i, spec in enumerate(leaves)])


def _init_weight(key: Array, index: int, spec: ParamSpec, config: DecoderConfig) -> Array:
    """The fresh value of the `index`-th weight of the table, float32."""
    if spec.init in ("ones", "zeros"):
        return jnp.full(spec.shape, float(spec.init == "ones"), jnp.float32)
    scale = config.initializer_range / (math.sqrt(2 * config.layers) if spec.init == "output" else 1.0)
    return scale * jax.random.normal(jax.random.fold_in(key, index), spec.shape, jnp.float32)


def cast(params: Params, dtype: Any) -> Params:
    """Floating-point leaves in another dtype (a float32 master copy to its bfloat16 working copy)."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def output_head(params: Params) -> Array:
    """[V, D] output embedding, tied or not; V counts the padded rows."""
    return params["head"] if "head" in params else params["embed"]


def as_classifier(params: Params, key: Array, config: DecoderConfig) -> Params:
    """A language model's backbone under a fresh scalar head (`config` already has `num_labels`)."""
    specs = param_specs(config)
    names = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)]
    score = jax.device_get(_init_weight(key, names.index("score"), specs["score"], config))
    return with_score(params, score.astype(params["embed"].dtype))


def with_score(params: Params, score: Any) -> Params:
    """The weights under this head of a classifier, [labels, D], in the place of whatever head there is."""
    return {name: value for name, value in params.items() if name not in ("head", "score")} | {"score": score}


def unstacked(params: Params) -> Params:
    """The tree with a tuple of one tree a layer under "layers": GPUs copy a layer out of a stacked weight at each use,
    because their matrix products cannot read from the middle of an array that a loop walks through."""
    layers = params["layers"]
    count = jax.tree.leaves(layers)[0].shape[0]
    return {**params, "layers": tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count))}


def merged(params: Params) -> Params:
    """The `unstacked` tree with one weight for the products that read the same input, as XLA for GPUs would have it,
    which otherwise puts them side by side anew at each use.

    `qkv` [D, K, H / K + 2, Dh] holds a key head's queries, its key and its value; `gate_up` is [D, 2, M]. Experts stay
    apart.
    """

    def by_head(q: Array, k: Array, v: Array) -> Array:  # of a weight, or of its scales in eight bits
        *inputs, heads, width = k.shape
        q = q.reshape(*inputs, heads, -1, width)
        return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)

    def layer(weights: Params) -> Params:
        attention, mlp = dict(weights["attention"]), dict(weights["mlp"])
        attention["qkv"] = jax.tree.map(by_head, *(attention.pop(name) for name in "qkv"))
        if jax.tree.leaves(mlp["gate"])[0].ndim == 2:
            mlp["gate_up"] = jax.tree.map(lambda gate, up: jnp.stack([gate, up], axis=-2), mlp.pop("gate"),
                                          mlp.pop("up"))
        return {**weights, "attention": attention, "mlp": mlp}

    return {**params, "layers": tuple(map(layer, params["layers"]))}
