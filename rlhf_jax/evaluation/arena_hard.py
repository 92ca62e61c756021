"""Arena-Hard v0.1 and v2: two games a question against one baseline, and the score with and without style control.

Every battle is against the one baseline, so the Bradley-Terry probability of beating it is the weighted mean outcome.
Source: Li et al., arXiv 2406.11939; arena-hard-auto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.special

from rlhf_jax.evaluation.logistic import fit_logistic, refitted_estimate
from rlhf_jax.evaluation.statistics import Estimate, by_cluster, resampled_estimate

Version = Literal["v0.1", "v2.0"]
STRONG = 3
"""How often a strong verdict (>>) counts."""
_LABEL, _SINGLE = re.compile(r"\[\[([AB<>=]+)\]\]"), re.compile(r"\[([AB<>=]+)\]")
_FIRST_WINS = {"A>B": (1.0, 1), "A>>B": (1.0, STRONG), "A=B": (0.5, 1), "B=A": (0.5, 1), "A<B": (0.0, 1),
               "A<<B": (0.0, STRONG), "B>A": (0.0, 1), "B>>A": (0.0, STRONG), "B<A": (1.0, 1), "B<<A": (1.0, STRONG)}


class Reading(NamedTuple):
    """What a judge's reply says. label: None where it says nothing clear. unfinished: it named no label at all."""

    label: str | None
    unfinished: bool


class Battle(NamedTuple):
    """A game against the baseline. outcome: 1 where the model won, a half for a tie. weight: how often it counts."""

    uid: str
    outcome: float
    weight: int


def verdict(judgement: str, version: Version) -> Reading:
    """v0.1: the one label between double brackets, none where there are different ones. v2: the last, in any case."""
    if version == "v0.1":
        labels = _LABEL.findall(judgement)
        known = labels[0] if len(set(labels)) == 1 and labels[0] in _FIRST_WINS else None
        return Reading(known, not labels)
    text = judgement.upper()
    labels = _LABEL.findall(text) or _SINGLE.findall(text)
    return Reading(labels[-1] if labels and labels[-1] in _FIRST_WINS else None, not labels)


def battles(rows: Mapping[str, tuple[str | None, str | None]], version: Version) -> list[Battle]:
    """Battles from the labels of both games of each question: the baseline is A in the first, the model in the second.

    Of v0.1 a game without label is left out, of v2 its question.

    Raises:
      ValueError: a label is none of the official ones.
    """
    found = []
    for uid, labels in rows.items():
        if odd := [label for label in labels if label is not None and label not in _FIRST_WINS]:
            raise ValueError(f"question {uid!r} has the label {odd[0]!r}; labels are {', '.join(_FIRST_WINS)}")
        if version == "v2.0" and None in labels:
            continue
        for label, model_first in zip(labels, (False, True), strict=True):
            if label is not None:
                value, weight = _FIRST_WINS[label]
                found.append(Battle(uid, value if model_first else 1 - value, weight))
    return found


def win_probability(played: Sequence[Battle], seed: int = 0, confidence: float = 0.95) -> Estimate:
    """The weighted mean outcome in [0, 1], with an interval over questions: the games of one are resampled together.

    Raises:
      ValueError: no game was played.
    """
    if not played:
        raise ValueError("no game has a verdict, so there is no score; does the judge end in a label like [[A>B]]?")
    totals = by_cluster(np.array([[b.weight, b.weight * b.outcome] for b in played], float), [b.uid for b in played])
    return resampled_estimate(totals, lambda sums, units: sums[1] / sums[0], seed, confidence)


def style_difference(model: np.ndarray, baseline: np.ndarray, version: Version) -> np.ndarray:
    """[rows, 4] of two answers' tokens, headers, lists and bold texts [rows, 4], each relative to their sum.

    v2 compares headers, lists and bold texts per token.
    """
    if version == "v0.1":
        return (model - baseline) / (model + baseline + 1)
    length = (model[:, :1] - baseline[:, :1]) / np.maximum(model[:, :1] + baseline[:, :1], 1)
    ours, theirs = (x[:, 1:] / (x[:, :1] + 1) for x in (model, baseline))
    return np.concatenate([length, (ours - theirs) / (ours + theirs + 1)], axis=1)


def style_controlled(played: Sequence[Battle], model: Mapping[str, Sequence[float]],
                     baseline: Mapping[str, Sequence[float]], version: Version, seed: int = 0) -> Estimate:
    """The probability of beating the baseline with an answer of equal style, with an interval over questions.

    logit P = theta + style . z with z the standardised differences over these battles (v0.1: an L2 penalty as
    scikit-learn's default, every battle twice; v2: none), read where the difference is zero. (The official table is
    fitted to the battles of many models at once and reads all of them at their mean difference. With one model z = 0 is
    its own mean, which would control nothing.)

    Args:
      model, baseline: uid -> tokens, headers, lists, bold texts of their answers.

    Raises:
      ValueError: no game was played, or nothing can be fitted.
    """
    if not played:
        raise ValueError("no game has a verdict, so there is no score")
    ours, theirs = (np.array([answers[b.uid] for b in played], float) for answers in (model, baseline))
    gaps = style_difference(ours, theirs, version)
    outcome, weight = (np.array([b[i] for b in played], float) for i in (1, 2))
    repeated = np.repeat(gaps, weight.astype(int), axis=0)
    centre, spread = repeated.mean(0), repeated.std(0, ddof=0 if version == "v0.1" else 1)
    scale = np.where(spread > 0, spread, 1)
    style, equal = (gaps - centre) / scale, -centre / scale
    names = {uid: i for i, uid in enumerate(dict.fromkeys(b.uid for b in played))}
    question = np.array([names[b.uid] for b in played])

    def probability(times: np.ndarray) -> float:
        weights = weight * times[question]
        if version == "v2.0":
            fitted = fit_logistic(np.column_stack([np.ones(len(style)), style]), outcome, weights)
            theta, effect = fitted[0], fitted[1:]
        else:  # the model's and the baseline's column, in units of log 10
            sides = np.full((len(style), 1), np.log(10))
            fitted = fit_logistic(np.column_stack([sides, -sides, style]), outcome, 2 * weights, penalty=1.0)
            theta, effect = np.log(10) * (fitted[0] - fitted[1]), fitted[2:]
        return float(scipy.special.expit(theta + effect @ equal))

    return refitted_estimate(probability, len(names), seed)
