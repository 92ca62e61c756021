"""Judged samples of one policy, and what is measured of them: one value per row of prompts each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.groups import LENGTH, PromptGroup, Response
from rlhf_jax.evaluation.best_of_n import expected_best_of_n
from rlhf_jax.evaluation.per_prompt import ResponseNumber, measured, prompt_means, score_of
from rlhf_jax.evaluation.win_rate import prompt_win_rates

PromptValues = list[float | None]
"""One value per group; None where nothing was measured for it."""


@dataclasses.dataclass(frozen=True)
class JudgedAnswers:
    """A policy's samples, scored.

    Attributes:
      groups: one per row of prompts; scores "kl_k1" and "kl_k3" are read where present.
      baseline: the baseline's samples of the same prompts, for the win rates; None for no win rate.
      proxy, gold: names of the scores in `Response.scores`; None where the run has no such scorer.
    """

    groups: Sequence[PromptGroup]
    baseline: Sequence[PromptGroup] | None = None
    proxy: str | None = None
    gold: str | None = None

    @property
    def judge(self) -> str | None:
        """The gold scorer, or the proxy where there is no gold scorer."""
        return self.gold if self.gold is not None else self.proxy


def gold_reward(answers: JudgedAnswers) -> PromptValues | None:
    """Mean score by the gold scorer, which no policy was trained against."""
    return None if answers.gold is None else prompt_means(answers.groups, score_of(answers.gold))


def proxy_reward(answers: JudgedAnswers) -> PromptValues | None:
    """Mean score by the scorer that the policies are trained against."""
    return None if answers.proxy is None else prompt_means(answers.groups, score_of(answers.proxy))


def best_of_all(answers: JudgedAnswers) -> PromptValues | None:
    """The judge's score of the response that the proxy chooses among all of a prompt's."""
    if answers.proxy is None or answers.judge is None:
        return None
    proxy, judge = score_of(answers.proxy), score_of(answers.judge)
    tables = (measured(group, proxy, judge) for group in answers.groups)
    return [expected_best_of_n(t[:, 0], t[:, 1], len(t)) if len(t) else None for t in tables]


def wins(answers: JudgedAnswers) -> PromptValues | None:
    """Win rate against the baseline, in [0, 1], as the judge sees it."""
    return _win_rates(answers, answers.judge)


def proxy_wins(answers: JudgedAnswers) -> PromptValues | None:
    """Win rate against the baseline, in [0, 1], as the proxy sees it."""
    return _win_rates(answers, answers.proxy)


def _win_rates(answers: JudgedAnswers, scorer: str | None) -> PromptValues | None:
    if answers.baseline is None or scorer is None:
        return None
    return prompt_win_rates(answers.groups, answers.baseline, scorer)


def kl_k1(answers: JudgedAnswers) -> PromptValues:
    """Divergence from the reference in nats per response, over those drawn from the policy's own distribution."""
    return prompt_means(answers.groups, score_of("kl_k1"))


def kl_k3(answers: JudgedAnswers) -> PromptValues:
    """The same by the estimator that is never negative."""
    return prompt_means(answers.groups, score_of("kl_k3"))


def lengths(answers: JudgedAnswers) -> PromptValues:
    """Mean number of tokens, stop token included."""
    return prompt_means(answers.groups, length_in_tokens)


def clipped(answers: JudgedAnswers) -> PromptValues:
    """Share of responses that ran out of budget."""
    return prompt_means(answers.groups, lambda response: float(response.finish_reason == LENGTH))


def distinct(answers: JudgedAnswers) -> PromptValues:
    """Share of different answers (by token ids) among a prompt's; 1 / k when all are equal. None for one answer."""
    ids = ([r.ids.tobytes() for r in group.responses] for group in answers.groups)
    return [len(set(some)) / len(some) if len(some) > 1 else None for some in ids]


def length_correlation(answers: JudgedAnswers) -> PromptValues | None:
    """Pearson correlation of proxy score and length within a prompt.

    The length-bias figure of Dong et al., arXiv 2405.07863, section 2.2.
    """
    return None if answers.proxy is None else correlations(answers.groups, score_of(answers.proxy), length_in_tokens)


def correlations(groups: Sequence[PromptGroup], a: ResponseNumber, b: ResponseNumber) -> PromptValues:
    """Per group: Pearson correlation of two numbers over its responses.

    None where one does not vary, and for fewer than three measured responses (two always correlate at plus or minus
    one).
    """
    tables = (measured(group, a, b) for group in groups)
    return [float(np.corrcoef(t, rowvar=False)[0, 1]) if len(t) >= 3 and np.ptp(t, axis=0).all() else None
            for t in tables]


def length_in_tokens(response: Response) -> float:
    """Tokens of a response, stop token included."""
    return float(len(response.ids))
