"""Figures of a run's making: learning curves, the reward model's calibration, the data funnel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.evaluation import ScorerReport
from rlhf_jax.evaluation.results import LogRow
from rlhf_jax.report.drawing import INK, Drawing, render

TRAIN, HELD_OUT = "#1f9d74", "#d08a1d"
KEPT, DROPPED, INVALID = "#1f9d74", "#d08a1d", "#c4506a"
CURVES = (
    ("Loss", ("loss",)),
    ("Accuracy", ("rewards/accuracies", "accuracy", "mean_token_accuracy")),
    ("Reward margin", ("rewards/margins", "margin")),
    ("Implicit rewards", ("rewards/chosen", "rewards/rejected")),
    ("Entropy (nats)", ("entropy",)),
)
"""Panels of a stage's learning curves. All but the rewards draw the first of their keys that the log has."""


def training_figures(training: Mapping[str, Sequence[LogRow]]) -> list[Drawing]:
    """Learning curves, one figure per training stage."""
    made = [learning_curves(label, log) for label, log in training.items()]
    return [figure for figure in made if figure is not None]


def learning_curves(label: str, log: Sequence[LogRow]) -> Drawing | None:
    """Training and held-out curves from a `log_history` in the layout of Hugging Face's trainer_state.json."""
    panels = []
    for title, keys in CURVES:
        found = [key for key in keys if _series(log, key)[0]]
        if found:
            panels.append((title, found if title == "Implicit rewards" else found[:1]))
    if not panels:
        return None
    panels = panels[:4]

    def draw(axes: list[Any]) -> None:
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, (title, keys) in zip(axes, panels, strict=False):
            for key, style in zip(keys, ("-", ":"), strict=False):
                name = key.rsplit("/", 1)[-1] if len(keys) > 1 else "training"
                ax.plot(*_series(log, key), color=TRAIN, linestyle=style, label=name)
                held_out = _series(log, f"eval_{key}")
                if held_out[0]:
                    ax.plot(*held_out, color=HELD_OUT, linestyle=style, marker=".",
                            label=f"{name}, held out" if len(keys) > 1 else "held out")
            ax.set(title=title, xlabel="step")
            ax.locator_params(axis="both", nbins=4)
            if len(ax.lines) > 1:
                ax.legend(loc="best", fontsize=7)

    slug = re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")
    return render(f"training-{slug}", label, "", f"Learning curves of {label}: {', '.join(t for t, _ in panels)}.",
                  draw, panels=max(len(panels), 3), height=2.2)


def _series(log: Sequence[LogRow], key: str) -> tuple[list[float], list[float]]:
    points = [(row.get("step", i), row[key]) for i, row in enumerate(log)
              if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
    return [x for x, _ in points], [y for _, y in points]


def reliability(report: ScorerReport | None) -> Drawing | None:
    """The reward model's confidence against its accuracy, bin by bin, with the number of pairs below."""
    bins = [b for b in report.preference.reliability if b.count] if report is not None else []
    if not bins:
        return None

    def draw(axes: list[Any]) -> None:
        curve, counts = axes
        curve.plot([50, 100], [50, 100], color=INK, linestyle="--", linewidth=1.0, alpha=0.6, label="calibrated")
        error = [100 * math.sqrt(b.accuracy * (1 - b.accuracy) / b.count) for b in bins]
        curve.errorbar([100 * b.confidence for b in bins], [100 * b.accuracy for b in bins], yerr=error,
                       color=TRAIN, marker="o", elinewidth=0.9, label="this reward model")
        curve.set(title="Calibration", xlabel="confidence, %", ylabel="accuracy, %", xlim=(49, 101))
        curve.legend(loc="upper left")
        counts.bar([50 * (b.low + b.high) for b in bins], [b.count for b in bins],
                   width=[92 * (b.high - b.low) for b in bins], color=TRAIN, alpha=0.75)
        counts.set(title="Pairs", xlabel="confidence, %", ylabel="number of pairs", xlim=(49, 101))

    return render("reliability", "Calibration of the reward model",
                  "Held-out pairs grouped by the probability given to the predicted winner. On the dashed line, 80 % "
                  "confidence is right 80 % of the time; below it the model is overconfident. Bars are one standard "
                  "error; the right panel shows how many pairs stand behind each point.",
                  f"Reliability diagram with {len(bins)} bins and a histogram of confidence.", draw, panels=2)


def funnel_bars(funnels: Mapping[str, Funnel]) -> Drawing | None:
    """What became of the rows of each data set: kept, left out on purpose, unusable."""
    funnels = {name: funnel for name, funnel in funnels.items() if funnel.read}
    if not funnels:
        return None

    def draw(axes: list[Any]) -> None:
        (ax,) = axes
        names = list(funnels)
        left = [0.0] * len(names)
        for part, colour in (("kept", KEPT), ("dropped", DROPPED), ("invalid", INVALID)):
            shares = [100 * _rows(funnels[n], part) / funnels[n].read for n in names]
            ax.barh(names, shares, left=left, color=colour, height=0.62, label=part)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        for row, name in enumerate(names):
            ax.annotate(f"{funnels[name].kept:,} of {funnels[name].read:,}", (101, row), va="center", fontsize=8,
                        annotation_clip=False)
        ax.set(xlabel="% of rows read", xlim=(0, 122), xticks=range(0, 101, 20), ylim=(len(names) - 0.5, -0.5))
        ax.grid(visible=False, axis="y")
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)

    return render("data_funnel", "Where the rows went",
                  "Kept rows train or prompt the models. Dropped rows were sound and left out on purpose (ties, "
                  "duplicates, too long); invalid ones could not be used.",
                  f"Bars of kept, dropped and invalid shares of {len(funnels)} data sets.", draw,
                  height=0.9 + 0.32 * len(funnels))


def _rows(funnel: Funnel, part: str) -> int:
    return funnel.kept if part == "kept" else (funnel.dropped if part == "dropped" else funnel.invalid).total()
