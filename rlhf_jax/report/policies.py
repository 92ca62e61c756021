"""Reading results: the policies of a run, what to call them, and how they differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats

from rlhf_jax.evaluation import Estimate, PolicySummary


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family of policies is named and drawn. iterative: it has rounds that follow one another."""

    title: str
    colour: str
    marker: str
    iterative: bool = False


FAMILIES = {
    "sft": Family("supervised fine-tuning", "#7d8590", "s"),
    "start": Family("the model it starts from", "#7d8590", "s"),
    "offline_dpo": Family("offline DPO", "#d08a1d", "D"),
    "matched_dpo": Family("matched one-round DPO", "#3f88c5", "^"),
    "matched_raft": Family("matched one-round RAFT", "#3f88c5", "^"),
    "raft": Family("RAFT", "#9068c9", "v", iterative=True),
    "online": Family("online iterative DPO", "#1f9d74", "o", iterative=True),
    "online_raft": Family("online iterative RAFT", "#1f9d74", "o", iterative=True),
}
STARTS, MATCHED, ONLINE = ("sft", "start"), ("matched_dpo", "matched_raft"), ("online", "online_raft")
"""Families that play one part in a run, of which a run has one: by what was done to the start, and by `loop.method`."""
CONTROLS = (*MATCHED, "offline_dpo", "raft", *STARTS)
"""What the online policy is held against, most telling first: the matched control has the same prompts and budget."""


def family_of(policy: PolicySummary) -> Family:
    return FAMILIES.get(policy.family, Family(policy.family, "#b8506e", "X"))


def read_policies(results: Mapping[str, Any]) -> list[PolicySummary]:
    """The policies of results.json in their order of presentation."""
    return [PolicySummary.from_json(row) for row in results.get("policies") or ()]


def last_of(policies: Iterable[PolicySummary], *families: str) -> PolicySummary | None:
    """The latest round of these families, or None."""
    return max((p for p in policies if p.family in families), key=lambda p: p.round, default=None)


def judge_of(policies: Iterable[PolicySummary]) -> str:
    """"gold" where a gold scorer judged, else "proxy"."""
    return "gold" if any(p.gold is not None for p in policies) else "proxy"


@dataclasses.dataclass(frozen=True)
class Difference:
    """`policy` minus `against` in one measure. paired: computed prompt by prompt, so the interval is the right one."""

    policy: str
    against: str
    measure: str
    estimate: Estimate
    paired: bool

    @property
    def verdict(self) -> str:
        """"above", "below", or "level" where the interval holds zero (or there is none)."""
        return "above" if self.estimate.low > 0 else "below" if self.estimate.high < 0 else "level"


def difference(results: Mapping[str, Any], policy: PolicySummary, against: PolicySummary, measure: str
               ) -> Difference | None:
    """How far apart two policies are; None where one was not measured.

    Reads the paired difference from `results["differences"]` where it is there. Else the two sets of samples are taken
    as independent, which for the same prompts gives an interval that is, as a rule, too wide rather than too narrow.
    """
    for row in results.get("differences") or ():
        if (row["policy"], row["against"], row["measure"]) == (policy.label, against.label, measure):
            return Difference(policy.label, against.label, measure, Estimate.from_json(row["estimate"]), True)
    a, b = getattr(policy, measure), getattr(against, measure)
    if a is None or b is None:
        return None
    value, error = a.value - b.value, math.hypot(a.standard_error, b.standard_error)
    reach = error * float(scipy.stats.t.ppf(0.975, min(a.count, b.count) - 1))  # as if the noisier had all the variance
    estimate = Estimate(value, error, value - reach, value + reach, min(a.count, b.count))
    return Difference(policy.label, against.label, measure, estimate, False)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the comparison table. percent: shown times 100. help: what it is, in a sentence."""

    measure: str
    title: str
    help: str
    percent: bool = False
    digits: int = 2


COLUMNS = (
    Column("gold", "Gold reward", "Mean score by the judge that no policy was trained against."),
    Column("proxy", "Proxy reward", "Mean score by the reward model the policies were trained against."),
    Column("best_of_n", "Best of n", "The judge's score of the answer the proxy picks among all samples of a prompt."),
    Column("win_rate", "Win rate", "Share of sample pairs won against the baseline, as the judge sees it; ties half.",
           percent=True, digits=1),
    Column("proxy_win_rate", "Win rate by proxy", "The same, as the proxy sees it.", percent=True, digits=1),
    Column("kl_k1", "KL, k1", "Divergence from the start in nats per answer, over the answers drawn at "
           "temperature 1 with no token left out; unbiased."),
    Column("kl_k3", "KL, k3", "The same by a second estimator, never negative; blind to what is no longer sampled."),
    Column("length", "Length", "Tokens an answer.", digits=1),
    Column("clipped_ratio", "Cut off", "Share of answers that ran out of budget.", percent=True, digits=1),
    Column("distinct_ratio", "Distinct", "Different answers over answers to one prompt; low means little variety.",
           percent=True, digits=1),
    Column("length_correlation", "Reward-length r",
           "Correlation of proxy reward and length within a prompt: the proxy's taste for long answers."),
)


def present_columns(policies: Sequence[PolicySummary]) -> list[Column]:
    """The columns that at least one policy has a number for."""
    return [c for c in COLUMNS if any(getattr(p, c.measure) is not None for p in policies)]


def show(estimate: Estimate | None, column: Column) -> tuple[str, str]:
    """A table cell: the number and its interval as text; empty strings where there is none."""
    if estimate is None:
        return "", ""
    scale, unit = (100.0, " %") if column.percent else (1.0, "")
    number = f"{estimate.value * scale:.{column.digits}f}{unit}"
    if math.isnan(estimate.low):
        return number, ""
    return number, f"{estimate.low * scale:.{column.digits}f} to {estimate.high * scale:.{column.digits}f}"
