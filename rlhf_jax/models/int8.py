"""Weights in eight bits for decoding, whose time is that of reading them: int8 with a scale for each output.

Symmetric and rounded to the nearest, as LLM.int8() (Dettmers et al., arXiv 2208.07339, section 2) has it for weights;
what they are multiplied with stays in the compute dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.params import Params, ParamSpec, is_spec, param_specs

LARGEST = 127.0


class Int8Weight(NamedTuple):
    """A weight as values * scale. values: int8 [in..., out...]. scale: float32 [out...]."""

    values: Array
    scale: Array


def int8_rows(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x in int8, and the float32 scale of each place of the other axes, which has no `axes`: the largest |x| is 127."""
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes) / LARGEST
    spread = jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), axes)
    return jnp.round(wide / spread).astype(jnp.int8), scale


def in_int8(params: Params, config: DecoderConfig) -> Params:
    """The tree with `Int8Weight`s for the projections of its layers and an output head of its own.

    Norms, biases, routers, experts and the embedding stay: of the last a token reads a row, and experts are chosen.
    """

    def projection(spec: ParamSpec, weight: Array) -> Any:
        if spec.init not in ("normal", "output") or spec.axes[-1] == "router" or spec.stacked > 1:
            return weight
        return Int8Weight(*int8_rows(weight, tuple(range(1, 1 + (spec.inputs or 0)))))

    layers = jax.tree.map(projection, param_specs(config)["layers"], params["layers"], is_leaf=is_spec)
    head = {"head": Int8Weight(*int8_rows(params["head"], (1,)))} if "head" in params else {}
    return {**params, "layers": layers, **head}
