"""What is said of one policy: every measure of `POLICY_MEASURES`, each with its interval over prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlhf_jax.evaluation.answers import JudgedAnswers
from rlhf_jax.evaluation.measures import POLICY_MEASURES
from rlhf_jax.evaluation.per_prompt import over_prompts, prompt_name
from rlhf_jax.evaluation.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class PolicySummary:
    """One policy over one set of prompts.

    Attributes:
      label, family, round: which policy; `report.policies.FAMILIES` has the families of a run.
      prompts, samples: number of different prompts, and of responses of all prompts together.
      estimates: name of a measure -> its value; without what was not measured.
    """

    label: str
    family: str
    round: int
    prompts: int
    samples: int
    estimates: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)

    def get(self, measure: str) -> Estimate | None:
        """The estimate of a measure; None where it was not measured."""
        return self.estimates.get(measure)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: getattr(self, name) for name in ("label", "family", "round", "prompts", "samples")}
        found = {name: self.get(name) for name in POLICY_MEASURES}
        return row | {name: None if estimate is None else estimate.to_json() for name, estimate in found.items()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> PolicySummary:
        estimates = {name: Estimate.from_json(row[name]) for name in POLICY_MEASURES if row.get(name) is not None}
        return PolicySummary(row["label"], row["family"], row["round"], row["prompts"], row["samples"], estimates)


def summarise(label: str, family: str, round: int, answers: JudgedAnswers, *, seed: int = 0, confidence: float = 0.95,
              resamples: int = 2000) -> PolicySummary:
    """Measures one policy from its scored samples.

    Args:
      answers: the policy's samples, and the baseline's.
      seed, confidence, resamples: of the bootstrap intervals over prompts.

    Raises:
      ValueError: the baseline is not over the same prompts, or a score is not finite.
    """
    estimates: dict[str, Estimate] = {}
    for name, measure in POLICY_MEASURES.items():
        values = measure.function(answers)
        estimate = None if values is None else over_prompts(answers.groups, values, seed, confidence, resamples)
        if estimate is not None:
            estimates[name] = estimate
    return PolicySummary(label, family, round, len(set(map(prompt_name, answers.groups))),
                         sum(len(group.responses) for group in answers.groups), estimates)
