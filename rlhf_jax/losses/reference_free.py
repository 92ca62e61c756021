"""Preference losses that need no reference policy; each takes `PairLogps` and returns one value per pair, [N]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.divergence import capped_exp
from rlhf_jax.losses.pairs import PairLogps, per_token, smoothed_logistic
from rlhf_jax.losses.shapes import of_pairs

_MIN_NLL = 1e-6
"""Odds of p = exp(-1e-6) are the largest taken, about 1e6: at p = 1 they are infinite."""


def _mean_logps(pair: PairLogps) -> tuple[Array, Array]:
    """Token means of the policy's log-probabilities of chosen and rejected, two [N]."""
    return per_token(pair.chosen, pair.chosen_len), per_token(pair.rejected, pair.rejected_len)


@of_pairs
def mean_rewards(pair: PairLogps, beta: float = 0.1) -> tuple[Array, Array]:
    """Computes SimPO's rewards beta * mean log p of chosen and rejected; two [N], without gradient.

    Meng et al., arXiv 2405.14734, eq. 4; what TRL logs for SimPO and ORPO.

    >>> mean_rewards(pair, beta=2.0)[0]
    Array([-4., -5.], dtype=float32)
    """
    chosen, rejected = _mean_logps(pair)
    return jax.lax.stop_gradient(beta * chosen), jax.lax.stop_gradient(beta * rejected)


def _shaped(pair: PairLogps, alpha: float) -> tuple[Array, Array]:
    """(1 - p^-alpha) / alpha of the token-mean probabilities of chosen and rejected, exponent capped; two [N]."""
    chosen, rejected = ((1.0 - capped_exp(-alpha * mean)) / alpha for mean in _mean_logps(pair))
    return chosen, rejected


@of_pairs
def alphapo_rewards(pair: PairLogps, beta: float = 0.1, alphapo_alpha: float = 0.25) -> tuple[Array, Array]:
    """Computes AlphaPO's rewards of chosen and rejected; two [N], without gradient. arXiv 2501.03884, eq. 9.

    >>> alphapo_rewards(pair, beta=2.0)[0]
    Array([-5.1898, -6.946 ], dtype=float32)
    """
    chosen, rejected = _shaped(pair, alphapo_alpha)
    return jax.lax.stop_gradient(beta * chosen), jax.lax.stop_gradient(beta * rejected)


@of_pairs
def sft_loss(pair: PairLogps) -> Array:
    """Computes the chosen completion's negative log-likelihood per token; [N].

    Averaged with weight n+ (`preference_loss` does), it is the token mean over the whole batch.

    "Training language models to follow instructions with human feedback" (2022), arXiv 2203.02155.

    >>> sft_loss(pair)
    Array([2.0, 2.5], dtype=float32)
    """
    return -per_token(pair.chosen, pair.chosen_len)


@of_pairs
def raft_loss(pair: PairLogps) -> Array:
    """Computes the chosen completion's summed negative log-likelihood; [N]. RAFT, arXiv 2304.06767.

    "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment" (2023).

    >>> raft_loss(pair)
    Array([10.0, 20.0], dtype=float32)
    """
    return -pair.chosen


@of_pairs
def cpo_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Array:
    """Computes CPO's preference term: the smoothed logistic loss of b (log p+ - log p-), sums; [N].

    Xu et al., arXiv 2401.08417; their likelihood term is a mixture with `sft`.

    "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation" (2024).

    >>> cpo_loss(pair, beta=0.1)
    Array([0.5981, 0.9741], dtype=float32)
    """
    return smoothed_logistic(beta * (pair.chosen - pair.rejected), label_smoothing)


@of_pairs
def simpo_loss(pair: PairLogps, *, beta: float = 0.1, simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> Array:
    """Computes SimPO: the smoothed logistic loss of b (mean log p+ - mean log p-) - gamma; [N].

    Meng et al., arXiv 2405.14734, eq. 6. The paper's beta is 2.0 to 10.

    "SimPO: Simple Preference Optimization with a Reference-Free Reward" (2024).

    >>> simpo_loss(pair, beta=2.0)
    Array([0.9741, 1.4743], dtype=float32)
    """
    chosen, rejected = _mean_logps(pair)
    return smoothed_logistic(beta * (chosen - rejected) - simpo_gamma, label_smoothing)


@of_pairs
def alphapo_loss(
    pair: PairLogps,
    *,
    beta: float = 0.1,
    simpo_gamma: float = 0.5,
    alphapo_alpha: float = 0.25,
    label_smoothing: float = 0.0,
) -> Array:
    """Computes AlphaPO: SimPO with reward (1 - p^-alpha) / alpha of p = exp(mean log p), exponent capped; [N].

    arXiv 2501.03884. Needs alpha != 0; it tends to SimPO as alpha tends to 0.

    "AlphaPO: Reward Shape Matters for LLM Alignment" (2025).

    >>> alphapo_loss(pair, beta=2.0)
    Array([0.9741, 1.9329], dtype=float32)
    """
    chosen, rejected = _shaped(pair, alphapo_alpha)
    return smoothed_logistic(beta * (chosen - rejected) - simpo_gamma, label_smoothing)


def _log_odds(mean_logp: Array) -> Array:
    """log p - log(1 - p) of p = exp(mean_logp), [N]."""
    mean_logp = jnp.minimum(mean_logp, -_MIN_NLL)
    return mean_logp - jnp.log(-jnp.expm1(mean_logp))


@of_pairs
def orpo_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes ORPO's odds-ratio term, -b log sigma(log odds+ - log odds-), odds of token-mean probabilities; [N].

    Hong et al., arXiv 2403.07691; their likelihood term is a mixture with `sft`.

    "ORPO: Monolithic Preference Optimization without Reference Model" (2024).

    >>> orpo_loss(pair, beta=0.1)
    Array([0.0693, 0.0911], dtype=float32)
    """
    chosen, rejected = _mean_logps(pair)
    return -beta * jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))
