"""AlpacaEval 2: the order in which a judge sees two answers, what its reply says, and the raw win rate.

Source: Li et al., AlpacaEval; the package alpaca-eval 0.6.6, evaluator weighted_alpaca_eval_gpt4_turbo.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

FIRST, SECOND = "m", "M"
"""What the judge calls the two answers, in the order in which it sees them."""


def is_switched(instruction: str) -> bool:
    """Whether the judge sees the model's answer first, and the baseline's second; decided by the instruction alone."""
    return random.Random("is_switched_outputs" + instruction + "0").choices([False, True])[0]


def preference(logps: Mapping[str, float], switched: bool) -> float | None:
    """A preference in [1, 2] (2: the model's answer is better) from log-probs of the judge's first token.

    Of the two names one that is missing has probability 0; None where both are.
    """
    weights = [math.exp(logps[name]) if name in logps else 0.0 for name in (FIRST, SECOND)]
    if not sum(weights) > 0:
        return None
    value = 2 - weights[0] / sum(weights)
    return 3 - value if switched else value


def outcomes(preferences: Sequence[float | None]) -> np.ndarray:
    """[rows] preference - 1, the probability that the model's answer is better; 0 means a draw, None is nan.

    Raises:
      ValueError: a number is no preference.
    """
    values = np.array([math.nan if p is None else float(p) for p in preferences])
    values = np.where(values == 0, 1.5, values)
    if odd := values[(values < 1) | (values > 2)].tolist():
        raise ValueError(f"preference {odd[0]} is none: 1 means that the baseline is better, 2 that the model is, and "
                         "0 or 1.5 a draw")
    return values - 1


def raw_metrics(preferences: Sequence[float | None]) -> dict[str, float]:
    """The columns of the official leaderboard that need preferences alone, under its names.

    Raises:
      ValueError: there is no preference.
    """
    found = outcomes(preferences)
    found = found[~np.isnan(found)]
    if not len(found):
        raise ValueError("no row has a preference, so there is no win rate")
    count = len(found)
    error = 100 * found.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return {"win_rate": 100 * float(found.mean()), "standard_error": float(error),
            "n_wins": int((found > 0.5).sum()), "n_wins_base": int((found < 0.5).sum()),
            "n_draws": int((found == 0.5).sum()), "n_total": count,
            "discrete_win_rate": 100 * float(np.where(found == 0.5, 0.5, np.round(found)).mean())}
