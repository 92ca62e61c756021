"""What a person reads of a plan: one table of stages, one of hours, sentences for what is wrong; and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.plan.compile import REMATERIALIZED
from rlhf_jax.plan.measure import StagePlan

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """A whole plan.

    Attributes:
      title: what was planned. accelerator: in words. mesh: why it is as it is, for `mesh: auto`; else the sizes.
      assumptions: in sentences. calls: stage -> how often its program runs in the whole recipe, as the config asks for
        it; a number for each stage of that name, of which there are two where two policies are sampled from.
      efficiency: share of the roofline's speed at which hours are given.
    """

    title: str
    accelerator: str
    mesh: str
    assumptions: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    calls: Mapping[str, Sequence[int]]
    efficiency: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def runs(self) -> list[tuple[StagePlan, int, float]]:
        """Of each stage that fits how often its program runs in the whole recipe, as it was compiled in the end, and
        the hours that takes."""
        left = {name: iter(calls) for name, calls in self.calls.items()}
        counted = [(stage, math.ceil(next(left[stage.stage]) * stage.more_calls)) for stage in self.stages]
        return [(stage, runs, runs * stage.times.step / self.efficiency / 3600) for stage, runs in counted
                if stage.fits]

    @property
    def hours(self) -> dict[str, float]:
        """stage -> hours of the whole recipe, of the stages that fit."""
        hours: dict[str, float] = {}
        for stage, _, taken in self.runs:
            hours[stage.stage] = hours.get(stage.stage, 0.0) + taken
        return hours


def report_from_json(raw: Mapping[str, Any]) -> Report:
    stages = tuple(StagePlan(**{**s, "change": tuple(s["change"]),
                                "collectives": {k: (int(n), float(b)) for k, (n, b) in s["collectives"].items()}})
                   for s in raw["stages"])
    calls = {name: [calls] if isinstance(calls, int) else calls for name, calls in raw["calls"].items()}  # older: one
    return Report(**{**raw, "stages": stages, "calls": calls, "assumptions": tuple(raw["assumptions"])})


def write_json(path: Path, reports: Sequence[Report]) -> None:
    """All reports of a call; numbers in full, so that tables can be written from them at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([report.to_json() for report in reports], indent=1) + "\n")


def read_json(path: Path) -> list[Report]:
    return [report_from_json(raw) for raw in json.loads(path.read_text())]


def gib(size: float) -> str:
    return f"{size / _GIB:.1f}" if size < 100 * _GIB else f"{size / _GIB:,.0f}"


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def mesh_words(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"


def useful_share(plan: StagePlan) -> float:
    """Share of the arithmetic peak that does what the model needs."""
    return plan.useful / (plan.executed or 1) * plan.compute_s / (plan.times.step or 1)


STAGE_COLUMNS = ("stage", "mesh", "fits", "arguments", "temporaries", "peak + held of limit, GiB", "received, GiB",
                 "kernels", "PFLOP", "time, bound by", "useful")


def stage_row(plan: StagePlan) -> tuple[str, ...]:
    """One stage, in the order of STAGE_COLUMNS."""
    mesh = mesh_words(plan.mesh) + (f" on each of {plan.hosts} hosts" if plan.hosts > 1 else "")
    if not plan.fits:
        asked = plan.needed or plan.peak
        wants = f"{gib(asked)} + {gib(plan.held)} of {gib(plan.limit)}" if asked else f"more than {gib(plan.limit)}"
        return (plan.stage, mesh, "NO", "", "", wants, "", "", "", "", "")
    fits = "yes" if not plan.change else "with " + ", ".join(plan.change)
    devices = math.prod(plan.mesh.values())
    return (plan.stage, mesh, fits, gib(plan.arguments), gib(plan.temporaries),
            f"{gib(plan.peak)} + {gib(plan.held)} of {gib(plan.limit)}", gib(plan.received), str(plan.kernels),
            f"{plan.executed / devices / 1e15:.3g}", f"{seconds(plan.times.step)}, {plan.times.bound}",
            f"{useful_share(plan):.0%}")


def notes(report: Report) -> list[str]:
    """Sentences about what a table cannot say."""
    out = []
    for s in report.stages:
        if s.why and s.stage != "prefill":
            out.append(f"{s.stage}: {s.why}")
        if s.rematerialized:
            out.append(f"{s.stage}: XLA warns {s.rematerialized} times of '{REMATERIALIZED}': an array is replicated "
                       "to change its sharding")
        if s.whole_tree:
            out.append(f"{s.stage}: {gib(s.whole_tree)} GiB of weights are gathered for all layers at once: the model "
                       "exists whole on every device, which a gather inside the loop over layers would save")
        if s.wide and s.exact:
            out.append(f"{s.stage}: {gib(s.wide)} GiB of gathers are float32 although the computation is narrower")
        if not s.fits:
            out.append(f"{s.stage}: does not fit, and no change tried makes it fit; use more devices")
        if s.across:
            out.append(f"{s.stage}: {gib(s.across)} GiB per call cross the slower network between slices or hosts")
    if not all(s.exact for s in report.stages):
        out.append("compiled by the CPU's compiler over as many virtual devices, which knows neither this "
                   "accelerator's memory nor its kernels and computes bfloat16 in float32: read temporaries and bytes "
                   "as upper bounds; its own compiler comes with `pip install \"rlhf_jax[tpu]\"`, for NVIDIA GPUs with "
                   "`pip install \"rlhf_jax[plan-gpu]\"`")
    return out


def collective_rows(report: Report) -> list[tuple[str, ...]]:
    """(stage, kind, runs, GiB received) of every stage."""
    return [(s.stage, kind, f"{runs:,}", gib(size)) for s in report.stages
            for kind, (runs, size) in s.collectives.items()]


def hour_rows(report: Report) -> list[tuple[str, ...]]:
    """(stage, calls, one call at the roofline, hours at the assumed efficiency), and the sum."""
    rows: list[tuple[str, ...]] = [
        (s.stage, f"{runs:,}", seconds(s.times.step), f"{hours:.2f}") for s, runs, hours in report.runs]
    if len(rows) > 1:
        rows.append(("all", "", "", f"{sum(report.hours.values()):.2f}"))
    return rows


HOUR_COLUMNS = ("stage", "calls in the recipe", "one call at the roofline", "hours")
SWEEP_COLUMNS = ("mesh", "fits", "hours in all", "largest peak, GiB", "sent, GiB")


def sweep_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One mesh per row, best first: those where all stages fit, by hours."""
    ranked = sorted(reports, key=lambda r: (sum(not s.fits or bool(s.change) for s in r.stages), sum(r.hours.values())))
    rows: list[tuple[str, ...]] = []
    for report in ranked:
        misfits = [s.stage for s in report.stages if not s.fits]
        changed = [s.stage for s in report.stages if s.change]
        fits = f"not {', '.join(misfits)}" if misfits else f"{', '.join(changed)} changed" if changed else "all"
        rows.append((report.mesh, fits, f"{sum(report.hours.values()):.2f}",
                     gib(max(s.peak for s in report.stages)), gib(sum(s.received for s in report.stages))))
    return rows


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def markdown(report: Report) -> str:
    """A section: stages, hours, notes."""
    parts = [f"{report.accelerator}. Mesh: {report.mesh}.",
             markdown_table(STAGE_COLUMNS, list(map(stage_row, report.stages)))]
    if rows := hour_rows(report):
        parts.append(markdown_table(HOUR_COLUMNS, rows))
    parts += [f"- {note}" for note in notes(report)]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ")
