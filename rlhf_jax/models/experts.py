"""Mixture of experts without dropped tokens (Mixtral, arXiv 2401.04088): sort by expert, grouped matmul, add back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array


def mixture_of_experts(x: Array, weights: Mapping[str, Array], per_token: int, normalize: bool,
                       activate: Callable[[Array], Array]) -> Array:
    """Sends each token through its most probable experts and sums their outputs by probability.

    Args:
      x: [..., D]. weights: router [D, X]; gate, up [X, D, F]; down [X, F, D].
      per_token: experts a token goes to. normalize: their probabilities are made to sum to one.

    Returns:
      [..., D]. The router's softmax is float32.
    """
    tokens = x.reshape(-1, x.shape[-1])  # [N, D]
    experts = weights["gate"].shape[0]
    scores = jnp.einsum("nd,dx->nx", tokens, weights["router"], preferred_element_type=jnp.float32)
    share, chosen = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), per_token)  # [N, per_token]
    if normalize:
        share = share / jnp.sum(share, axis=-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    source = order // per_token
    rows = tokens[source]  # [N * per_token, D], the first expert's tokens first
    counts = jnp.bincount(chosen.reshape(-1), length=experts).astype(jnp.int32)
    gate, up = (jax.lax.ragged_dot(rows, weights[name], counts) for name in ("gate", "up"))
    out = jax.lax.ragged_dot(activate(gate) * up, weights["down"], counts)
    out = out * share.reshape(-1)[order, None].astype(x.dtype)
    return jnp.zeros_like(tokens).at[source].add(out).reshape(x.shape)
