"""Scoring: what gives a response a score. Reward and preference models, functions, judges and reward servers."""

from rlhf_jax.scoring.base import Comparing, HasStates, InBothOrders, Scorer, log_odds, preference, rerender
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.scoring.ensemble import EnsembleScorer
from rlhf_jax.scoring.function import FunctionScorer
from rlhf_jax.scoring.implicit import ImplicitScorer
from rlhf_jax.scoring.judge import JudgeScorer, RatingScorer, ServedModel
from rlhf_jax.scoring.local_model import LocalModel
from rlhf_jax.scoring.multi_objective import MultiObjectiveScorer
from rlhf_jax.scoring.pairwise import PairwiseScorer, answer_text, comparison, context_text, letter_examples, letter_ids
from rlhf_jax.scoring.reward_server import RewardServerScorer
from rlhf_jax.scoring.tournament import knock_out, round_robin

__all__ = [
    "BradleyTerryScorer",
    "Comparing",
    "EnsembleScorer",
    "FunctionScorer",
    "HasStates",
    "ImplicitScorer",
    "InBothOrders",
    "JudgeScorer",
    "LocalModel",
    "MultiObjectiveScorer",
    "PairwiseScorer",
    "RatingScorer",
    "RewardServerScorer",
    "Scorer",
    "ServedModel",
    "answer_text",
    "comparison",
    "context_text",
    "knock_out",
    "letter_examples",
    "letter_ids",
    "log_odds",
    "preference",
    "rerender",
    "round_robin",
]
