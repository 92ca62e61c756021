"""Evaluation: preference accuracy and calibration, win rates with intervals, KL, lengths, best-of-n curves."""

from rlhf_jax.evaluation.best_of_n import BestOfN, best_of_n_curve, best_of_n_kl, expected_best_of_n
from rlhf_jax.evaluation.policy import MEASURES, PolicySummary, correlations, distinct_ratios, summarise
from rlhf_jax.evaluation.preference import PreferenceReport, ReliabilityBin, pair_margins, preference_accuracy
from rlhf_jax.evaluation.statistics import Estimate, across_seeds, mean_estimate, paired_difference, resampled_estimate
from rlhf_jax.evaluation.win_rate import prompt_win_rates, score_difference, win_rate

__all__ = [
    "MEASURES",
    "BestOfN",
    "Estimate",
    "PolicySummary",
    "PreferenceReport",
    "ReliabilityBin",
    "across_seeds",
    "best_of_n_curve",
    "best_of_n_kl",
    "correlations",
    "distinct_ratios",
    "expected_best_of_n",
    "mean_estimate",
    "pair_margins",
    "paired_difference",
    "preference_accuracy",
    "prompt_win_rates",
    "resampled_estimate",
    "score_difference",
    "summarise",
    "win_rate",
]
