"""A sweep as tables: each cell over its seeds, the cells held against the first within each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation import POLICY_MEASURES, Difference, PolicySummary, Results, across_seeds
from rlhf_jax.evaluation.frontier import EqualKl
from rlhf_jax.report.equal_kl import curve_of, equal_kl_table, headline_at_equal_kl, held_against
from rlhf_jax.report.markdown import joined, table
from rlhf_jax.report.policies import judge_of
from rlhf_jax.report.seeds import aggregate, difference_cell, mean_cell, over_seeds, write_seeds_markdown

SHOWN = ("gold", "proxy", "win_rate", "kl_k1", "length")
"""Measures of a cell's last policy that the table of cells has."""
Cells = Mapping[str, Sequence[Results]]
"""Name of a cell -> its results, seed by seed; the first is what the others are held against."""


def write_sweep(title: str, cells: Cells) -> str:
    """Markdown: the cells against the first, then each by itself; ends with a newline.

    Only seeds that all cells have are in the first table.
    """
    alone = {name: write_seeds_markdown(aggregate(results)) for name, results in cells.items()}
    if len(alone) == 1:
        return next(iter(alone.values()))
    seeds, found = min(map(len, cells.values())), held_against_first(cells)
    both = "Differences are taken within each seed; in brackets, 95 % t intervals over seeds."
    top = joined([f"# {title}: {len(cells)} cells, {seeds} seeds each", headline_at_equal_kl(found),
                  equal_kl_table(found), "Each cell's last policy, however far it moved:", _table(cells, seeds), both])
    return "\n".join([top, *(f"# {name}\n\n{text}" for name, text in alone.items())])


def _last(results: Results) -> PolicySummary:
    return results.policies[-1]


def _table(cells: Cells, seeds: int) -> str:
    lasts = {name: [_last(results) for results in found[:seeds]] for name, found in cells.items()}
    measures = [POLICY_MEASURES[name] for name in SHOWN if any(p.get(name) for found in lasts.values() for p in found)]
    base, judge = next(iter(lasts.values())), POLICY_MEASURES[judge_of(p for found in lasts.values() for p in found)]
    rows = []
    for name, policies in lasts.items():
        mean = over_seeds(policies)
        gap = difference(policies, base, judge.name) if policies is not base else None
        rows.append([name, *(mean_cell(mean.get(m.name), m) for m in measures),
                     "" if gap is None else difference_cell(gap.estimate, judge)])
    return table(["cell", *(m.title for m in measures), f"{judge.title}, against the first"], rows)


def difference(policies: Sequence[PolicySummary], base: Sequence[PolicySummary], measure: str) -> Difference | None:
    """Of two cells' last policies, seed by seed; None where one was not measured."""
    values = [a.value - b.value for ours, theirs in zip(policies, base, strict=True)
              if (a := ours.get(measure)) is not None and (b := theirs.get(measure)) is not None]
    return Difference(policies[0].label, base[0].label, measure, across_seeds(values)) if values else None


def held_against_first(cells: Cells) -> list[EqualKl]:
    """Every cell but the first against the first at equal divergence, by the method of each one's last policy."""
    seeds = min(map(len, cells.values()))
    runs = {name: [results.policies for results in found[:seeds]] for name, found in cells.items()}
    (first, base), *others = runs.items()
    measure = judge_of(p for found in runs.values() for run in found for p in run)
    found = (held_against(mine, base, name, first, measure, curve_of((mine[0][-1].family,), measure),
                          curve_of((base[0][-1].family,), measure)) for name, mine in others)
    return [one for one in found if one is not None]


def sweep_json(title: str, cells: Cells) -> dict[str, Any]:
    """The same as numbers: per cell its policies over seeds, and the comparisons at equal divergence."""
    totals = {name: aggregate(results) for name, results in cells.items()}
    first = held_against_first(cells) if len(cells) > 1 else []
    return {"title": title, "against_first": [one.to_json() for one in first], "cells": [
        {"name": name, "seeds": total.seeds, "policies": [policy.to_json() for policy in total.policies],
         "differences": [d.to_json() for found in total.differences.values() for d in found],
         "equal_kl": [one.to_json() for one in total.equal_kl]} for name, total in totals.items()]}
