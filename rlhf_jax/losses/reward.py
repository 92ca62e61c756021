"""Losses and read-outs of reward and preference models."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.shapes import check_one_shape


def bradley_terry(chosen: Array, rejected: Array, margin: Array | None = None) -> Array:
    """Computes -log sigma(r+ - r- - margin); scores [N] to [N].

    margin: [N] gap the rater's confidence asks for, or None for 0. Touvron et al. (Llama 2), arXiv 2307.09288, eq. 2.

    "Llama 2: Open Foundation and Fine-Tuned Chat Models" (2023).

    >>> bradley_terry(jnp.array([1.0, 0.5]), jnp.array([0.0, 2.0]))
    Array([0.3133, 1.7014], dtype=float32)
    """
    check_one_shape("bradley_terry", chosen=chosen, rejected=rejected, margin=margin)
    gap = chosen - rejected
    return -jax.nn.log_sigmoid(gap if margin is None else gap - margin)


def centering(chosen: Array, rejected: Array) -> Array:
    """Computes (r+ + r-)^2, which keeps scores around 0; [N]. arXiv 2312.09244; a coefficient of 0.01 is advised.

    "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking" (2023).

    >>> centering(jnp.array([1.0, 0.5]), jnp.array([0.0, 2.0]))
    Array([1.0, 6.25], dtype=float32)
    """
    check_one_shape("centering", chosen=chosen, rejected=rejected)
    return jnp.square(chosen + rejected)


def logexp(chosen: Array, rejected: Array) -> Array:
    """Computes log(1 + exp(r- - r+)), OpenRLHF's `logexp`; [N]. arXiv 2204.05862.

    The same function as `bradley_terry` without a margin, here under the name its users know.

    "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback" (2022).

    >>> logexp(jnp.array([1.0, 0.5]), jnp.array([0.0, 2.0]))
    Array([0.3133, 1.7014], dtype=float32)
    """
    return bradley_terry(chosen, rejected)


def binary_cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes -y log sigma(x) - (1 - y) log sigma(-x); logits, and labels in [0, 1]; [N] each. arXiv 2110.14168.

    "Training Verifiers to Solve Math Word Problems" (2021).

    >>> binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([0.6931, 2.1269], dtype=float32)
    """
    check_one_shape("binary_cross_entropy", logits=logits, labels=labels)
    return jax.nn.softplus(logits) - labels * logits


def squared_error(outputs: Array, ratings: Array) -> tuple[Array, Array]:
    """Computes (output - rating)^2 where there is a rating; [...] and [...] to values [...] and mask [...] bool.

    ratings: NaN where nobody rated; the value and its gradient are 0 there.

    The multi-objective reward model of Wang et al., "Arithmetic Control of LLMs for Diverse User Preferences" (2024),
    arXiv 2402.18571.

    >>> squared_error(jnp.array([1.0, 0.5]), jnp.array([0.0, jnp.nan]))
    (Array([1.0, 0.0], dtype=float32), Array([True, False], dtype=bool))
    """
    check_one_shape("squared_error", outputs=outputs, ratings=ratings)
    rated = ~jnp.isnan(ratings)
    return jnp.where(rated, jnp.square(outputs - jnp.where(rated, ratings, 0.0)), 0.0), rated


class EnsembleScores(NamedTuple):
    """What members say of a response together, [...] float32 each: the mean, the least, the mean less a multiple of
    the standard deviation, and that deviation."""

    mean: Array
    worst_case: Array
    uncertainty_weighted: Array
    std: Array


def ensemble_scores(members: Array, uncertainty_weight: float = 1.0) -> EnsembleScores:
    """Computes mean, minimum and mean - uncertainty_weight x std of the scores of k members; [..., k] to [...] each.

    The standard deviation is that of the k members (divided by k), so that one member has none. Coste et al., "Reward
    Model Ensembles Help Mitigate Overoptimization" (2023), arXiv 2310.02743, section 3, there with the variance.

    >>> ensemble_scores(jnp.array([[1.0, 3.0], [2.0, 2.0]]), 0.5).uncertainty_weighted
    Array([1.5, 2.0], dtype=float32)
    """
    members = members.astype(jnp.float32)
    mean, variance = jnp.mean(members, axis=-1), jnp.var(members, axis=-1)
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)  # of agreement: gradient 0
    return EnsembleScores(mean, jnp.min(members, axis=-1), mean - uncertainty_weight * std, std)


def pairwise_preference(logit_a: Array, logit_b: Array, logit_neutral: Array | None = None) -> Array:
    """Computes P(A), the softmax over the logits of the letters A and B alone; [...] to [...]. arXiv 2405.07863.

    logit_neutral: of a third answer, that neither is better: P(A) + P(neutral) / 2 of the three. Liu et al., "RRM:
    Robust Reward Model Training Mitigates Reward Hacking" (2024), arXiv 2409.13156.

    "RLHF Workflow: From Reward Modeling to Online RLHF" (2024).

    >>> pairwise_preference(jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    Array([0.7311, 0.1192], dtype=float32)
    """
    check_one_shape("pairwise_preference", logit_a=logit_a, logit_b=logit_b, logit_neutral=logit_neutral)
    if logit_neutral is None:
        return jax.nn.sigmoid(logit_a - logit_b)
    a, _, neutral = jax.nn.softmax(jnp.stack([logit_a, logit_b, logit_neutral]), axis=0)
    return a + neutral / 2


def average_orders(p_ab: Array, p_ba: Array) -> Array:
    """Computes the probability that the first response wins, freed of position bias; [...] to [...].

    p_ab: P(letter A) with the first response shown as A. p_ba: P(letter A) with the *second* response shown as A, so
    the first wins with 1 - p_ba. Swapping the arguments gives the complement.

    >>> average_orders(jnp.array([0.9, 0.9]), jnp.array([0.1, 0.9]))
    Array([0.9, 0.5], dtype=float32)
    """
    check_one_shape("average_orders", p_ab=p_ab, p_ba=p_ba)
    return 0.5 + 0.5 * (p_ab - p_ba)
