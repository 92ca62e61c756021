"""Choosing among the policies of rounds: what a round is rejected for, and which policy is published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import over_prompts, prompt_means, score_of
from rlhf_jax.evaluation.statistics import Estimate
from rlhf_jax.evaluation.win_rate import score_difference

PROXY, KL = "proxy", "kl_k1"
"""Names of the scorer's score, and of the estimate of a response's divergence from the start."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy as it was judged on the validation prompts.

    Attributes:
      label: of the policy.
      judged: its mean of the measure.
      gain: how much that is above the last accepted policy's, paired by prompt; None for the first.
      kl: its mean divergence from the start, in nats per response; None where it was not measured.
      rejected: why, in words; empty for an accepted policy.
      published: the run's `policy` points at it.
    """

    label: str
    judged: Estimate
    gain: Estimate | None = None
    kl: float | None = None
    rejected: str = ""
    published: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "judged": self.judged.to_json(),
                "gain": None if self.gain is None else self.gain.to_json()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Candidate:
        gain = row.get("gain")
        return Candidate(row["label"], Estimate.from_json(row["judged"]), Estimate.from_json(gain) if gain else None,
                         row.get("kl"), row.get("rejected", ""), row.get("published", False))


def judge_candidate(label: str, groups: Sequence[PromptGroup], accepted: tuple[str, Sequence[PromptGroup]] | None, *,
                    measure: str, pessimistic: str | None = None, kl_limit: float | None = None, seed: int = 0
                    ) -> Candidate:
    """The judgement on a policy: rejected where it is clearly worse than the last accepted one, too far from the start,
    or where the proxy clearly rose and the pessimistic score did not.

    Args:
      groups: its judged answers. accepted: label and judged answers of the last accepted policy.
      measure: the number that decides. pessimistic: the one that is held against the proxy. kl_limit: nats.
      seed: of the bootstrap over prompts.

    Raises:
      ValueError: no answer has the measure, the pessimistic number, or a divergence where that is limited.
    """
    judged, divergence = _mean(groups, measure, seed), over_prompts(groups, prompt_means(groups, score_of(KL)), seed)
    kl = None if divergence is None else divergence.value
    if kl_limit is not None and kl is None:
        raise ValueError("kl_limit bounds the divergence from the start, and none was measured; draw answers at "
                         "temperature 1 without top_k, top_p and min_p in selection.sampling, or leave kl_limit out")
    if pessimistic is not None:
        _mean(groups, pessimistic, seed)  # that it is not there is said of the start, before any round
    if accepted is None:
        return Candidate(label, judged, kl=kl)
    before, others = accepted
    gain = score_difference(groups, others, measure, seed)
    reasons = []
    if gain.high < 0:
        reasons.append(f"{measure} is {_signed(gain)} against {before}, and the interval lies below zero")
    if kl_limit is not None and kl is not None and kl > kl_limit:
        reasons.append(f"its divergence from the start, {kl:.3g} nats, is above the limit of {kl_limit:g}")
    if pessimistic is not None:
        proxy, held = (score_difference(groups, others, name, seed) for name in (PROXY, pessimistic))
        if proxy.low > 0 and held.value <= 0:
            reasons.append(f"{PROXY} rose by {_signed(proxy)} against {before} and {pessimistic} did not: "
                           f"{_signed(held)}")
    return Candidate(label, judged, gain, kl, "; ".join(reasons))


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The accepted one with the highest lower end of its interval; the earlier one of two that are equal."""
    return max((c for c in candidates if not c.rejected),
               key=lambda c: c.judged.value if math.isnan(c.judged.low) else c.judged.low)


def sentences_of(candidates: Sequence[Candidate]) -> list[str]:
    """Which candidate is published and why, in sentences; empty where nothing was chosen."""
    if not candidates:
        return []
    best = next(c for c in candidates if c.published)
    sentences = [f"Published is {best.label}: of the accepted policies its interval on the {best.judged.count:,} "
                 f"validation prompts, {best.judged}, has the highest lower end. The prompts of the evaluation took no "
                 "part in the choice."]
    return sentences + [f"{c.label} was rejected: {c.rejected}." for c in candidates if c.rejected]


def _mean(groups: Sequence[PromptGroup], name: str, seed: int) -> Estimate:
    found = over_prompts(groups, prompt_means(groups, score_of(name)), seed)
    if found is None:
        there = sorted({number for group in groups for response in group.responses for number in response.scores})
        raise ValueError(f"the choice goes by {name!r}, and no answer to the validation prompts has that number; there "
                         f"are {', '.join(there) or 'none'}")
    return found


def _signed(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:+.3g}"
    return f"{estimate.value:+.3g} [{estimate.low:+.3g}, {estimate.high:+.3g}]"
