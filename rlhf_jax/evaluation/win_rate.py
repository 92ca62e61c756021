"""A policy against another on the same prompts, as one scorer judges: win rate and difference of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import matched, measured, score_of
from rlhf_jax.evaluation.statistics import Estimate, mean_estimate, paired_difference


def prompt_win_rates(policy_groups: Sequence[PromptGroup], baseline_groups: Sequence[PromptGroup],
                     scorer: str) -> np.ndarray:
    """[prompts]: the share of (policy sample, baseline sample) pairs of each prompt that the policy wins.

    A tie counts one half. Samples without a score take no part; prompts where one side has none are left out.

    Raises:
      ValueError: the two sides are not over the same prompts.
    """
    shares = []
    for policy, baseline in matched(policy_groups, baseline_groups):
        ours, theirs = measured(policy, score_of(scorer)), measured(baseline, score_of(scorer))
        if len(ours) and len(theirs):
            shares.append(0.5 + 0.5 * np.sign(ours - theirs.T).mean())
    return np.array(shares, np.float64)


def win_rate(policy_groups: Sequence[PromptGroup], baseline_groups: Sequence[PromptGroup], scorer: str, seed: int = 0,
             confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """The mean over prompts of `prompt_win_rates`, in [0, 1], with a bootstrap interval over prompts.

    Args:
      scorer: name under which both sides' samples hold their scores.

    Raises:
      ValueError: the two sides are not over the same prompts, or no prompt has scores on both sides.
    """
    shares = prompt_win_rates(policy_groups, baseline_groups, scorer)
    if not len(shares):
        raise ValueError(f"no prompt has samples scored by {scorer!r} on both sides; score both policies with it first")
    return mean_estimate(shares, seed, confidence, resamples)


def score_difference(policy_groups: Sequence[PromptGroup], other_groups: Sequence[PromptGroup], scorer: str,
                     seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """Mean score of the policy minus mean score of the other, paired by prompt.

    Prompts where one side has no scored sample are left out.

    Raises:
      ValueError: the two sides are not over the same prompts, or no prompt has scores on both sides.
    """
    tables = [(measured(a, score_of(scorer)), measured(b, score_of(scorer)))
              for a, b in matched(policy_groups, other_groups)]
    means = [(a.mean(), b.mean()) for a, b in tables if len(a) and len(b)]
    if not means:
        raise ValueError(f"no prompt has samples scored by {scorer!r} on both sides; score both policies with it first")
    ours, theirs = zip(*means, strict=True)
    return paired_difference(ours, theirs, seed, confidence, resamples)
