"""What a page shows of a mix of data sets: its table, and figures of lengths, margins, shared prompts and a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.report.drawing import INK, Drawing, legend_below, render
from rlhf_jax.report.run_figures import TRAIN

Source = Mapping[str, Any]
"""A source's row of statistics.json."""
PARTS = (("prompt", "Prompt"), ("chosen", "Chosen, or the only answer"), ("rejected", "Rejected"))
MEANS = (("prompt", 1), ("chosen", 1), ("rejected", 1), ("chosen_longer", 3), ("margin", 3))
"""(a mean of a source, digits it is shown with)."""


def mix_content(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The table of statistics.json (`data` writes it) as texts, and its figures."""
    rows = [{"source": row["source"], "cells": _cells(row)} for row in statistics["sources"]]
    return {"unit": statistics["unit"], "rows": rows, "figures": mix_figures(statistics)}


def _cells(row: Source) -> list[str]:
    counts = [row["prompts"], row["rows"], row.get("published")]
    means = [(row[name], digits) for name, digits in MEANS]
    return [*("" if count is None else f"{count:,}" for count in counts),
            *("" if value is None else f"{value:.{digits}f}" for value, digits in means)]


def mix_figures(statistics: Mapping[str, Any]) -> list[Drawing]:
    """Lengths; margins where there are some; shared prompts of several sources; a map of the prompts."""
    sources, unit = statistics["sources"][:-1], statistics["unit"]  # the last row is their sum
    parts = [(name, title) for name, title in PARTS if any(name in row["percentiles"] for row in sources)]
    made = [_ranges("mix_lengths", f"Lengths in {unit}", sources, parts, unit,
                    "Bars hold the middle half of a source's rows, thin lines 90 % of them, and points are medians. "
                    "Answers that are chosen and longer teach length as well.")]
    graded = [row for row in sources if "margin" in row["percentiles"]]
    if graded:
        made.append(_ranges("mix_margins", "Margins", graded, [("margin", "Score gap of a pair")], "margin",
                            "As above. Sources grade on scales of their own; pairs near zero are close to a guess."))
    if len(sources) > 1:
        made.append(_overlap(sources, statistics["shared"]))
    return [*made, _map(sources, statistics["map"])] if statistics.get("map") else made


def _ranges(name: str, title: str, sources: Sequence[Source], parts: Sequence[tuple[str, str]], unit: str,
            caption: str) -> Drawing:
    """Percentiles 5, 25, 50, 75 and 95 of each source, a panel for each part."""

    def draw(axes: list[Any]) -> None:
        for ax, (part, heading) in zip(axes, parts, strict=True):
            for y, row in enumerate(sources):
                if part in row["percentiles"]:
                    low, first, middle, third, high = row["percentiles"][part]
                    ax.plot([low, high], [y, y], color=TRAIN, linewidth=1.2)
                    ax.plot([first, third], [y, y], color=TRAIN, linewidth=7.0, solid_capstyle="butt", alpha=0.55)
                    ax.plot([middle], [y], color=INK, marker="o", markersize=4.0)
            ax.set_xscale("symlog", linthresh=1.0)
            ax.set(title=heading, xlabel=unit, ylim=(len(sources) - 0.5, -0.5))
            ax.set_yticks(range(len(sources)), [_label(row) for row in sources] if ax is axes[0] else [])
            ax.grid(visible=False, axis="y")

    alt = f"Ranges of {', '.join(part for part, _ in parts)} over {len(sources)} sources."
    return render(name, title, caption, alt, draw, panels=len(parts), height=1.1 + 0.32 * len(sources))


def _overlap(sources: Sequence[Source], shared: Sequence[Sequence[int]]) -> Drawing:
    """A square per two sources: the share of the row's prompts that the column holds too."""
    shares = [[100 * count / max(row[i], 1) for count in row] for i, row in enumerate(shared)]

    def draw(axes: list[Any]) -> None:
        (ax,) = axes
        ax.pcolormesh(shares, cmap="Greens", vmin=0, vmax=100, edgecolors="none", alpha=0.8)
        for y, row in enumerate(shared):
            for x, count in enumerate(row):
                ax.text(x + 0.5, y + 0.5, f"{count:,}", ha="center", va="center", fontsize=8,
                        color="#1c2026" if shares[y][x] < 60 else "#ffffff")
        places = [i + 0.5 for i in range(len(sources))]
        ax.set_yticks(places, [f"{i + 1}  {_label(row)}" for i, row in enumerate(sources)])
        ax.set_xticks(places, [str(i + 1) for i in range(len(sources))])
        ax.invert_yaxis()
        ax.grid(visible=False)

    return render("mix_overlap", "Prompts that sources share",
                  "Distinct prompts (case and white space aside) that the source of the row has in common with that of "
                  "the column; the darker, the larger a share of the row's own. Of one with itself: all of them.",
                  f"A table of shared prompts of {len(sources)} sources.", draw, height=1.0 + 0.36 * len(sources))


def _map(sources: Sequence[Source], found: Mapping[str, Any]) -> Drawing:
    """A point for each of some prompts; the words at both ends of each direction beside its axis."""
    points = found["points"]
    across, up = (f"{', '.join(low)}  ←    →  {', '.join(high)}" for low, high in found["words"])

    def draw(axes: list[Any]) -> None:
        from matplotlib import colormaps

        (ax,), palette = axes, colormaps["tab10" if len(sources) <= 10 else "tab20"]
        for number, row in enumerate(sources):
            mine = [(x, y) for x, y, source in points if source == number]
            ax.scatter(*zip(*mine, strict=True) if mine else ((), ()), s=9.0, color=palette(number % palette.N),
                       alpha=0.7, linewidths=0.0, label=_label(row))
        ax.set(xlabel=across, ylabel=up, xticks=[], yticks=[])
        legend_below(axes)

    return render("mix_map", "A map of the prompts",
                  "A point is a prompt; those that share rare words lie near each other. The two directions are those "
                  "in which the words differ most, with the words that pull to either end. Sources that lie apart ask "
                  "about different things; what no source covers stays empty.",
                  f"A scatter of {len(points)} prompts of {len(sources)} sources.", draw, height=4.6)


def _label(row: Source) -> str:
    name = str(row["source"])
    return name if len(name) <= 30 else f"…{name[-29:]}"
