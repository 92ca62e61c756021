"""What a preference loss sees of a batch of pairs, and the few quantities most of the losses share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.shapes import of_pairs


class PairLogps(NamedTuple):
    """Log-probabilities of N pairs, all [N] float32, over completion tokens only.

    Attributes:
      chosen, rejected: summed log-probabilities under the policy.
      ref_chosen, ref_rejected: the same under the reference; reference-free losses ignore them, so zeros will do.
      chosen_len, rejected_len: completion token counts.

    Two pairs, which the examples of all losses take:

    >>> import jax.numpy as jnp
    >>> from rlhf_jax.losses import *
    >>> pair = PairLogps(
    ...     chosen=jnp.array([-10.0, -20.0]), rejected=jnp.array([-12.0, -15.0]),
    ...     ref_chosen=jnp.array([-11.0, -18.0]), ref_rejected=jnp.array([-11.5, -16.0]),
    ...     chosen_len=jnp.array([5.0, 8.0]), rejected_len=jnp.array([6.0, 7.0]))
    """

    chosen: Array
    rejected: Array
    ref_chosen: Array
    ref_rejected: Array
    chosen_len: Array
    rejected_len: Array


@of_pairs
def log_ratios(pair: PairLogps) -> tuple[Array, Array]:
    """Computes log policy - log reference of the chosen and of the rejected completions; two [N].

    >>> log_ratios(pair)[1]
    Array([-0.5, 1.0], dtype=float32)
    """
    return pair.chosen - pair.ref_chosen, pair.rejected - pair.ref_rejected


@of_pairs
def implicit_rewards(pair: PairLogps, beta: float = 0.1) -> tuple[Array, Array]:
    """Computes DPO's implicit rewards beta * log-ratio of chosen and rejected; two [N], without gradient.

    The raw ratio is used whatever the f-divergence, as TRL's `rewards/chosen` and `rewards/rejected` do. TRL's
    `rewards/accuracies` is the mean of chosen > rejected, strictly: 0 when policy = reference. Rafailov et al., arXiv
    2305.18290, section 5.1.

    >>> implicit_rewards(pair, beta=0.1)[0]
    Array([0.1, -0.2], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return jax.lax.stop_gradient(beta * chosen), jax.lax.stop_gradient(beta * rejected)


def per_token(total: Array, length: Array) -> Array:
    """Divides sums over tokens by token counts; [N] and [N] to [N]. A completion without tokens counts as one token."""
    return total / jnp.maximum(length, 1.0)


def smoothed_logistic(z: Array, flip: Array | float = 0.0) -> Array:
    """Computes -(1 - flip) log sigma(z) - flip log sigma(-z): the logistic loss when labels are flipped that often.

    z: [N]. flip: a probability, one for all or [N] (soft labels). cDPO, Mitchell's note "A note on DPO with noisy
    preferences" (2023).
    """
    return -(1.0 - flip) * jax.nn.log_sigmoid(z) - flip * jax.nn.log_sigmoid(-z)


def where_pairs(mask: Array, pair: PairLogps) -> PairLogps:
    """Replaces padded pairs (mask [N] bool is False) by harmless numbers, so nothing they hold reaches a gradient.

    The harmless pair has one token of log-probability -1 a side: zeros would sit on the pole of the odds ratio.
    """
    logps = (jnp.where(mask, x, -1.0) for x in pair[:4])
    lengths = (jnp.where(mask, x, 1.0) for x in pair[4:])
    return PairLogps(*logps, *lengths)
