"""What is said of one policy: rewards, win rate, divergence, lengths, diversity, each with its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.groups import LENGTH, PromptGroup, Response
from rlhf_jax.evaluation.best_of_n import expected_best_of_n
from rlhf_jax.evaluation.per_prompt import Measure, measured, over_prompts, prompt_means, prompt_name, score_of
from rlhf_jax.evaluation.statistics import Estimate
from rlhf_jax.evaluation.win_rate import prompt_win_rates

MEASURES = ("gold", "proxy", "best_of_n", "win_rate", "proxy_win_rate", "kl_k1", "kl_k3", "length", "clipped_ratio",
            "distinct_ratio", "length_correlation")
"""The fields of a PolicySummary that are estimates."""


@dataclasses.dataclass(frozen=True)
class PolicySummary:
    """One policy over one set of prompts. An estimate is None where nothing was measured for it.

    The judge is the gold scorer, or the proxy where there is no gold scorer.

    Attributes:
      label, family, round: which policy; `report.policies.FAMILIES` has the families of a run.
      prompts, samples: number of different prompts, and of responses of all prompts together.
      gold, proxy: mean score; the proxy is the scorer trained against, the gold scorer was never trained against.
      best_of_n: the judge's score of the response that the proxy chooses among all of a prompt's.
      win_rate, proxy_win_rate: against the baseline, in [0, 1], as the judge and as the proxy see it.
      kl_k1, kl_k3: divergence from the reference in nats per response (sums over tokens, two estimators), over the
        responses drawn from the policy's own distribution; None where there is none of them.
      length: tokens, stop token included.
      clipped_ratio: share of responses that ran out of budget.
      distinct_ratio: share of different answers among a prompt's responses; 1 / k when all are equal.
      length_correlation: Pearson correlation of proxy score and length within a prompt, averaged over prompts (the
        length-bias figure of Dong et al., arXiv 2405.07863, section 2.2).
    """

    label: str
    family: str
    round: int
    prompts: int
    samples: int
    gold: Estimate | None = None
    proxy: Estimate | None = None
    best_of_n: Estimate | None = None
    win_rate: Estimate | None = None
    proxy_win_rate: Estimate | None = None
    kl_k1: Estimate | None = None
    kl_k3: Estimate | None = None
    length: Estimate | None = None
    clipped_ratio: Estimate | None = None
    distinct_ratio: Estimate | None = None
    length_correlation: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(self, name) for name in ("label", "family", "round", "prompts", "samples")}
        for name in MEASURES:
            estimate = getattr(self, name)
            row[name] = None if estimate is None else estimate.to_json()
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PolicySummary:
        estimates = {name: Estimate.from_json(row[name]) for name in MEASURES if row.get(name) is not None}
        return PolicySummary(row["label"], row["family"], row["round"], row["prompts"], row["samples"], **estimates)


def summarise(label: str, family: str, round: int, groups: Sequence[PromptGroup],
              baseline_groups: Sequence[PromptGroup] | None = None, *, proxy: str | None = None,
              gold: str | None = None, seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> PolicySummary:
    """Measures one policy from its scored samples.

    Args:
      groups: the policy's samples, one group a prompt; scores "kl_k1" and "kl_k3" are read where present.
      baseline_groups: the baseline's samples of the same prompts, for the win rates; None for no win rate.
      proxy, gold: names of the scores in `Response.scores`; None where the run has no such scorer.
      seed, confidence, resamples: of the bootstrap intervals over prompts.

    Raises:
      ValueError: the baseline is not over the same prompts, or a score is not finite.
    """
    judge = gold if gold is not None else proxy
    per_prompt: dict[str, list[float | None]] = {
        "kl_k1": prompt_means(groups, score_of("kl_k1")),
        "kl_k3": prompt_means(groups, score_of("kl_k3")),
        "length": prompt_means(groups, _length),
        "clipped_ratio": prompt_means(groups, _clipped),
        "distinct_ratio": distinct_ratios(groups),
    }
    if gold is not None:
        per_prompt["gold"] = prompt_means(groups, score_of(gold))
    if proxy is not None:
        per_prompt["proxy"] = prompt_means(groups, score_of(proxy))
        per_prompt["length_correlation"] = correlations(groups, score_of(proxy), _length)
        per_prompt["best_of_n"] = _best_of_all(groups, proxy, judge or proxy)
    if baseline_groups is not None and judge is not None:
        per_prompt["win_rate"] = prompt_win_rates(groups, baseline_groups, judge)
    if baseline_groups is not None and proxy is not None:
        per_prompt["proxy_win_rate"] = prompt_win_rates(groups, baseline_groups, proxy)
    estimates = {name: over_prompts(groups, values, seed, confidence, resamples) for name, values in per_prompt.items()}
    return PolicySummary(label, family, round, len(set(map(prompt_name, groups))),
                         sum(len(group.responses) for group in groups), **estimates)


def distinct_ratios(groups: Sequence[PromptGroup]) -> list[float | None]:
    """Per group: different answers (by token ids) over answers; None for fewer than two answers."""
    answers = ([r.ids.tobytes() for r in group.responses] for group in groups)
    return [len(set(some)) / len(some) if len(some) > 1 else None for some in answers]


def correlations(groups: Sequence[PromptGroup], a: Measure, b: Measure) -> list[float | None]:
    """Per group: Pearson correlation of two measures over its responses.

    None where a measure does not vary, and for fewer than three measured responses (two always correlate at plus or
    minus one).
    """
    tables = (measured(group, a, b) for group in groups)
    return [float(np.corrcoef(t, rowvar=False)[0, 1]) if len(t) >= 3 and np.ptp(t, axis=0).all() else None
            for t in tables]


def _length(response: Response) -> float:
    return float(len(response.ids))


def _clipped(response: Response) -> float:
    return float(response.finish_reason == LENGTH)


def _best_of_all(groups: Sequence[PromptGroup], proxy: str, judge: str) -> list[float | None]:
    tables = (measured(group, score_of(proxy), score_of(judge)) for group in groups)
    return [expected_best_of_n(t[:, 0], t[:, 1], len(t)) if len(t) else None for t in tables]
