"""Losses as pure functions of arrays: token log-probabilities, the preference family, reward losses, KL estimators.

This package imports jax alone and is meant to be reused: `from rlhf_jax import losses`.
"""

from rlhf_jax.losses.divergence import (
    DIVERGENCES,
    alpha_divergence,
    f_divergence,
    forward_kl,
    js_divergence,
    reverse_kl,
)
from rlhf_jax.losses.kl import kl_exact, kl_k1, kl_k2, kl_k3
from rlhf_jax.losses.kto import apo_zero_unpaired_loss, bco_loss, kto_baseline, kto_loss
from rlhf_jax.losses.margin_aware import hellinger_loss, kl_loss, rev_kl_loss, tv_loss
from rlhf_jax.losses.odin import odin_length, odin_orthogonality, pearson
from rlhf_jax.losses.pairs import PairLogps, implicit_rewards, log_ratios
from rlhf_jax.losses.preference import PreferenceLoss, Term, preference_loss, weighted_total
from rlhf_jax.losses.reference_based import (
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    ipo_sum_loss,
    nca_pair_loss,
    robust_loss,
    sigmoid_loss,
    sigmoid_norm_loss,
    sppo_hard_loss,
    sppo_loss,
)
from rlhf_jax.losses.reference_free import alphapo_loss, cpo_loss, orpo_loss, raft_loss, sft_loss, simpo_loss
from rlhf_jax.losses.registry import LOSSES, Loss
from rlhf_jax.losses.reward import (
    average_orders,
    binary_cross_entropy,
    bradley_terry,
    centering,
    ensemble_scores,
    logexp,
    pairwise_preference,
    squared_error,
)
from rlhf_jax.losses.token_logps import TokenStats, token_logps, token_logps_and_stats
from rlhf_jax.losses.token_weights import ld_token_weights, wpo_weight
from rlhf_jax.losses.unpaired import Responses, bco_shift, response_loss

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "Loss",
    "PairLogps",
    "PreferenceLoss",
    "Responses",
    "Term",
    "TokenStats",
    "alpha_divergence",
    "alphapo_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "average_orders",
    "bco_loss",
    "bco_pair_loss",
    "bco_shift",
    "binary_cross_entropy",
    "bradley_terry",
    "centering",
    "cpo_loss",
    "discopop_loss",
    "ensemble_scores",
    "exo_pair_loss",
    "f_divergence",
    "forward_kl",
    "hellinger_loss",
    "hinge_loss",
    "implicit_rewards",
    "ipo_loss",
    "ipo_sum_loss",
    "js_divergence",
    "kl_exact",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_loss",
    "kto_baseline",
    "kto_loss",
    "ld_token_weights",
    "log_ratios",
    "logexp",
    "nca_pair_loss",
    "odin_length",
    "odin_orthogonality",
    "orpo_loss",
    "pairwise_preference",
    "pearson",
    "preference_loss",
    "raft_loss",
    "response_loss",
    "rev_kl_loss",
    "reverse_kl",
    "robust_loss",
    "sft_loss",
    "sigmoid_loss",
    "sigmoid_norm_loss",
    "simpo_loss",
    "sppo_hard_loss",
    "sppo_loss",
    "squared_error",
    "token_logps",
    "token_logps_and_stats",
    "tv_loss",
    "weighted_total",
    "wpo_weight",
]
