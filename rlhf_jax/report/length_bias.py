"""The figure of a length-bias probe: its histogram, and a heat map by mean length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evaluation.length_bias import BINS, LengthBias
from rlhf_jax.report.drawing import INK, Drawing, render


def length_bias_figure(bias: LengthBias) -> Drawing:
    """Prompts by the correlation of score and length, and by mean length beside it."""
    counts = np.array(bias.heat_map)
    edges = np.linspace(-1, 1, BINS + 1)

    def draw(axes: list[Any]) -> None:
        histogram, heat = axes
        histogram.bar(edges[:-1], counts.sum(axis=0), width=np.diff(edges), align="edge", color="#1f9d74", alpha=0.75)
        histogram.axvline(bias.correlation.value, color=INK, linestyle="--", linewidth=1.0,
                          label=f"mean {bias.correlation}")
        histogram.set(title="Prompts by correlation", xlabel="correlation of score and length", ylabel="prompts")
        histogram.legend(loc="upper left")
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        heat.pcolormesh(edges, np.arange(len(counts) + 1), shares, cmap="Greens")
        heat.set(title="Share of prompts, by mean length", xlabel="correlation of score and length",
                 ylabel=f"mean length, {bias.unit}", yticks=range(len(bias.lengths)),
                 yticklabels=[f"{length:.0f}" for length in bias.lengths])
        heat.grid(visible=False)

    samples = " to ".join(dict.fromkeys(map(str, bias.samples)))
    return render("length_bias", "Score and length",
                  f"Pearson correlation of score and length over the {samples} samples of each "
                  f"prompt; {bias.left_out} prompts without one are left out. Right of zero, longer "
                  "answers to the same prompt get higher scores.",
                  f"Histogram and heat map of the correlations of {bias.correlation.count} prompts.", draw, panels=2)


def write_length_bias(report: Any, folder: Path) -> None:
    """figures/length_bias.png of a finished probe."""
    figure = length_bias_figure(LengthBias.from_json(report))
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / f"{figure.name}.png").write_bytes(figure.png)
