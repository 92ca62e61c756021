"""Weights in eight bits for decoding, whose time is that of reading them: int8 with a scale for each output.

Symmetric and rounded to the nearest, as LLM.int8() (Dettmers et al., arXiv 2208.07339, section 2) has it for weights;
what they are multiplied with stays in the compute dtype.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


def _converted(spec: ParamSpec) -> bool:
    """A projection of the layers: no norm, bias, router or expert."""
    return spec.init in ("normal", "output") and spec.axes[-1] != "router" and spec.stacked == 1


def count_int8(config: DecoderConfig) -> int:
    """Weights that `int8_part` converts."""
    specs = param_specs(config)
    layers = sum(math.prod(spec.shape) for spec in jax.tree.leaves(specs["layers"], is_leaf=is_spec)
                 if _converted(spec))
    return layers + (math.prod(specs["head"].shape) if "head" in specs else 0)


def int8_part(params: Params, config: DecoderConfig) -> Params:
    """`Int8Weight`s of the projections of the layers and of an output head of its own, and nothing else.

    Norms, biases, routers, experts and the embedding stay as they are: of the last a token reads a row, and experts are
    chosen.
    """
    layers = {room: {name: Int8Weight(*int8_rows(params["layers"][room][name], tuple(range(1, 1 + (spec.inputs or 0)))))
                     for name, spec in specs.items() if _converted(spec)}
              for room, specs in param_specs(config)["layers"].items() if isinstance(specs, dict)}
    return {"layers": layers, **({"head": Int8Weight(*int8_rows(params["head"], (1,)))} if "head" in params else {})}


def with_part(params: Params, part: Params) -> Params:
    """The tree with what `int8_part` converted; all else is the same arrays."""
    layers = {room: {**weights, **part["layers"][room]} if room in part["layers"] else weights
              for room, weights in params["layers"].items()}
    return {**params, **part, "layers": layers}


def in_int8(params: Params, config: DecoderConfig) -> Params:
    """The tree with `int8_part` in its place."""
    return with_part(params, int8_part(params, config))
