"""What a preference loss sees of a batch of pairs, and the few quantities most of the losses share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.shapes import of_pairs


class PairLogps(NamedTuple):
    """Log-probabilities of N pairs, all [N] float32, over completion tokens only.

    chosen, rejected: summed log-probabilities under the policy. ref_chosen, ref_rejected: the same under the reference;
    reference-free losses ignore them, so zeros will do. chosen_len, rejected_len: completion token counts.
    """

    chosen: Array
    rejected: Array
    ref_chosen: Array
    ref_rejected: Array
    chosen_len: Array
    rejected_len: Array


@of_pairs
def log_ratios(pair: PairLogps) -> tuple[Array, Array]:
    """Computes log policy - log reference of the chosen and of the rejected completions; two [N]."""
    return pair.chosen - pair.ref_chosen, pair.rejected - pair.ref_rejected


@of_pairs
def implicit_rewards(pair: PairLogps, beta: float = 0.1) -> tuple[Array, Array]:
    """Computes DPO's implicit rewards beta * log-ratio of chosen and rejected; two [N], without gradient.

    The raw ratio is used whatever the f-divergence, as TRL's `rewards/chosen` and `rewards/rejected` do. TRL's
    `rewards/accuracies` is the mean of chosen > rejected, strictly: 0 when policy = reference. Rafailov et al., arXiv
    2305.18290, section 5.1.
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
