"""Losses for unpaired feedback: each response alone is marked desirable or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.shapes import check_one_shape, check_rank


def kto_baseline(logps: Array, ref_logps: Array, mask: Array | None = None) -> Array:
    """Computes KTO's reference point, max(0, mean log-ratio) over mismatched prompts and responses; [].

    Args:
      logps, ref_logps: [N] summed log-probabilities of responses given *another* example's prompt.
      mask: [N] bool, False for padded rows.

    Returns:
      [] float32, to be taken over the global batch. Ethayarajh et al., arXiv 2402.01306.

    "KTO: Model Alignment as Prospect Theoretic Optimization" (2024).

    >>> kto_baseline(jnp.array([-9.0, -4.0]), jnp.array([-10.0, -4.5]))
    Array(0.75, dtype=float32)
    """
    check_one_shape("kto_baseline", logps=logps, ref_logps=ref_logps, mask=mask)
    mask = jnp.ones(logps.shape, bool) if mask is None else mask
    ratios = jnp.where(mask, logps - ref_logps, 0.0)
    count = jnp.maximum(jnp.sum(mask.astype(ratios.dtype)), 1.0)
    return jnp.maximum(jnp.sum(ratios) / count, 0.0)


def _by_label(
    desirable: Array, good: Array, bad: Array, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Array:
    return jnp.where(desirable, desirable_weight * good, undesirable_weight * bad)


def kto_loss(
    logps: Array,
    ref_logps: Array,
    desirable: Array,
    baseline: Array,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Array:
    """Computes KTO, w_d (1 - sigma(b (r - kl))) for good responses, w_u (1 - sigma(b (kl - r))) for bad ones.

    r is the log-ratio. The weights balance the classes: the paper keeps w_d n_good / (w_u n_bad) between 1 and 4/3.

    Args:
      logps, ref_logps: [N] summed log-probabilities under the policy and the reference.
      desirable: [N] bool.
      baseline: [] kl, from `kto_baseline`; no gradient passes.

    Returns:
      [N]. Ethayarajh et al., arXiv 2402.01306.

    "KTO: Model Alignment as Prospect Theoretic Optimization" (2024).

    >>> kto_loss(pair.chosen, pair.ref_chosen, jnp.array([True, False]), jnp.array(0.5), beta=0.1)
    Array([0.4875, 0.4378], dtype=float32)
    """
    check_one_shape("kto_loss", logps=logps, ref_logps=ref_logps, desirable=desirable)
    check_rank("kto_loss", 0, baseline=baseline)
    z = beta * (logps - ref_logps - jax.lax.stop_gradient(baseline))
    return _by_label(desirable, jax.nn.sigmoid(-z), jax.nn.sigmoid(z), desirable_weight, undesirable_weight)


def apo_zero_unpaired_loss(
    logps: Array,
    ref_logps: Array,
    desirable: Array,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Array:
    """Computes APO-zero without pairs: `kto_loss` with baseline 0; arguments as there, [N]. arXiv 2408.06266, eq. 7.

    "Anchored Preference Optimization and Contrastive Revisions" (2024).

    >>> apo_zero_unpaired_loss(pair.chosen, pair.ref_chosen, jnp.array([True, False]), beta=0.1)
    Array([0.475, 0.4502], dtype=float32)
    """
    return kto_loss(
        logps,
        ref_logps,
        desirable,
        jnp.zeros((), logps.dtype),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def bco_loss(logps: Array, ref_logps: Array, desirable: Array, shift: Array, *, beta: float = 0.1) -> Array:
    """Computes BCO, -log sigma(r - shift) for good responses and -log sigma(shift - r) for bad ones, r = b log-ratio.

    Args:
      logps, ref_logps: [N] summed log-probabilities under the policy and the reference.
      desirable: [N] bool.
      shift: [] running mean of r over good and bad responses, half each; no gradient passes.

    Returns:
      [N]. Jung et al., arXiv 2404.04656.

    "Binary Classifier Optimization for Large Language Model Alignment" (2024).

    >>> bco_loss(pair.chosen, pair.ref_chosen, jnp.array([True, False]), jnp.array(0.2), beta=0.1)
    Array([0.7444, 0.513], dtype=float32)
    """
    check_one_shape("bco_loss", logps=logps, ref_logps=ref_logps, desirable=desirable)
    check_rank("bco_loss", 0, shift=shift)
    z = beta * (logps - ref_logps) - jax.lax.stop_gradient(shift)
    return _by_label(desirable, -jax.nn.log_sigmoid(z), -jax.nn.log_sigmoid(-z))
