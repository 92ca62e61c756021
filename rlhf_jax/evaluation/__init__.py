"""Evaluation: preference accuracy and calibration, win rates with intervals, KL, lengths, best-of-n curves."""

from rlhf_jax.evaluation.answers import JudgedAnswers, correlations
from rlhf_jax.evaluation.best_of_n import BestOfN, best_of_n_curve, best_of_n_kl, expected_best_of_n
from rlhf_jax.evaluation.calibration import ReliabilityBin
from rlhf_jax.evaluation.measures import PAIR_MEASURES, POLICY_MEASURES, Measure, PairMeasure, PolicyMeasure
from rlhf_jax.evaluation.policy import PolicySummary, summarise
from rlhf_jax.evaluation.preference import PreferenceReport, ScorerReport, pair_margins, preference_accuracy
from rlhf_jax.evaluation.results import Answer, Difference, Results, Sample, StageTime
from rlhf_jax.evaluation.selection import Candidate, best_candidate, judge_candidate, sentences_of
from rlhf_jax.evaluation.statistics import Estimate, across_seeds, mean_estimate, paired_difference, resampled_estimate
from rlhf_jax.evaluation.win_rate import prompt_win_rates, score_difference, win_rate

__all__ = [
    "PAIR_MEASURES",
    "POLICY_MEASURES",
    "Answer",
    "BestOfN",
    "Candidate",
    "Difference",
    "Estimate",
    "JudgedAnswers",
    "Measure",
    "PairMeasure",
    "PolicyMeasure",
    "PolicySummary",
    "PreferenceReport",
    "ReliabilityBin",
    "Results",
    "Sample",
    "ScorerReport",
    "StageTime",
    "across_seeds",
    "best_candidate",
    "best_of_n_curve",
    "best_of_n_kl",
    "correlations",
    "expected_best_of_n",
    "judge_candidate",
    "mean_estimate",
    "pair_margins",
    "paired_difference",
    "preference_accuracy",
    "prompt_win_rates",
    "resampled_estimate",
    "score_difference",
    "sentences_of",
    "summarise",
    "win_rate",
]
