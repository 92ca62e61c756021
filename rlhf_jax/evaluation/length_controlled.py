"""Length-controlled win rate: what the judge would say if both answers were equally long.

Source: Dubois et al., "Length-Controlled AlpacaEval", arXiv 2404.04475. Their fit adds an L1 penalty chosen by
cross-validation, which is nearly inert; this one is plain maximum likelihood.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.special

from rlhf_jax.evaluation.alpaca_eval import outcomes
from rlhf_jax.evaluation.logistic import fit_logistic, refitted_estimate
from rlhf_jax.evaluation.statistics import Estimate

REGULARISER_WEIGHT = 0.1
"""Of each row of the verbose and the concise baseline against itself: 0.2 over two baselines."""


@dataclasses.dataclass(frozen=True, eq=False)
class Regulariser:
    """The baseline, asked to be verbose and to be concise, against itself: what length alone does to the judge.

    length: [rows] length difference in standard deviations. difficulty: [rows]. outcome: [rows] in [0, 1].
    """

    length: np.ndarray
    difficulty: np.ndarray
    outcome: np.ndarray


@dataclasses.dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate, in percent.

    Attributes:
      win_rate: 100 mean of sigmoid(w_difficulty difficulty + w_bias); interval from refits on resampled prompts.
      spread: the official `lc_standard_error`: of those probabilities over prompts, no uncertainty of the win rate.
      w_length, w_difficulty, w_bias: the fit.
    """

    win_rate: Estimate
    spread: float
    w_length: float
    w_difficulty: float
    w_bias: float


def length_feature(baseline: Sequence[int], model: Sequence[int]) -> np.ndarray:
    """[rows] tanh of the length difference (baseline - model, in characters) over its standard deviation."""
    gaps = np.subtract(baseline, model).astype(float)
    spread = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    return np.tanh(gaps / spread) if spread > 0 else np.zeros(len(gaps))


def fit_weights(length: np.ndarray, difficulty: np.ndarray, outcome: np.ndarray, regulariser: Regulariser,
                times: np.ndarray | None = None) -> np.ndarray:
    """[3] weights of length, difficulty and of being the model's row, which the regulariser's rows are not.

    times: how often each row counts, None for once.
    """
    rows = np.stack([length, difficulty, np.ones(len(outcome))], axis=1)
    others = np.stack([np.tanh(regulariser.length), regulariser.difficulty, np.zeros(len(regulariser.outcome))], axis=1)
    weights = np.concatenate([np.ones(len(rows)) if times is None else times,
                              np.full(len(others), REGULARISER_WEIGHT)])
    return fit_logistic(np.concatenate([rows, others]), np.concatenate([outcome, regulariser.outcome]), weights)


def length_controlled(preferences: Sequence[float | None], model: Sequence[int], baseline: Sequence[int],
                      difficulty: Sequence[float], regulariser: Regulariser, seed: int = 0) -> LengthControlled:
    """The length-controlled win rate of a model against the baseline.

    Args:
      preferences: in [1, 2], one a prompt; None takes no part.
      model, baseline: lengths of their answers in characters.
      difficulty: of each row's instruction.
      seed: of the bootstrap.

    Raises:
      ValueError: the columns have different lengths, or nothing can be fitted.
    """
    if len({len(preferences), len(model), len(baseline), len(difficulty)}) != 1:
        raise ValueError(f"{len(preferences)} preferences, {len(model)} and {len(baseline)} lengths and "
                         f"{len(difficulty)} difficulties; there is one of each for every instruction")
    outcome, hard = outcomes(preferences), np.asarray(difficulty, float)
    length, known = length_feature(baseline, model), ~np.isnan(outcome)
    if not known.any():
        raise ValueError("no row has a preference, so there is no win rate")

    length, hard, outcome = length[known], hard[known], outcome[known]

    def controlled(times: np.ndarray) -> float:
        _, difficult, bias = fit_weights(length, hard, outcome, regulariser, times)
        return 100 * float(np.average(scipy.special.expit(difficult * hard + bias), weights=times))

    weights = fit_weights(length, hard, outcome, regulariser)
    equal = scipy.special.expit(weights[1] * hard + weights[2])
    spread = 100 * float(equal.std(ddof=1)) / math.sqrt(len(equal)) if len(equal) > 1 else math.nan
    return LengthControlled(refitted_estimate(controlled, len(equal), seed), spread, *map(float, weights))
