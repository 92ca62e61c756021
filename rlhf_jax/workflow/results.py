"""From a finished run to its `Results`, which become results.json."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.evaluation.answers import JudgedAnswers
from rlhf_jax.evaluation.best_of_n import best_of_n_curve
from rlhf_jax.evaluation.policy import summarise
from rlhf_jax.evaluation.results import Answer, Difference, LogRow, Results, Sample, StageTime
from rlhf_jax.evaluation.win_rate import score_difference
from rlhf_jax.workflow.findings import found
from rlhf_jax.workflow.policies import Outcome
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.stage import Run, to_plain

PACKAGES = ("rlhf_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")


NO_KL = ("No divergence from the start was measured: that takes answers drawn at temperature 1 without top_k, top_p "
         "and min_p, and the evaluation drew none. Sample at temperature 1.0, or at several, such as [1.0, 0.7].")


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def results_so_far(run: Run, title: str) -> Results:
    """What can be shown of a run under way: its finished stages, their logs and data, its config."""
    return Results(
        title, created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), versions=versions(),
        training=training_logs(run), funnels=_pair_funnels(run),
        stages=tuple(StageTime(stage.name, stage.seconds, found(stage.report)) for stage in run.stages),
        config=to_plain(run.config))


def gather_results(run: Run, outcome: Outcome, *, title: str, gold: str | None, seed: int) -> Results:
    """Everything behind report, figures and tables.

    Args:
      gold: name of the gold judge's scores, or None where there is none.
      seed: of the bootstrap.
    """
    start = outcome.entries[0].label
    baseline = outcome.judged.get(start, [])
    policies = tuple(
        summarise(entry.label, entry.family, entry.round,
                  JudgedAnswers(outcome.judged[entry.label], baseline, proxy="proxy", gold=gold), seed=seed)
        for entry in outcome.entries if entry.label in outcome.judged)
    so_far = results_so_far(run, title)
    return dataclasses.replace(
        so_far, notes=(NO_KL,) if policies and all(policy.get("kl_k1") is None for policy in policies) else (),
        baseline=start, policies=policies, differences=tuple(differences(outcome, gold, seed)),
        best_of_n=tuple(best_of_n_curve(baseline, proxy="proxy", gold=gold, seed=seed)) if baseline else (),
        reward_model=outcome.reward_model, candidates=outcome.candidates, funnels={**outcome.funnels, **so_far.funnels},
        samples=tuple(samples(outcome, count=6)))


def differences(outcome: Outcome, gold: str | None, seed: int) -> Iterator[Difference]:
    """Paired score differences, by prompt, of the policy that is published to the last one of every other family."""
    labels = _shown(outcome)
    last = published(outcome)
    labels = [label for label in labels if label != last]
    for label in labels:
        for measure in ("gold", "proxy") if gold else ("proxy",):
            yield Difference(last, label, measure,
                             score_difference(outcome.judged[last], outcome.judged[label], measure, seed))


def published(outcome: Outcome) -> str:
    """The label of the chosen policy, of the last one where there was no choice."""
    return next((c.label for c in outcome.candidates if c.published), outcome.entries[-1].label)


def training_logs(run: Run) -> dict[str, tuple[LogRow, ...]]:
    """Stage name -> log_history of each training stage."""
    logs = {}
    for stage in run.stages:
        path = stage.folder / MODEL / "trainer_state.json"
        if path.is_file():
            logs[stage.name] = tuple(json.loads(path.read_text())["log_history"])
    return logs


def _pair_funnels(run: Run) -> dict[str, Funnel]:
    return {s.name: Funnel.from_json(s.report["funnel"]) for s in run.stages if "funnel" in s.report}


def samples(outcome: Outcome, count: int) -> Iterator[Sample]:
    """The first sample of every policy on a few prompts, side by side."""
    labels = _shown(outcome)
    first: Sequence[PromptGroup] = outcome.judged[labels[0]] if labels else []
    step = max(1, len(first) // count)
    by_label = {label: {g.prompt_id: g for g in outcome.judged[label]} for label in labels}
    for group in first[::step][:count]:
        answers = ((label, by_label[label][group.prompt_id].responses[0]) for label in labels)
        yield Sample(_text(group.prompt), tuple(
            Answer(label, response.text, dict(response.scores), response.finish_reason)
            for label, response in answers))


def _shown(outcome: Outcome) -> list[str]:
    """The start and the last policy of each family, of those that were judged."""
    last = {entry.family: entry.label for entry in outcome.entries if entry.label in outcome.judged}
    return list(last.values())


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
