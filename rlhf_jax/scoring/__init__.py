"""Scoring: what gives a response a score. Reward models of one or many outputs, pairwise models, Python functions."""

from rlhf_jax.scoring.base import Comparing, Scorer, rerender
from rlhf_jax.scoring.bradley_terry import BradleyTerryScorer
from rlhf_jax.scoring.function import FunctionScorer
from rlhf_jax.scoring.multi_objective import MultiObjectiveScorer
from rlhf_jax.scoring.pairwise import PairwiseScorer, comparison, context_text, letter_examples, letter_ids
from rlhf_jax.scoring.tournament import knock_out, round_robin

__all__ = [
    "BradleyTerryScorer",
    "Comparing",
    "FunctionScorer",
    "MultiObjectiveScorer",
    "PairwiseScorer",
    "Scorer",
    "comparison",
    "context_text",
    "knock_out",
    "letter_examples",
    "letter_ids",
    "rerender",
    "round_robin",
]
