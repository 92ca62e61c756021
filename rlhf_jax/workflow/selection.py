"""Choosing the policy: each round is judged on validation prompts, and goes on from the last accepted one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config.run import SelectionSection
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.per_prompt import prompt_name
from rlhf_jax.evaluation.selection import PROXY, Candidate, best_candidate, judge_candidate
from rlhf_jax.scoring import Scorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupFile
from rlhf_jax.workflow.policies import judge_policy
from rlhf_jax.workflow.stage import Stage

JUDGE = "judge"
"""Under which the validation judge's score is stored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChooseStage(Stage):
    """Whether a round is accepted.

    Attributes:
      label: of its policy. judged: its judged answers.
      before, accepted: label and judged answers of the last accepted policy; None for the first.
      measure, options: what decides, and how.
    """

    label: str
    judged: GroupFile
    before: str = ""
    accepted: GroupFile | None = None
    measure: str
    options: SelectionSection

    def inputs(self) -> dict[str, Any]:
        """Patience says when a loop ends, and changes no judgement; data and sampling are in what was judged."""
        o = self.options
        return {"label": self.label, "judged": self.judged.key, "before": self.before,
                "accepted": self.accepted and self.accepted.key, "measure": self.measure,
                "pessimistic": o.pessimistic, "kl_limit": o.kl_limit, "seed": o.seed}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del folder
        others = None if self.accepted is None else (self.before, self.accepted.read())
        o = self.options
        found = judge_candidate(self.label, self.judged.read(), others, measure=self.measure,
                                pessimistic=o.pessimistic, kl_limit=o.kl_limit, seed=o.seed)
        if found.rejected:
            context.run.announce(f"{self.label} is rejected: {found.rejected}")
        return {**found.to_json(), "verdict": "rejected" if found.rejected else "accepted"}


class Chooser:
    """Judges the start, then each round's policy against the last accepted one.

    Args:
      prompts: for validation. scorers: the loop's, and the judge if there is one. label: of the start.
    """

    def __init__(self, context: Context, options: SelectionSection, prompts: Sequence[PromptGroup],
                 scorers: Sequence[Scorer], start: Checkpoint, label: str, dtype: str):
        self._context, self._options, self._prompts = context, options, prompts
        self._scorers, self._start, self._dtype = tuple(scorers), start, dtype
        self._candidates: list[tuple[Candidate, Checkpoint]] = []
        self._last: tuple[str, GroupFile, Checkpoint] | None = None
        self.judge(label, start)

    def judge(self, label: str, policy: Checkpoint) -> Checkpoint:
        """The policy that the next round goes on from: this one, or where it is rejected the last accepted one."""
        judged = judge_policy(self._context, f"validate/{label}", policy, self._prompts, self._options.sampling,
                              self._scorers, self._start, self._dtype)
        stage = ChooseStage(label=label, judged=judged, measure=measure_of(self._options), options=self._options)
        if self._last is not None:
            before, accepted, _ = self._last
            stage = dataclasses.replace(stage, before=before, accepted=accepted)
        found = Candidate.from_json(self._context.do(f"validate/{label}/choose", stage).report)
        self._candidates.append((found, policy))
        if self._last is None or not found.rejected:
            self._last = label, judged, policy
        return self._last[2]

    @property
    def ends(self) -> bool:
        """As many rounds in a row were rejected as patience allows."""
        patience, rejected = self._options.patience, [bool(c.rejected) for c, _ in self._candidates]
        return patience is not None and len(rejected) > patience and all(rejected[-patience:])

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that were judged, the start first, the one that is published marked."""
        found = [candidate for candidate, _ in self._candidates]
        best = best_candidate(found)
        return tuple(dataclasses.replace(c, published=c is best) for c in found)

    @property
    def published(self) -> Checkpoint:
        """The policy with the best lower bound."""
        return next(policy for (_, policy), c in zip(self._candidates, self.candidates, strict=True) if c.published)


def measure_of(options: SelectionSection) -> str:
    """The number that decides: the one named, else the judge's, else the proxy's."""
    return options.measure or (PROXY if options.judge is None else JUDGE)


def check_disjoint(validation: Sequence[PromptGroup], others: Mapping[str, Sequence[PromptGroup]]) -> None:
    """Raises ValueError where a validation prompt is also one of another section (white space aside)."""
    mine = {prompt_name(group) for group in validation}
    for section, groups in others.items():
        if shared := [group for group in groups if prompt_name(group) in mine]:
            count = len({prompt_name(group) for group in shared})
            raise ValueError(f"{count:,} of the {len(mine):,} prompts of selection.data are also prompts of {section}, "
                             f"the first {shared[0].prompt_id!r}: what is chosen by prompts that are trained or tested "
                             "on is no choice. Give prompts of their own")
