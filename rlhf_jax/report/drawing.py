"""One look for all figures, drawn once and kept in two forms: SVG for the page, PNG for the folder."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax.evaluation import Estimate

INK, LINE = "#2b3038", "#d5d9df"
"""Text and grid; in the page's SVG they follow the reader's colour scheme."""
WIDTH = 10.4
"""Of every figure in inches, so that text has the same size in all of them."""
STYLE = {
    "font.size": 9.0, "axes.titlesize": 10.0, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": LINE, "grid.color": LINE, "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0.0, "ytick.major.size": 0.0,
    "legend.frameon": False, "legend.fontsize": 8.0, "lines.linewidth": 1.6, "lines.markersize": 5.0,
    "figure.facecolor": "white", "axes.facecolor": "none", "svg.fonttype": "none",
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
      name: of the file, without ending. title: heading.
      caption: how to read it. alt: what it shows, for those who cannot see it.
      svg: an <svg> element without outside references. png: the same on white, 150 dots an inch.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def render(name: str, title: str, caption: str, alt: str, draw: Callable[[list[Any]], None], panels: int = 1,
           height: float = 3.2) -> Drawing:
    """Draws panels side by side with `draw(axes)` and keeps both forms; `height` is in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        draw(list(axes))
        svg, png = io.StringIO(), io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return Drawing(name, title, caption, alt, _inline(svg.getvalue(), name), png.getvalue())


def _inline(svg: str, name: str) -> str:
    """The bare <svg> element: no fixed size, no namespaces, colours from the page, ids of its own."""
    body = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]*)"', body)
    size = view_box.group(1) if view_box else "0 0 1 1"
    body = re.sub(r"<svg[^>]*>", f'<svg viewBox="{size}" aria-hidden="true" focusable="false">', body, count=1)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    return body.replace(INK, "currentColor").replace(LINE, "var(--line)")


def legend_below(axes: list[Any]) -> None:
    """One legend under all panels, of whatever they draw."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[0].figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=6)


def interval_arms(estimates: list[Estimate], scale: float = 1.0) -> np.ndarray:
    """[2, points] distances from the values to both ends of their intervals, as `errorbar` takes them."""
    arms = np.array([[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]])
    return scale * np.maximum(arms, 0.0)
