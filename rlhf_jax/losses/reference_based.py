"""Preference losses against a reference policy: the loss types of TRL's DPO trainer, one small function each.

Every function takes `PairLogps` (arrays [N]) and returns one value per pair, [N]. Notation of the docstrings: a and d
are the log-ratios log policy - log reference of the chosen and the rejected completion (summed over tokens), s the
f-divergence map (`divergence`, identity by default), D = s(a) - s(d), b = beta, e = label_smoothing, n+ and n- the
token counts.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.divergence import Divergence, capped_exp, reverse_kl
from rlhf_jax.losses.pairs import PairLogps, log_ratios, per_token, smoothed_logistic
from rlhf_jax.losses.shapes import of_pairs


def _scores(pair: PairLogps, divergence: Divergence) -> tuple[Array, Array]:
    """s(a) and s(d), two [N]."""
    chosen, rejected = log_ratios(pair)
    return divergence(chosen), divergence(rejected)


def _logits(pair: PairLogps, beta: float, divergence: Divergence) -> Array:
    """b D, [N]."""
    chosen, rejected = _scores(pair, divergence)
    return beta * (chosen - rejected)


@of_pairs
def sigmoid_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Array:
    """Computes DPO, -(1 - e) log sigma(bD) - e log sigma(-bD); [N]. e > 0 is conservative DPO (cDPO).

    Rafailov et al., arXiv 2305.18290, eq. 7. TRL 0.29 and later ignore the smoothing; here it counts.

    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (2023).

    >>> sigmoid_loss(pair, beta=0.1)
    Array([0.621, 0.8544], dtype=float32)
    """
    return smoothed_logistic(_logits(pair, beta, divergence), label_smoothing)


@of_pairs
def sigmoid_norm_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Array:
    """Computes length-normalised DPO, the smoothed logistic loss of b (s(a)/n+ - s(d)/n-); [N]. arXiv 2411.15124.

    "Tulu 3: Pushing Frontiers in Open Language Model Post-Training" (2024).

    >>> sigmoid_norm_loss(pair, beta=5.0)
    Array([0.2171, 2.0955], dtype=float32)
    """
    chosen, rejected = _scores(pair, divergence)
    margin = per_token(chosen, pair.chosen_len) - per_token(rejected, pair.rejected_len)
    return smoothed_logistic(beta * margin, label_smoothing)


@of_pairs
def hinge_loss(pair: PairLogps, *, beta: float = 0.1, divergence: Divergence = reverse_kl) -> Array:
    """Computes max(0, 1 - bD); [N]. SLiC, arXiv 2305.10425, on log-ratios as in RSO, arXiv 2309.06657.

    "SLiC-HF: Sequence Likelihood Calibration with Human Feedback" (2023).

    >>> hinge_loss(pair, beta=0.1)
    Array([0.85, 1.3], dtype=float32)
    """
    return jax.nn.relu(1.0 - _logits(pair, beta, divergence))


SQUARE_CAP = 1e17
"""Largest number squared. A divergence map is about as steep as it is large, so the slopes multiply to 2e34 at most.
Beyond it the loss is flat and passes no gradient: with forward_kl where a log-ratio falls below -39."""


def _square(x: Array) -> Array:
    """Computes x^2 of x within +-SQUARE_CAP; [N]."""
    return jnp.square(jnp.clip(x, -SQUARE_CAP, SQUARE_CAP))


def _ipo(h: Array, beta: float, label_smoothing: float) -> Array:
    """(1 - e)(h - 1/(2b))^2 + e(-h - 1/(2b))^2: regression to the target gap, with flipped labels e of the time."""
    target = 1.0 / (2.0 * beta)
    return (1.0 - label_smoothing) * _square(h - target) + label_smoothing * _square(-h - target)


@of_pairs
def ipo_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Array:
    """Computes IPO on token means, (s(a)/n+ - s(d)/n- - 1/(2b))^2, labels flipped with probability e; [N].

    Azar et al., arXiv 2310.12036, eq. 17; the token mean is TRL's, confirmed by the authors (huggingface/trl#1265).

    "A General Theoretical Paradigm to Understand Learning from Human Preferences" (2023).

    >>> ipo_loss(pair, beta=0.1)
    Array([22.2469, 29.0829], dtype=float32)
    """
    chosen, rejected = _scores(pair, divergence)
    return _ipo(per_token(chosen, pair.chosen_len) - per_token(rejected, pair.rejected_len), beta, label_smoothing)


@of_pairs
def ipo_sum_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Array:
    """Computes IPO as printed, on sums: (D - 1/(2b))^2, labels flipped with probability e; [N].

    Azar et al., arXiv 2310.12036, eq. 17. OpenRLHF, the original DPO repository and TRL's online trainers take sums.

    "A General Theoretical Paradigm to Understand Learning from Human Preferences" (2023).

    >>> ipo_sum_loss(pair, beta=0.1)
    Array([12.25, 64.0], dtype=float32)
    """
    chosen, rejected = _scores(pair, divergence)
    return _ipo(chosen - rejected, beta, label_smoothing)


@of_pairs
def exo_pair_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 1e-3, divergence: Divergence = reverse_kl
) -> Array:
    """Computes EXO, KL(Bernoulli(q) || Bernoulli(1 - e)) with q = sigma(bD); [N]. Needs e > 0; 1e-3 is advised.

    Ji et al., arXiv 2402.00856, eq. 16.

    "Towards Efficient Exact Optimization of Language Model Alignment" (2024).

    >>> exo_pair_loss(pair, beta=0.1)
    Array([2.5055, 3.2865], dtype=float32)
    """
    z = _logits(pair, beta, divergence)
    log_q, log_not_q = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    log_p, log_not_p = math.log1p(-label_smoothing), math.log(label_smoothing)
    return jax.nn.sigmoid(z) * (log_q - log_p) + jax.nn.sigmoid(-z) * (log_not_q - log_not_p)


@of_pairs
def nca_pair_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes NCA, -log sigma(b a) - 1/2 log sigma(-b a) - 1/2 log sigma(-b d); [N]. arXiv 2402.05369.

    "Noise Contrastive Alignment of Language Models with Explicit Rewards" (2024).

    >>> nca_pair_loss(pair, beta=0.1)
    Array([1.3508, 1.4694], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    negatives = jax.nn.log_sigmoid(-beta * chosen) + jax.nn.log_sigmoid(-beta * rejected)
    return -jax.nn.log_sigmoid(beta * chosen) - 0.5 * negatives


@of_pairs
def robust_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, divergence: Divergence = reverse_kl
) -> Array:
    """Computes robust DPO, [-(1 - e) log sigma(bD) + e log sigma(-bD)] / (1 - 2e), with 0 <= e < 1/2; [N].

    Unbiased for the clean-label DPO loss when labels are flipped with probability e. arXiv 2403.00409.

    "Provably Robust DPO: Aligning Language Models with Noisy Feedback" (2024).

    >>> robust_loss(pair, beta=0.1, label_smoothing=0.1)
    Array([0.6022, 0.8919], dtype=float32)
    """
    z = _logits(pair, beta, divergence)
    kept, flipped = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    return (-(1.0 - label_smoothing) * kept + label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


@of_pairs
def bco_pair_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes BCO on pairs without reward shift, -log sigma(b a) - log sigma(-b d); [N]. arXiv 2404.04656.

    "Binary Classifier Optimization for Large Language Model Alignment" (2024).

    >>> bco_pair_loss(pair, beta=0.1)
    Array([1.3129, 1.5425], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return -jax.nn.log_sigmoid(beta * chosen) - jax.nn.log_sigmoid(-beta * rejected)


@of_pairs
def sppo_hard_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes SPPO with hard win probabilities, (a - 1/(2b))^2 + (d + 1/(2b))^2; [N]. arXiv 2405.00675.

    "Self-Play Preference Optimization for Language Model Alignment" (2024).

    >>> sppo_hard_loss(pair, beta=0.1)
    Array([36.25, 85.0], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    target = 1.0 / (2.0 * beta)
    return _square(chosen - target) + _square(rejected + target)


@of_pairs
def sppo_loss(pair: PairLogps, chosen_win: Array, rejected_win: Array, *, beta: float = 0.1) -> Array:
    """Computes SPPO, (a - (p+ - 1/2)/b)^2 + (d - (p- - 1/2)/b)^2; [N]. arXiv 2405.00675, algorithm 1.

    chosen_win, rejected_win: p+ and p- [N], how probably the chosen and the rejected completion win against an answer
    of the policy itself; 1 and 0 make it `sppo_hard_loss`. The paper's eta is 1/b.

    "Self-Play Preference Optimization for Language Model Alignment" (2024).

    >>> sppo_loss(pair, jnp.array([0.9, 0.6]), jnp.array([0.2, 0.5]), beta=0.1)
    Array([15.25, 10.0], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return _square(chosen - (chosen_win - 0.5) / beta) + _square(rejected - (rejected_win - 0.5) / beta)


def _rank_matched(left: Array, right: Array, mask: Array | None) -> Array:
    """Element k of `left` [N] minus the element of `right` [N] that has the same rank; padded elements give 0.

    Both sides send padded elements to the last ranks, where they meet each other only.
    """
    if mask is None:
        mask = jnp.ones(left.shape, bool)
    ranks = jnp.argsort(jnp.argsort(jnp.where(mask, left, jnp.inf)))
    matched = jnp.sort(jnp.where(mask, right, jnp.inf))[ranks]
    return jnp.where(mask, left - jnp.where(mask, matched, 0.0), 0.0)


@of_pairs
def aot_loss(pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, mask: Array | None = None) -> Array:
    """Computes AOT on paired data: sorted log policy(y+)/policy(y-) minus sorted log reference(y+)/reference(y-); [N].

    The smoothed logistic loss of the rank-by-rank difference, standing at the pair whose policy ratio has that rank.
    The sort is over the pairs given: give the global batch. mask: [N] bool, False for padded pairs. arXiv 2406.05882.

    "Distributional Preference Alignment of LLMs via Optimal Transport" (2024).

    >>> aot_loss(pair, beta=0.1)
    Array([0.621, 0.8544], dtype=float32)
    """
    z = _rank_matched(pair.chosen - pair.rejected, pair.ref_chosen - pair.ref_rejected, mask)
    return smoothed_logistic(beta * z, label_smoothing)


@of_pairs
def aot_unpaired_loss(
    pair: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0, mask: Array | None = None
) -> Array:
    """Computes AOT on unpaired data, as `aot_loss` with sorted a minus sorted d; [N]. arXiv 2406.05882.

    "Distributional Preference Alignment of LLMs via Optimal Transport" (2024).

    >>> aot_unpaired_loss(pair, beta=0.1)
    Array([0.6931, 0.771], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return smoothed_logistic(beta * _rank_matched(chosen, rejected, mask), label_smoothing)


@of_pairs
def apo_zero_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes APO-zero, (1 - sigma(b a)) + sigma(b d), on raw ratios; [N]. arXiv 2408.06266, eq. 7.

    "Anchored Preference Optimization and Contrastive Revisions" (2024).

    >>> apo_zero_loss(pair, beta=0.1)
    Array([0.9625, 1.0748], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


@of_pairs
def apo_down_loss(pair: PairLogps, *, beta: float = 0.1) -> Array:
    """Computes APO-down, sigma(b a) + (1 - sigma(b(a - d))); [N]. arXiv 2408.06266, eq. 8.

    "Anchored Preference Optimization and Contrastive Revisions" (2024).

    >>> apo_down_loss(pair, beta=0.1)
    Array([0.9875, 1.0246], dtype=float32)
    """
    chosen, rejected = log_ratios(pair)
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(beta * (rejected - chosen))


@of_pairs
def discopop_loss(
    pair: PairLogps, *, beta: float = 0.1, discopop_tau: float = 0.05, divergence: Divergence = reverse_kl
) -> Array:
    """Computes DiscoPOP, (1 - m)(-log sigma(z)) + m exp(-z) with z = bD, m = sigma(z / tau); [N].

    m exp(-z) is taken as one exponential: apart, the factors are 0 and infinity for z very negative. Lu et al., arXiv
    2406.08414, eq. 5.

    "Discovering Preference Optimization Algorithms with and for Large Language Models" (2024).

    >>> discopop_loss(pair, beta=0.1)
    Array([0.8493, 0.8556], dtype=float32)
    """
    z = _logits(pair, beta, divergence)
    exponential = capped_exp(jax.nn.log_sigmoid(z / discopop_tau) - z)
    return -jax.nn.sigmoid(-z / discopop_tau) * jax.nn.log_sigmoid(z) + exponential
