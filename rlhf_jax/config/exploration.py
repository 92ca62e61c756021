"""What the ways of exploring need of a run: another policy's answers, features, an ensemble, win rates, margins."""

from __future__ import annotations

from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.pairs import ENHANCER, TWO_POLICIES, PairOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import NO_WIN_RATES, WITH_HEADS


def check_exploration(loop: LoopOptions, sampling: SamplingConfig, pairs: PairOptions, dpo: PreferenceOptions,
                      kind: str) -> None:
    """Raises ValueError for keys of a loop that trains on pairs which lack what they read.

    kind: of the scorer that the loop learns from.
    """
    loop.divided(sampling)
    if pairs.rule in TWO_POLICIES and not loop.from_start:
        raise ValueError(f"pairs.rule = {pairs.rule!r} needs the answers of two policies, and the policy alone is "
                         "asked; set loop.from_start, such as 0.5")
    if dpo.xpo_alpha and not loop.from_start:
        raise ValueError(f"dpo.xpo_alpha = {dpo.xpo_alpha:g} moves the policy away from the start's answers, and the "
                         "start is not asked; set loop.from_start, such as 0.5 with pairs.rule: across")
    if pairs.rule == ENHANCER and kind not in WITH_HEADS:
        raise ValueError(f"pairs.rule = 'enhancer' reads the features of a reward model, and kind = {kind!r} has "
                         f"none; choose one of {', '.join(WITH_HEADS)}, or another rule")
    if pairs.budget_by == "disagreement" and kind != "ensemble":
        raise ValueError("pairs.budget_by = 'disagreement' reads the scores of an ensemble's members, and the scorer "
                         f"is of kind = {kind!r}; train or open one of kind: ensemble, or set budget_by: random")
    if dpo.loss.needs_wins and dpo.win_rate == PreferenceOptions.win_rate and kind in NO_WIN_RATES:
        raise ValueError(f"dpo.loss_type = {dpo.loss.loss_type!r} reads probabilities of winning, and the score of "
                         f"kind = {kind!r} is none; set kind: pairwise (or another that plays games), or name such a "
                         "number with dpo.win_rate")
    if pairs.margin_scale != PairOptions.margin_scale and not dpo.loss.needs_margin:
        raise ValueError(f"pairs.margin_scale = {pairs.margin_scale:g} has no effect with dpo.loss_type = "
                         f"{dpo.loss.loss_type!r}, which reads no margin; leave it out, or choose rev_kl, kl, tv or "
                         "hellinger")
