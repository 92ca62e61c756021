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

from rlhf_jax.evaluation import Estimate, PolicySummary
from rlhf_jax.report.drawing import Drawing
from rlhf_jax.report.headline import headline
from rlhf_jax.report.policies import Column, family_of, present_columns, read_policies, show
from rlhf_jax.report.policy_figures import policy_figures
from rlhf_jax.report.run_figures import funnel_bars, reliability, training_figures

BEST_IS_HIGHEST = ("gold", "proxy", "best_of_n", "win_rate", "proxy_win_rate")
SECTIONS = (("notes", "notes", "Notes"), ("rows", "comparison", "Policies compared"),
            ("policy_figures", "figures", "Figures"), ("reward_model", "reward-model", "Reward model"),
            ("training_figures", "training", "Learning curves"), ("funnels", "data", "Data"),
            ("samples", "samples", "Sample answers"), ("stages", "stages", "Time"),
            ("config", "config", "Configuration"))
"""(part of the page's content, its anchor, its heading), in order."""


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes `report.html` and `figures/*.png` into a folder.

    The page needs nothing but itself: style and figures are inside, there is no script, and whatever part the results
    lack is left out.

    Args:
      results: the contents of results.json; every part but `title` may be missing. `policies`, `best_of_n`,
        `reward_model` and `funnels` hold the JSON of PolicySummary, BestOfN, PreferenceReport and Funnel; `training`
        a log_history a stage; `differences` rows of {policy, against, measure, estimate}, paired by prompt, that
        replace the report's own, unpaired ones; `stages` names and seconds; `samples` prompts and their answers.
      folder: made where it does not exist.

    Returns:
      The path of the page.

    Raises:
      ValueError: a part of the results has another shape; so may other errors of values and types.
    """
    content = _content(results)
    figures: list[Drawing] = [*content["policy_figures"], *content["training_figures"],
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
    page.write_text(text, encoding="utf-8")
    return page


def _content(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows, in plain texts and figures."""
    policies = read_policies(results)
    columns = present_columns(policies)
    content: dict[str, Any] = {
        "title": results["title"],
        "subtitle": results.get("subtitle"),
        "created": _date(results.get("created")),
        "headline": headline(results),
        "notes": results.get("notes"),
        "columns": columns,
        "rows": _rows(policies, columns),
        "prompts": f"{max((p.prompts for p in policies), default=0):,}",
        "policy_figures": policy_figures(results),
        "reward_model": _reward_model(results.get("reward_model") or {}),
        "reliability": reliability(results),
        "training_figures": training_figures(results),
        "funnels": results.get("funnels"),
        "funnel_bars": funnel_bars(results),
        "samples": [_sample(s) for s in results.get("samples") or ()],
        "stages": _stages(results.get("stages") or ()),
        "config": _config(results.get("config")),
        "versions": results.get("versions"),
    }
    content["sections"] = [(anchor, heading) for part, anchor, heading in SECTIONS if content[part]]
    return content


def _rows(policies: Sequence[PolicySummary], columns: Sequence[Column]) -> list[dict[str, Any]]:
    best = {c.measure: max((getattr(p, c.measure).value for p in policies if getattr(p, c.measure)), default=None)
            for c in columns if c.measure in BEST_IS_HIGHEST}

    def cell(policy: PolicySummary, column: Column) -> dict[str, Any]:
        estimate = getattr(policy, column.measure)
        number, interval = show(estimate, column)
        marked = estimate is not None and len(policies) > 1 and best.get(column.measure) == estimate.value
        return {"number": number, "interval": interval, "best": marked}

    return [{"label": p.label, "family": family_of(p).title, "colour": family_of(p).colour,
             "round": p.round if family_of(p).iterative else 0, "cells": [cell(p, c) for c in columns]}
            for p in policies]


def _reward_model(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, interval) of each number of a PreferenceReport's JSON."""
    columns = (Column("accuracy", "Accuracy", "", percent=True, digits=1),
               Column("nll", "Negative log-likelihood", "", digits=3), Column("brier", "Brier score", "", digits=3),
               Column("ece", "Expected calibration error", "", percent=True, digits=1))
    facts = [(c.title, *show(Estimate.from_json(report[c.measure]), c)) for c in columns if report.get(c.measure)]
    counts = [(title, f"{report[key]:,}", "") for key, title in (("pairs", "Pairs"), ("ties", "Ties"))
              if key in report]
    return facts + counts


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = [{"label": a["label"], "text": _text(a["text"]), "cut": a.get("finish_reason") == "length",
                "scores": [(name, f"{score:.2f}") for name, score in (a.get("scores") or {}).items()]}
               for a in sample["answers"]]
    return {"prompt": _text(sample["prompt"]), "answers": answers}


def _text(text: str | Sequence[Mapping[str, str]]) -> str:
    """Plain text of an answer or a conversation; roles are named where there are several messages."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    total = math.fsum(s["seconds"] for s in stages)
    rows = [{"name": s["name"], "time": _duration(s["seconds"]),
             "share": f"{100 * s['seconds'] / total:.0f} %" if total else ""} for s in stages]
    return [*rows, {"name": "all", "time": _duration(total), "share": ""}] if rows else []


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
