"""What results.json holds: everything the report shows of a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Text
from rlhf_jax.evaluation.best_of_n import BestOfN
from rlhf_jax.evaluation.policy import PolicySummary
from rlhf_jax.evaluation.preference import ScorerReport
from rlhf_jax.evaluation.selection import Candidate
from rlhf_jax.evaluation.statistics import Estimate

LogRow = Mapping[str, Any]
"""A row of a `log_history` in the layout of Hugging Face's trainer_state.json."""


def verdict(low: float, high: float) -> str:
    """"above", "below", or "level" where the interval of a difference holds zero (or there is none)."""
    return "above" if low > 0 else "below" if high < 0 else "level"


@dataclasses.dataclass(frozen=True)
class Difference:
    """`policy` minus `against` in one measure. paired: computed prompt by prompt, so the interval is the right one."""

    policy: str
    against: str
    measure: str
    estimate: Estimate
    paired: bool = True

    @property
    def verdict(self) -> str:
        """"above", "below", or "level" where the interval holds zero (or there is none)."""
        return verdict(self.estimate.low, self.estimate.high)

    def to_json(self) -> dict[str, Any]:
        return {"policy": self.policy, "against": self.against, "measure": self.measure,
                "estimate": self.estimate.to_json()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Difference:
        return Difference(row["policy"], row["against"], row["measure"], Estimate.from_json(row["estimate"]))


@dataclasses.dataclass(frozen=True)
class StageTime:
    """A stage of the run, how long it took, and what it found, in words."""

    name: str
    seconds: float
    found: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One policy's answer to a prompt. label: of the policy. scores: by scorer."""

    label: str
    text: Text
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    finish_reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and the policies' answers to it, side by side."""

    prompt: Text
    answers: tuple[Answer, ...]

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Sample:
        return Sample(row["prompt"], tuple(
            Answer(a["label"], a["text"], a.get("scores") or {}, a.get("finish_reason")) for a in row["answers"]))


@dataclasses.dataclass(frozen=True)
class Results:
    """A finished run; every part but the title may be missing.

    Attributes:
      title, subtitle: of the page.
      notes: sentences about what was not measured.
      created: time in ISO 8601.
      versions: package -> version.
      baseline: label of the policy that win rates are against.
      policies: in order of presentation.
      differences: paired by prompt.
      best_of_n: curve of best-of-n sampling from the baseline.
      reward_model: its evaluation on held-out pairs.
      candidates: policies among which one was chosen by validation prompts, the start first.
      training: stage -> its log_history.
      funnels: data set -> how many of its rows were used.
      stages: what took how long, and what it found.
      samples: some prompts and what each policy answered.
      config: of the run, as plain values.
    """

    title: str
    subtitle: str | None = None
    notes: tuple[str, ...] = ()
    created: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    baseline: str | None = None
    policies: tuple[PolicySummary, ...] = ()
    differences: tuple[Difference, ...] = ()
    best_of_n: tuple[BestOfN, ...] = ()
    reward_model: ScorerReport | None = None
    candidates: tuple[Candidate, ...] = ()
    training: Mapping[str, tuple[LogRow, ...]] = dataclasses.field(default_factory=dict)
    funnels: Mapping[str, Funnel] = dataclasses.field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    samples: tuple[Sample, ...] = ()
    config: Any = None

    def to_json(self) -> dict[str, Any]:
        subtitle = {} if self.subtitle is None else {"subtitle": self.subtitle}
        return {
            "title": self.title, **subtitle, "notes": list(self.notes), "created": self.created,
            "versions": dict(self.versions), "baseline": self.baseline,
            "policies": [policy.to_json() for policy in self.policies],
            "differences": [difference.to_json() for difference in self.differences],
            "best_of_n": [point.to_json() for point in self.best_of_n],
            "reward_model": self.reward_model.to_json() if self.reward_model else None,
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "training": {stage: list(log) for stage, log in self.training.items()},
            "funnels": {name: funnel.to_json() for name, funnel in self.funnels.items()},
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
            "config": self.config,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Results:
        report = row.get("reward_model")
        return Results(
            row["title"], row.get("subtitle"), tuple(row.get("notes") or ()), row.get("created"),
            row.get("versions") or {}, row.get("baseline"),
            tuple(map(PolicySummary.from_json, row.get("policies") or ())),
            tuple(map(Difference.from_json, row.get("differences") or ())),
            tuple(map(BestOfN.from_json, row.get("best_of_n") or ())),
            ScorerReport.from_json(report) if report else None,
            tuple(map(Candidate.from_json, row.get("candidates") or ())),
            {stage: tuple(log) for stage, log in (row.get("training") or {}).items()},
            {name: Funnel.from_json(funnel) for name, funnel in (row.get("funnels") or {}).items()},
            tuple(StageTime(stage["name"], stage["seconds"], stage.get("found", ""))
                  for stage in row.get("stages") or ()),
            tuple(map(Sample.from_json, row.get("samples") or ())), row.get("config"))
