"""LoRA (Hu et al., arXiv 2106.09685) as a second tree beside the frozen weights, in PEFT's names on disk."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.dropout import dropped
from rlhf_jax.models.params import Params, ParamSpec, param_specs

TARGETS = {
    "q_proj": ("attention", "q"), "k_proj": ("attention", "k"), "v_proj": ("attention", "v"),
    "o_proj": ("attention", "o"), "gate_proj": ("mlp", "gate"), "up_proj": ("mlp", "up"), "down_proj": ("mlp", "down"),
}
"""Hugging Face's module name -> where the weight sits in a layer's tree."""


class Dropout(NamedTuple):
    """What an update's input [B, T, in...] loses: keys [B], one a row; rate: scalar, the share that becomes zero."""

    keys: Array
    rate: Array

    def __call__(self, x: Array) -> Array:
        return jax.vmap(dropped, (0, 0, None))(self.keys, x, self.rate)


class LoraWeight(NamedTuple):
    """A weight with its low-rank update: base + scale * a @ b. a: [in..., r], b: [r, out...], scale: scalar.

    dropout: of the update's input, while it is trained.
    """

    base: Array
    a: Array
    b: Array
    scale: Array
    dropout: Dropout | None = None


def lora_specs(config: DecoderConfig, lora: LoraConfig, magnitudes: bool = False) -> dict[str, Any]:
    """`ParamSpec` tree of the adapter: {module: {"a": [L, in..., r], "b": [L, r, out...]}}, PEFT names included.

    magnitudes: with "m", [L, out...], as DoRA has it (see `merge_lora`).
    """
    base = param_specs(config)["layers"]
    specs: dict[str, Any] = {}
    for module in lora.lora_target_modules:
        room, name = TARGETS[module]
        spec: ParamSpec = base[room][name]
        if spec.stacked > 1:
            raise ValueError(f"lora_target_modules has {module!r}, of which {config.family} has {config.experts} "
                             "experts; adapt the attention projections (q_proj, k_proj, v_proj, o_proj) or train all "
                             "weights")
        split = 1 + (spec.inputs or 0)
        inputs, outputs = spec.shape[1:split], spec.shape[split:]
        stem = "base_model.model." + spec.hf_name.removesuffix(".weight")
        specs[module] = {
            "a": ParamSpec((config.layers, *inputs, lora.lora_r), (*spec.axes[:split], "rank"), "normal",
                           stem + ".lora_A.weight", len(inputs)),
            "b": ParamSpec((config.layers, lora.lora_r, *outputs), ("layers", "rank", *spec.axes[split:]),
                           "zeros", stem + ".lora_B.weight", 1, spec.fused),
        }
        if magnitudes:
            specs[module]["m"] = ParamSpec((config.layers, *outputs), ("layers", *spec.axes[split:]), "ones",
                                           stem + ".lora_magnitude_vector", 0, spec.fused)
    return specs


def init_lora(key: Array, config: DecoderConfig, lora: LoraConfig, dtype: Any = jnp.float32) -> Params:
    """One factor normal with variance 1 / (fan in), the other zero: the adapted model starts as the base model."""
    specs = lora_specs(config, lora)
    adapter: Params = {}
    for index, (module, pair) in enumerate(specs.items()):
        shape = pair[lora.lora_init].shape
        fan_in = math.prod(shape[1:-1]) if lora.lora_init == "a" else lora.lora_r
        drawn = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32) * fan_in**-0.5
        zeros = {name: jnp.zeros(spec.shape, dtype) for name, spec in pair.items()}
        adapter[module] = {**zeros, lora.lora_init: drawn.astype(dtype)}
    return adapter


def _mapped(params: Params, adapter: Params, fn: Any) -> Params:
    layers = {name: dict(value) if isinstance(value, dict) else value for name, value in params["layers"].items()}
    for module, pair in adapter.items():
        room, name = TARGETS[module]
        layers[room][name] = fn(layers[room][name], **pair)
    return {**params, "layers": layers}


def with_lora(params: Params, adapter: Params, scale: float) -> Params:
    """The tree `forward` takes: targeted weights become `LoraWeight`s; nothing is copied."""

    def attach(base: Array, a: Array, b: Array) -> LoraWeight:
        scales = jnp.full((base.shape[0],), scale, jnp.float32)
        return LoraWeight(base, a.astype(base.dtype), b.astype(base.dtype), scales)

    return _mapped(params, adapter, attach)


def with_dropout(params: Params, keys: Array, rate: float) -> Params:
    """The tree `forward` takes for rows with `keys` [B]: each `LoraWeight` of each layer draws what it drops anew."""
    number = itertools.count()

    def attach(weight: Any) -> Any:
        if not isinstance(weight, LoraWeight):
            return weight
        layers = len(weight.scale)
        places = jnp.arange(layers) + layers * next(number)
        drawn = jax.vmap(lambda place: jax.vmap(lambda key: jax.random.fold_in(key, place))(keys))(places)
        return weight._replace(dropout=Dropout(drawn, jnp.full((layers,), rate, jnp.float32)))

    return jax.tree.map(attach, params, is_leaf=lambda x: isinstance(x, LoraWeight))


def merge_lora(params: Params, adapter: Params, scale: float) -> Params:
    """Plain weights with the update added (computed in float32).

    Where the adapter has magnitudes m, each output's column of the sum gets that length: DoRA (Liu et al., arXiv
    2402.09353, eq. 5).
    """

    def merge(base: Array, a: Array, b: Array, m: Array | None = None) -> Array:
        update = jax.vmap(lambda x, y: jnp.tensordot(x, y, axes=1))(a.astype(jnp.float32), b.astype(jnp.float32))
        merged = base.astype(jnp.float32) + scale * update
        if m is not None:
            length = jnp.sqrt(jnp.sum(jnp.square(merged), axis=tuple(range(1, a.ndim - 1)), keepdims=True))
            merged *= m.astype(jnp.float32).reshape(length.shape) / length
        return merged.astype(base.dtype)

    return _mapped(params, adapter, merge)
