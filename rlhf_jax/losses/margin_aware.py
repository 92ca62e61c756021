"""Losses with soft labels from a reward model: the first version of the RLHF Workflow's DPO trainer.

A reward gap m = reward(chosen) - reward(rejected) makes the label p* = sigma(m) under Bradley-Terry; q = sigma(b z) is
the policy's own preference, z the difference of log-ratios. Every function takes `PairLogps` and margin [N] and returns
one distance between p* and q per pair, [N]. Hard labels (m to infinity) turn `rev_kl` into plain DPO.

Source: version 1 of RLHFlow/Online-RLHF (arXiv 2405.07863), without its clips (q <= 0.999, a stray 1e-3 in p*): in log
space nothing needs them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.pairs import PairLogps, log_ratios, smoothed_logistic
from rlhf_jax.losses.shapes import of_pairs


def _logits(pair: PairLogps, beta: float) -> Array:
    """b z, [N]."""
    chosen, rejected = log_ratios(pair)
    return beta * (chosen - rejected)


@of_pairs
def rev_kl_loss(pair: PairLogps, margin: Array, *, beta: float = 0.1) -> Array:
    """Computes the cross-entropy -(p* log q + (1 - p*) log(1 - q)); [N]. KL(p* || q) up to the label's entropy.

    "RLHF Workflow: From Reward Modeling to Online RLHF" (2024).

    >>> rev_kl_loss(pair, jnp.array([1.0, 3.0]), beta=0.1)
    Array([0.6613, 0.8401], dtype=float32)
    """
    return smoothed_logistic(_logits(pair, beta), jax.nn.sigmoid(-margin))


@of_pairs
def kl_loss(pair: PairLogps, margin: Array, *, beta: float = 0.1) -> Array:
    """Computes KL(Bernoulli(q) || Bernoulli(p*)) = q log(q / p*) + (1 - q) log((1 - q) / (1 - p*)); [N].

    "RLHF Workflow: From Reward Modeling to Online RLHF" (2024).

    >>> kl_loss(pair, jnp.array([1.0, 3.0]), beta=0.1)
    Array([0.0855, 1.0899], dtype=float32)
    """
    z = _logits(pair, beta)
    agree = jax.nn.log_sigmoid(z) - jax.nn.log_sigmoid(margin)
    differ = jax.nn.log_sigmoid(-z) - jax.nn.log_sigmoid(-margin)
    return jax.nn.sigmoid(z) * agree + jax.nn.sigmoid(-z) * differ


@of_pairs
def tv_loss(pair: PairLogps, margin: Array, *, beta: float = 0.1) -> Array:
    """Computes the total variation distance |q - p*|; [N].

    "RLHF Workflow: From Reward Modeling to Online RLHF" (2024).

    >>> tv_loss(pair, jnp.array([1.0, 3.0]), beta=0.1)
    Array([0.1936, 0.527], dtype=float32)
    """
    return jnp.abs(jax.nn.sigmoid(_logits(pair, beta)) - jax.nn.sigmoid(margin))


def _root_sigmoid(x: Array) -> Array:
    """sqrt(sigma(x)), with a gradient that stays finite where sigma(x) is 0."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(x))


@of_pairs
def hellinger_loss(pair: PairLogps, margin: Array, *, beta: float = 0.1) -> Array:
    """Computes the squared Hellinger distance [(sqrt p* - sqrt q)^2 + (sqrt(1 - p*) - sqrt(1 - q))^2] / 2; [N].

    "RLHF Workflow: From Reward Modeling to Online RLHF" (2024).

    >>> hellinger_loss(pair, jnp.array([1.0, 3.0]), beta=0.1)
    Array([0.0205, 0.1983], dtype=float32)
    """
    z = _logits(pair, beta)
    agree = jnp.square(_root_sigmoid(z) - _root_sigmoid(margin))
    differ = jnp.square(_root_sigmoid(-z) - _root_sigmoid(-margin))
    return 0.5 * (agree + differ)
