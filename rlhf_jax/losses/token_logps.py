"""Log-probabilities of given tokens without ever holding the [tokens, vocab] logits whole.

This is the only place that touches vocabulary logits in training; every loss stands on it. The forward pass walks over
chunks of positions and keeps one number per token (the log-normaliser); the backward pass recomputes a chunk's logits.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class TokenStats(NamedTuple):
    """What else one look at the logits tells, each [..., M] float32 and without gradient.

    Attributes:
      entropy: of the predicted distribution, in nats.
      greedy: 1.0 where the target is the most probable token.
      mean_logit: average over the vocabulary.
      log_sum_p2: log of the collision probability sum_v p(v)^2 (WPO's normaliser, arXiv 2406.11827).
    """

    entropy: Array
    greedy: Array
    mean_logit: Array
    log_sum_p2: Array


def token_logps(hidden: Array, head: Array, targets: Array, *, chunk: int = 256, softcap: float | None = None,
                vocab_size: int | None = None) -> Array:
    """Computes log softmax(hidden @ head.T)[target] at each position.

    Args:
      hidden: [..., M, D] final hidden states, in the compute dtype.
      head: [V, D] output embedding, same dtype.
      targets: [..., M] int32 token ids in [0, V).
      chunk: positions of M whose logits exist at one time, at most; M is cut into equal pieces of no more.
      softcap: c in c * tanh(logits / c) (Gemma 2), or None.
      vocab_size: rows of `head` that are tokens; those after it are padding and have no probability. None for all.

    Returns:
      [..., M] float32 log-probabilities in nats. Differentiable in `hidden` and `head`; the gradient of `head` is
      accumulated in float32 over chunks and returned in its own dtype.

    >>> token_logps(jnp.eye(3)[:2], jnp.eye(3), jnp.array([0, 2]))
    Array([-0.5514, -1.5514], dtype=float32)
    """
    _check_shapes("token_logps", hidden, head, targets)
    return _logps(hidden, head, targets, _Static(chunk, softcap, vocab_size or head.shape[0], False))[0]


def token_logps_and_stats(
    hidden: Array, head: Array, targets: Array, *, chunk: int = 256, softcap: float | None = None,
    vocab_size: int | None = None,
) -> tuple[Array, TokenStats]:
    """`token_logps` and, from the same pass over the logits, `TokenStats`.

    Args:
      hidden: [..., M, D].
      head: [V, D].
      targets: [..., M] int32.
      chunk, softcap, vocab_size: see `token_logps`.

    Returns:
      Log-probabilities [..., M] float32 in nats, differentiable, and statistics that are not, each [..., M] float32.

    >>> token_logps_and_stats(jnp.eye(3)[:2], jnp.eye(3), jnp.array([0, 2]))[1].entropy
    Array([0.9753, 0.9753], dtype=float32)
    """
    _check_shapes("token_logps_and_stats", hidden, head, targets)
    logps, stats = _logps(hidden, head, targets, _Static(chunk, softcap, vocab_size or head.shape[0], True))
    return logps, jax.tree.map(jax.lax.stop_gradient, stats)


def _check_shapes(where: str, hidden: Array, head: Array, targets: Array) -> None:
    """Raises ValueError unless hidden is [..., M, D], head [V, D] and targets [..., M] integers."""
    if hidden.shape != (*targets.shape, head.shape[-1]) or head.ndim != 2 or targets.ndim < 1:
        raise ValueError(f"{where}: hidden has shape {list(hidden.shape)}, head {list(head.shape)} and targets "
                         f"{list(targets.shape)}; they are [..., M, D], [V, D] and [..., M] (a head of [D, V] is given "
                         "as head.T)")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"{where}: targets are {targets.dtype}; token ids are integers")


class _Static(NamedTuple):
    """What is static: see the arguments of `token_logps`."""

    chunk: int
    softcap: float | None
    vocab_size: int
    with_stats: bool


def _logits(hidden: Array, head: Array, how: _Static) -> Array:
    """[..., m, V] float32 logits of one chunk; padding rows of `head` far below all others."""
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    logits = logits if how.softcap is None else how.softcap * jnp.tanh(logits / how.softcap)
    return logits if how.vocab_size == head.shape[0] else jnp.where(_present(head, how), logits, _ABSENT)


def _present(head: Array, how: _Static) -> Array:
    return jnp.arange(head.shape[0]) < how.vocab_size


_ABSENT = -1e30
_TILE = 8
"""Positions of a piece come in multiples of it: what processors and matrix units take at once."""


def _even(length: int, chunk: int) -> int:
    """The size of as few pieces as have at most `chunk` positions, all alike: 640 by 256 is 3 x 216, not 3 x 256."""
    pieces = -(-length // chunk)
    size = -(-length // pieces)
    return min(chunk, -(-size // _TILE) * _TILE)


def _chunked(x: Array, axis: int, chunk: int) -> Array:
    """Moves `axis`, cut into pieces of `chunk` (zero-padded), to the front: [pieces, ..., chunk, ...]."""
    length = x.shape[axis]
    pieces = -(-length // chunk)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, pieces * chunk - length)
    x = jnp.pad(x, widths) if pieces * chunk != length else x
    x = x.reshape(*x.shape[:axis], pieces, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _joined(x: Array, axis: int, length: int) -> Array:
    """Inverse of `_chunked`."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _chunk_forward(
    hidden: Array, head: Array, targets: Array, how: _Static
) -> tuple[Array, Array, TokenStats | None]:
    logits = _logits(hidden, head, how)  # [..., m, V]
    lse = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    stats = None
    if how.with_stats:
        probs = jnp.exp(logits - lse[..., None])
        stats = TokenStats(
            entropy=lse - jnp.sum(probs * logits, axis=-1),
            greedy=(target >= jnp.max(logits, axis=-1)).astype(jnp.float32),
            mean_logit=jnp.mean(logits, axis=-1, where=_present(head, how)),
            log_sum_p2=jnp.log(jnp.sum(jnp.square(probs), axis=-1)),
        )
    return target - lse, lse, stats


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logps(hidden: Array, head: Array, targets: Array, how: _Static) -> tuple[Array, TokenStats | None]:
    return _logps_fwd(hidden, head, targets, how)[0]


def _logps_fwd(
    hidden: Array, head: Array, targets: Array, how: _Static
) -> tuple[tuple[Array, TokenStats | None], tuple[Array, Array, Array, Array]]:
    axis, length = targets.ndim - 1, targets.shape[-1]
    chunk = _even(length, how.chunk)
    pieces = _chunked(hidden, axis, chunk), _chunked(targets, axis, chunk)
    out = jax.lax.map(lambda xs: _chunk_forward(xs[0], head, xs[1], how), pieces)
    logps, lse, stats = jax.tree.map(lambda x: _joined(x, axis, length), out)
    return (logps, stats), (hidden, head, targets, lse)


def _logps_bwd(
    how: _Static,
    saved: tuple[Array, Array, Array, Array],
    cotangents: tuple[Array, TokenStats | None],
) -> tuple[Array, Array, None]:
    hidden, head, targets, lse = saved
    grad = cotangents[0]  # [..., M]
    axis, length = targets.ndim - 1, targets.shape[-1]
    chunk = _even(length, how.chunk)

    def step(head_grad: Array, xs: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden_c, targets_c, lse_c, grad_c = xs
        logits = _logits(hidden_c, head, how)
        onehot = jax.nn.one_hot(targets_c, head.shape[0], dtype=jnp.float32)
        dlogits = grad_c[..., None] * (onehot - jnp.exp(logits - lse_c[..., None]))
        if how.softcap is not None:
            slope = 1.0 - jnp.square(logits / how.softcap)
            dlogits = jnp.where(_present(head, how), dlogits * slope, 0.0)
        dlogits = dlogits.astype(hidden.dtype)
        dhidden = jnp.einsum("...v,vd->...d", dlogits, head)
        flat_logits, flat_hidden = dlogits.reshape(-1, head.shape[0]), hidden_c.reshape(-1, head.shape[1])
        dhead = jnp.einsum("nv,nd->vd", flat_logits, flat_hidden, preferred_element_type=jnp.float32)
        return head_grad + dhead, dhidden

    pieces = tuple(_chunked(x, axis, chunk) for x in (hidden, targets, lse, grad))
    head_grad, hidden_grad = jax.lax.scan(step, jnp.zeros(head.shape, jnp.float32), pieces)
    return _joined(hidden_grad, axis, length), head_grad.astype(head.dtype), None


_logps.defvjp(_logps_fwd, _logps_bwd)
