"""A policy against another on the same prompts, as one scorer judges: win rate and difference of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import matched, measured, over_prompts, score_of
from rlhf_jax.evaluation.statistics import Estimate


def prompt_win_rates(policy_groups: Sequence[PromptGroup], baseline_groups: Sequence[PromptGroup],
                     scorer: str) -> list[float | None]:
    """Per group of the policy: the share of (policy sample, baseline sample) pairs that the policy wins.

    A tie counts one half. Samples without a score take no part; None where one side has none.

    Raises:
      ValueError: the two sides are not over the same prompts.
    """
    shares: list[float | None] = []
    for policy, baseline in matched(policy_groups, baseline_groups):
        ours, theirs = measured(policy, score_of(scorer)), measured(baseline, score_of(scorer))
        shares.append(float(0.5 + 0.5 * np.sign(ours - theirs.T).mean()) if len(ours) and len(theirs) else None)
    return shares


def win_rate(policy_groups: Sequence[PromptGroup], baseline_groups: Sequence[PromptGroup], scorer: str, seed: int = 0,
             confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """The mean over prompts of `prompt_win_rates`, in [0, 1], with a bootstrap interval over prompts.

    Args:
      scorer: name under which both sides' samples hold their scores.

    Raises:
      ValueError: the two sides are not over the same prompts, or no prompt has scores on both sides.
    """
    shares = prompt_win_rates(policy_groups, baseline_groups, scorer)
    return _estimated(policy_groups, shares, scorer, seed, confidence, resamples)


def score_difference(policy_groups: Sequence[PromptGroup], other_groups: Sequence[PromptGroup], scorer: str,
                     seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """Mean score of the policy minus mean score of the other, paired by prompt.

    Prompts where one side has no scored sample are left out.

    Raises:
      ValueError: the two sides are not over the same prompts, or no prompt has scores on both sides.
    """
    tables = [(measured(a, score_of(scorer)), measured(b, score_of(scorer)))
              for a, b in matched(policy_groups, other_groups)]
    gaps = [float(a.mean() - b.mean()) if len(a) and len(b) else None for a, b in tables]
    return _estimated(policy_groups, gaps, scorer, seed, confidence, resamples)


def _estimated(groups: Sequence[PromptGroup], values: Sequence[float | None], scorer: str, seed: int,
               confidence: float, resamples: int) -> Estimate:
    estimate = over_prompts(groups, values, seed, confidence, resamples)
    if estimate is None:
        raise ValueError(f"no prompt has samples scored by {scorer!r} on both sides; score both policies with it first")
    return estimate
