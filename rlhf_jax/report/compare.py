"""Two finished runs side by side, as Markdown: their policies, how far apart they are, and the settings that differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rlhf_jax.evaluation import PolicySummary, Results
from rlhf_jax.report.equal_kl import of_two_runs
from rlhf_jax.report.markdown import joined, table
from rlhf_jax.report.policies import ONLINE, difference, last_of, present_measures, show

SHOWN = 60
"""Characters of a setting's value that are shown."""


def compare_runs(names: tuple[str, str], runs: tuple[Results, Results]) -> str:
    """What the second run's last policy has over the first's, measure by measure, and why it may; ends with a newline.

    The runs' samples are taken as independent, which for the same prompts gives intervals that are, as a rule, too wide
    rather than too narrow.

    Raises:
      ValueError: a run compared no policies.
    """
    for name, run in zip(names, runs, strict=True):
        if not run.policies:
            raise ValueError(f"the run {name} compared no policies, so there is nothing to hold against another; add "
                             "an evaluation section")
    first, second = (last_of(run.policies, *ONLINE) or run.policies[-1] for run in runs)
    parts = [f"## {names[1]} against {names[0]}", _policies(first, second),
             "In brackets, 95 % intervals over prompts; differences are second minus first, the two runs' samples "
             "taken as independent. How much training runs vary from seed to seed is not in them."]
    parts.append(of_two_runs(*(run.policies for run in runs)))
    changed = settings(*(run.config for run in runs))
    parts += [table(["setting", "first", "second"], changed)] if changed else ["Both runs have the same settings."]
    return joined(parts)


def _policies(first: PolicySummary, second: PolicySummary) -> str:
    rows = []
    for measure in present_measures([first, second]):
        gap = difference(Results(""), second, first, measure.name)
        estimates = first.get(measure.name), second.get(measure.name), None if gap is None else gap.estimate
        rows.append([measure.title, *(_cell(*show(estimate, measure)) for estimate in estimates)])
    return table(["measure", f"first: {first.label}", f"second: {second.label}", "difference"], rows)


def _cell(number: str, interval: str) -> str:
    return f"{number} ({interval})" if interval else number


def settings(first: Any, second: Any) -> list[list[str]]:
    """Key and both values of each setting that differs; output folders are no settings."""
    ours, theirs = dict(_flat(first)), dict(_flat(second))
    return [[key, *(json.dumps(side[key])[:SHOWN] if key in side else "" for side in (ours, theirs))]
            for key in sorted({*ours, *theirs} - {"output_dir"}) if ours.get(key) != theirs.get(key)]


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
