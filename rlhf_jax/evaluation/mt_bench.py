"""MT-Bench: two-turn conversations, each turn rated from 1 to 10 by a judge.

Source: Zheng et al., arXiv 2306.05685; FastChat's `llm_judge`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.statistics import Estimate, mean_estimate

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1, "extraction": 0.0, "math": 0.0,
                "coding": 0.0, "reasoning": 0.0}
"""At which a policy answers, by category; any other 0.7."""
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose judge is shown a reference answer."""
NO_RATING = -1.0
MOST_UNRATED = 0.01
"""Share of turns without a rating above which there is no score: a judge that fails raises the mean of the others."""
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def rating(judgement: str) -> float:
    """The first [[x]] of a judge's reply, else its first [x], else -1."""
    for pattern in _RATINGS:
        if found := pattern.search(judgement):
            return float(found.group(1))
    return NO_RATING


def judge_prompt(category: str, turn: int) -> str:
    """The name of the official prompt for a turn (1 or 2)."""
    return f"single-{'math-v1' if category in WITH_REFERENCE else 'v1'}{'-multi-turn' if turn == 2 else ''}"


def summary(rows: Sequence[Mapping[str, Any]], categories: Mapping[Any, str], seed: int = 0) -> dict[str, Estimate]:
    """Mean rating of all turns, of each turn and of each category, and by how much the second turn's is above the
    first's (`turn_2_minus_1`); intervals over questions, whose turns go together.

    Args:
      rows: judgements with `question_id`, `turn` and `score`.
      categories: by question_id.

    Raises:
      ValueError: more than 1 % of the turns have no rating.
    """
    rated = [row for row in rows if row["score"] != NO_RATING]
    if len(rows) - len(rated) > MOST_UNRATED * len(rows):
        raise ValueError(f"{len(rows) - len(rated)} of {len(rows)} judgements hold no rating like [[5]]. Left out, "
                         "they would raise the score, so there is none above 1 %: use a judge that keeps to the format")
    found = {"score": rated}
    for turn in (1, 2):
        found[f"turn_{turn}"] = [row for row in rated if row["turn"] == turn]
    for category in dict.fromkeys(categories.values()):
        found[f"category/{category}"] = [row for row in rated if categories[row["question_id"]] == category]
    means = {name: mean_estimate(np.array([row["score"] for row in some], float), seed,
                                 clusters=[row["question_id"] for row in some]) for name, some in found.items() if some}
    first, second = ({row["question_id"]: row["score"] for row in found[f"turn_{turn}"]} for turn in (1, 2))
    if both := [uid for uid in first if uid in second]:
        ahead = np.array([second[uid] - first[uid] for uid in both], float)
        means["turn_2_minus_1"] = mean_estimate(ahead, seed, clusters=both)
    return means
