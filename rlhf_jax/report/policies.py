"""Reading results: the policies of a run, what to call them, and how they differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import scipy.stats

from rlhf_jax.evaluation import (
    POLICY_MEASURES,
    Difference,
    Estimate,
    Measure,
    PolicyMeasure,
    PolicySummary,
    Results,
)
from rlhf_jax.evaluation.results import verdict


@dataclasses.dataclass(frozen=True)
class PolicyFamily:
    """How a family of policies is named and drawn. iterative: it has rounds that follow one another."""

    title: str
    colour: str
    marker: str
    iterative: bool = False


FAMILIES = {
    "sft": PolicyFamily("supervised fine-tuning", "#7d8590", "s"),
    "start": PolicyFamily("the model it starts from", "#7d8590", "s"),
    "offline_dpo": PolicyFamily("offline DPO", "#d08a1d", "D"),
    "matched_dpo": PolicyFamily("matched one-round DPO", "#3f88c5", "^"),
    "matched_raft": PolicyFamily("matched one-round RAFT", "#3f88c5", "^"),
    "raft": PolicyFamily("RAFT", "#9068c9", "v", iterative=True),
    "online": PolicyFamily("online iterative DPO", "#1f9d74", "o", iterative=True),
    "online_raft": PolicyFamily("online iterative RAFT", "#1f9d74", "o", iterative=True),
}
STARTS, MATCHED, ONLINE = ("sft", "start"), ("matched_dpo", "matched_raft"), ("online", "online_raft")
"""Families that play one part in a run, of which a run has one: by what was done to the start, and by `loop.method`."""
CONTROLS = (*MATCHED, "offline_dpo", "raft", *STARTS)
"""What the online policy is held against, most telling first: the matched control has the same prompts and budget."""
AGAINST_PROXY = (*ONLINE, *MATCHED, "raft")
"""Families that learn from the proxy's scores."""
WORDS = {"above": "better than", "below": "worse than", "level": "not distinguishable from"}
"""Of a verdict."""


def family_of(policy: PolicySummary) -> PolicyFamily:
    return FAMILIES.get(policy.family, PolicyFamily(policy.family, "#b8506e", "X"))


def last_of(policies: Iterable[PolicySummary], *families: str) -> PolicySummary | None:
    """The latest round of these families, or None."""
    return max((p for p in policies if p.family in families), key=lambda p: p.round, default=None)


def judge_of(policies: Iterable[PolicySummary]) -> str:
    """"gold" where a gold scorer judged, else "proxy"."""
    return "gold" if any(p.get("gold") is not None for p in policies) else "proxy"


def one_round(policies: Iterable[PolicySummary]) -> bool:
    """Whether the online policy has one round alone, which the matched control then is too."""
    last = last_of(policies, *ONLINE)
    return last is not None and last.round == 1


def controls_of(policies: Sequence[PolicySummary]) -> tuple[str, ...]:
    """The families of `CONTROLS` that are something else than the online policy."""
    return tuple(family for family in CONTROLS if family not in MATCHED or not one_round(policies))


def difference(results: Results, policy: PolicySummary, against: PolicySummary, measure: str) -> Difference | None:
    """How far apart two policies are; None where one was not measured.

    Reads the paired difference from `results.differences` where it is there. Else the two sets of samples are taken
    as independent, which for the same prompts gives an interval that is, as a rule, too wide rather than too narrow.
    """
    for found in results.differences:
        if (found.policy, found.against, found.measure) == (policy.label, against.label, measure):
            return found
    a, b = policy.get(measure), against.get(measure)
    if a is None or b is None:
        return None
    value, error = a.value - b.value, math.hypot(a.standard_error, b.standard_error)
    reach = error * float(scipy.stats.t.ppf(0.975, min(a.count, b.count) - 1))  # as if the noisier had all the variance
    estimate = Estimate(value, error, value - reach, value + reach, min(a.count, b.count))
    return Difference(policy.label, against.label, measure, estimate, paired=False)


def present_measures(policies: Sequence[PolicySummary]) -> list[PolicyMeasure]:
    """The measures that at least one policy has a number for: the columns of a table. What the proxy sees is left out
    of the win rates where the proxy is the judge."""
    twice = ("proxy_win_rate",) if judge_of(policies) == "proxy" else ()
    return [measure for name, measure in POLICY_MEASURES.items()
            if name not in twice and any(p.get(name) is not None for p in policies)]


def best_value(policies: Sequence[PolicySummary], measure: PolicyMeasure) -> float | None:
    """The value that a table marks; None where neither way is better, and for fewer than two policies."""
    values = [estimate.value for p in policies if (estimate := p.get(measure.name)) is not None]
    if measure.better is None or len(policies) < 2 or not values:
        return None
    return max(values) if measure.better == "higher" else min(values)


def show(estimate: Estimate | None, measure: Measure[Any]) -> tuple[str, str]:
    """A table cell: the number and its interval as text; empty strings where there is none."""
    return ("", "") if estimate is None else written(estimate, measure.percent, measure.digits)


def written(estimate: Estimate, percent: bool, digits: int) -> tuple[str, str]:
    """A number and its interval as text; an empty interval where one unit alone was measured."""
    scale, unit = (100.0, " %") if percent else (1.0, "")
    number = f"{estimate.value * scale:.{digits}f}{unit}"
    if math.isnan(estimate.low):
        return number, ""
    return number, f"{estimate.low * scale:.{digits}f} to {estimate.high * scale:.{digits}f}"


def title_of(family: str) -> str:
    """What a family is called; other names stand for themselves."""
    return FAMILIES[family].title if family in FAMILIES else family


def compared(against: str, difference: float, low: float, high: float, kl: float) -> str:
    """What a method is beside another at equal divergence, with the numbers. low, high: NaN where there is no interval.
    """
    interval = "" if math.isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
    words = WORDS[verdict(low, high)] if interval else "ahead of" if difference > 0 else "behind"
    return f"{words} {title_of(against)} (difference {difference:+.2f}{interval} at {kl:.2f} nats)"
