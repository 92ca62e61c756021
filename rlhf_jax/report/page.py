"""The run page: one self-contained HTML file, and its figures as PNG beside it."""

from __future__ import annotations

import datetime
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from rlhf_jax.data.groups import LENGTH, Text
from rlhf_jax.evaluation import (
    PAIR_MEASURES,
    Candidate,
    PolicyMeasure,
    PolicySummary,
    Results,
    Sample,
    ScorerReport,
    StageTime,
)
from rlhf_jax.report.drawing import Drawing
from rlhf_jax.report.headline import headline
from rlhf_jax.report.mix_figures import mix_content
from rlhf_jax.report.policies import best_value, family_of, present_measures, show, written
from rlhf_jax.report.policy_figures import policy_figures
from rlhf_jax.report.run_figures import funnel_bars, reliability, training_figures

SECTIONS = (("notes", "notes", "Notes"), ("rows", "comparison", "Policies compared"),
            ("candidates", "choice", "Choice of the policy"),
            ("policy_figures", "figures", "Figures"), ("reward_model", "reward-model", "Reward model"),
            ("training_figures", "training", "Learning curves"), ("mix", "mix", "Sources"), ("funnels", "data", "Data"),
            ("samples", "samples", "Sample answers"), ("stages", "stages", "Stages"),
            ("config", "config", "Configuration"))
"""(part of the page's content, its anchor, its heading), in order."""


def write_report(results: Results, folder: Path, at_work: str | None = None,
                 mix: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` and `figures/*.png` into a folder.

    The page needs nothing but itself: style and figures are inside, there is no script, and whatever part the results
    lack is left out. Differences that the results hold, paired by prompt, replace the report's own, unpaired ones.

    Args:
      folder: made where it does not exist.
      at_work: the stage at work, while the run is under way; the page then says so and loads itself again now and then.
      mix: the statistics of a mix of data sets.

    Returns:
      The path of the page.

    Raises:
      ValueError: a part of the results has another shape; so may other errors of values and types.
    """
    content = _content(results, at_work, mix)
    figures: list[Drawing] = [*content["policy_figures"], *content["training_figures"],
                              *(content["mix"]["figures"] if content["mix"] else ()),
                              *(f for f in (content["reliability"], content["funnel_bars"]) if f is not None)]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (folder / "figures" / f"{figure.name}.png").write_bytes(figure.png)
    template = importlib.resources.files("rlhf_jax.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = folder / "report.html"
    try:
        text = environment.from_string(template).render(content)
    except jinja2.UndefinedError as error:
        raise ValueError(f"the results lack what the page shows: {error}") from error
    temporary = folder / f".{page.name}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(page)  # whole at any time, for a browser that looks meanwhile
    return page


def _content(results: Results, at_work: str | None, mix: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything the template shows, in plain texts and figures."""
    policies = results.policies
    measures = present_measures(policies)
    content: dict[str, Any] = {
        "title": results.title,
        "subtitle": results.subtitle,
        "at_work": at_work,
        "created": _date(results.created),
        "headline": headline(results),
        "notes": results.notes,
        "columns": measures,
        "rows": _rows(policies, measures),
        "prompts": f"{max((p.prompts for p in policies), default=0):,}",
        "policy_figures": policy_figures(results),
        "candidates": _candidates(results.candidates),
        "reward_model": _reward_model(results.reward_model),
        "reliability": reliability(results.reward_model),
        "training_figures": training_figures(results.training),
        "mix": None if mix is None else mix_content(mix),
        "funnels": results.funnels,
        "funnel_bars": None if at_work else funnel_bars(results.funnels),
        "samples": [_sample(sample) for sample in results.samples],
        "stages": _stages(results.stages),
        "config": _config(results.config),
        "versions": results.versions,
    }
    content["sections"] = [(anchor, heading) for part, anchor, heading in SECTIONS if content[part]]
    return content


def _rows(policies: Sequence[PolicySummary], measures: Sequence[PolicyMeasure]) -> list[dict[str, Any]]:
    best = {measure.name: best_value(policies, measure) for measure in measures}

    def cell(policy: PolicySummary, measure: PolicyMeasure) -> dict[str, Any]:
        estimate = policy.get(measure.name)
        number, interval = show(estimate, measure)
        marked = estimate is not None and best[measure.name] == estimate.value
        return {"number": number, "interval": interval, "best": marked}

    return [{"label": p.label, "family": family_of(p).title, "colour": family_of(p).colour,
             "round": p.round if family_of(p).iterative else 0, "cells": [cell(p, m) for m in measures]}
            for p in policies]


def _reward_model(report: ScorerReport | None) -> list[tuple[str, str, str, str]]:
    """(name, value, interval, help) of each number of a reward model."""
    if report is None:
        return []
    found = report.preference
    facts = {name: (measure.title, *show(found.estimates[name], measure), measure.help)
             for name, measure in PAIR_MEASURES.items()}
    facts |= {name: (name, *written(number, percent=True, digits=1), "") for name, number in report.benchmark.items()}
    for name, (judged, rows) in report.incomplete.items():
        title, value, interval, help = facts[name]
        facts[name] = title, value, f"{interval} ({judged:,} of {rows:,} rows)".strip(), help
    return [*facts.values(), ("Pairs", f"{found.pairs:,}", "", "Pairs that were judged."),
            ("Ties", f"{found.ties:,}", "", "Pairs whose responses got the same score.")]


def _candidates(candidates: Sequence[Candidate]) -> list[dict[str, str]]:
    """A row for each policy that was judged on the validation prompts."""
    return [{"label": c.label, "judged": str(c.judged), "gain": "" if c.gain is None else str(c.gain),
             "kl": "" if c.kl is None else f"{c.kl:.2f}",
             "verdict": f"rejected: {c.rejected}" if c.rejected else "published" if c.published else "accepted"}
            for c in candidates]


def _sample(sample: Sample) -> dict[str, Any]:
    answers = [{"label": a.label, "text": _text(a.text), "cut": a.finish_reason == LENGTH,
                "scores": [(name, f"{score:.2f}") for name, score in a.scores.items()]} for a in sample.answers]
    return {"prompt": _text(sample.prompt), "answers": answers}


def _text(text: Text) -> str:
    """Plain text of an answer or a conversation; roles are named where there are several messages."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def _stages(stages: Sequence[StageTime]) -> list[dict[str, str]]:
    total = math.fsum(s.seconds for s in stages)
    rows = [{"name": s.name, "time": _duration(s.seconds),
             "share": f"{100 * s.seconds / total:.0f} %" if total else "", "found": s.found} for s in stages]
    return [*rows, {"name": "all", "time": _duration(total), "share": "", "found": ""}] if rows else []


def _date(created: str | None) -> str | None:
    """An ISO 8601 time as people write it; anything else as it is."""
    try:
        return datetime.datetime.fromisoformat(created or "").strftime("%d %B %Y, %H:%M %Z").strip(" ,")
    except ValueError:
        return created


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _config(config: Any) -> str:
    if not config or isinstance(config, str):
        return config or ""
    return yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)
