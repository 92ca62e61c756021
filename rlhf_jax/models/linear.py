"""The matrix products of the decoder: plain weights, weights with a low-rank update, and weights in eight bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.int8 import Int8Weight
from rlhf_jax.models.lora import LoraWeight


def dense(x: Array, weight: Array | LoraWeight | Int8Weight, inputs: int = 1) -> Array:
    """Contracts the last `inputs` axes of x with the first `inputs` axes of the weight; low-rank update included."""
    if isinstance(weight, LoraWeight):
        seen = x if weight.dropout is None else weight.dropout(x)
        low = (jnp.tensordot(seen, weight.a, axes=inputs) * weight.scale).astype(x.dtype)  # the scale as it is exported
        return jnp.tensordot(x, weight.base, axes=inputs) + jnp.tensordot(low, weight.b, axes=1)
    if isinstance(weight, Int8Weight):
        return jnp.tensordot(x, weight.values.astype(x.dtype), axes=inputs) * weight.scale.astype(x.dtype)
    return _product(x, weight, inputs)


def _product(x: Array, weight: Array, inputs: int) -> Array:
    @jax.custom_vjp
    def product(x: Array, weight: Array) -> Array:
        return jnp.tensordot(x, weight, axes=inputs)

    def forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
        return jnp.tensordot(x, weight, axes=inputs), (x, weight)

    def backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        x, weight = saved
        x, grad = jax.lax.platform_dependent(x, grad, cpu=lambda *pair: jax.lax.optimization_barrier(pair),
                                             default=lambda *pair: pair)
        rows = tuple(range(x.ndim - inputs))
        outputs = weight.ndim - inputs
        to_x = jnp.tensordot(grad, weight, axes=(tuple(range(-outputs, 0)), tuple(range(inputs, weight.ndim))))

        def straight(x: Array, grad: Array) -> Array:
            return jax.lax.dot_general(x, grad, ((rows, rows), ((), ())))

        def turned(x: Array, grad: Array) -> Array:
            return jnp.transpose(straight(grad, x), (*range(outputs, weight.ndim), *range(outputs)))

        return to_x, jax.lax.platform_dependent(x, grad, cpu=straight if x.size <= grad.size else turned,
                                                default=straight)

    # XLA for CPUs writes out the left factor of a weight's gradient transposed: of the two, the smaller is taken for
    # it. What made it is kept apart: fused with it, XLA would compute it column by column, which costs as much as the
    # product itself (benchmarks/README.md)
    product.defvjp(forward, backward)
    return product(x, weight)
