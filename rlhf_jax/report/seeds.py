"""Several seeds of one run: means with standard errors over seeds, and paired differences with t intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation import MEASURES, Estimate, PolicySummary, across_seeds
from rlhf_jax.report.markdown import joined, table
from rlhf_jax.report.policies import COLUMNS, CONTROLS, FAMILIES, MATCHED, ONLINE, Column, last_of, read_policies


def aggregate(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the results.json of several seeds of the same run.

    Returns:
      {"title", "seeds": count, "policies": [{"label", "family", "round", measure: Estimate JSON or None}],
      "differences": [{"policy", "against", "measure", "estimate"}]}. Estimates are over seeds: mean, standard error of
      the mean, t interval, and as `count` the seeds that have the number. Differences are taken within each seed: the
      last online round minus the last policy of each other family.

    Raises:
      ValueError: there are no results.
    """
    if not results:
        raise ValueError("nothing to aggregate: give the results of at least one seed")
    runs = [read_policies(one) for one in results]
    labels = dict.fromkeys(policy.label for run in runs for policy in run)
    return {"title": results[0]["title"], "seeds": len(results),
            "policies": [_over_seeds([p for run in runs for p in run if p.label == label]) for label in labels],
            "differences": [row for family in CONTROLS for row in _differences(runs, family)]}


def _over_seeds(policies: Sequence[PolicySummary]) -> dict[str, Any]:
    """One policy of several seeds."""
    row: dict[str, Any] = {name: getattr(policies[0], name) for name in ("label", "family", "round")}
    for measure in MEASURES:
        values = [e.value for p in policies if (e := getattr(p, measure)) is not None]
        row[measure] = across_seeds(values).to_json() if values else None
    return row


def _differences(runs: Sequence[Sequence[PolicySummary]], family: str) -> list[dict[str, Any]]:
    """The last online round minus the last policy of a family, seed by seed, in every measure both have."""
    found = [(last_of(run, *ONLINE), last_of(run, family)) for run in runs]
    pairs = [(ours, theirs) for ours, theirs in found if ours is not None and theirs is not None]
    rows = []
    for measure in MEASURES:
        values = [a.value - b.value for ours, theirs in pairs
                  if (a := getattr(ours, measure)) is not None and (b := getattr(theirs, measure)) is not None]
        if values:
            rows.append({"policy": pairs[0][0].label, "against": pairs[0][1].label, "family": family,
                         "measure": measure, "estimate": across_seeds(values).to_json()})
    return rows


def write_seeds_markdown(aggregate: Mapping[str, Any]) -> str:
    """The two tables of an aggregate and a sentence on what the matched control says; ends with a newline."""
    policies = aggregate["policies"]
    columns = [c for c in COLUMNS if any(p[c.measure] for p in policies)]
    parts = [f"## {aggregate['title']}: {aggregate['seeds']} seeds", _conclusion(aggregate["differences"]),
             table(["policy", *(c.title for c in columns)],
                   [[p["label"], *(_mean(p[c.measure], c) for c in columns)] for p in policies]) if columns else "",
             "Mean over seeds ± standard error of the mean."]
    if aggregate["differences"]:
        parts += [_difference_table(aggregate["differences"], columns),
                  "Taken within each seed; in brackets, 95 % t intervals over seeds."]
    return joined(parts)


def _conclusion(differences: Sequence[Mapping[str, Any]]) -> str:
    """What the seeds say of online against the matched control, by the gold reward where there is one."""
    rows = {d["measure"]: d for d in differences if d["family"] in MATCHED}
    row = rows.get("gold", rows.get("proxy"))
    if row is None:
        return ""
    estimate = Estimate.from_json(row["estimate"])
    what = f"{row['policy']} minus the {FAMILIES[row['family']].title} control in {row['measure']} reward"
    if math.isnan(estimate.low):
        return f"{what}: {estimate.value:+.2f} with one seed, so no interval."
    verdict = ("excludes zero: sampling anew in rounds helps" if estimate.low > 0 else
               "excludes zero: sampling anew in rounds harms" if estimate.high < 0 else
               "holds zero: the two are not distinguishable with these seeds")
    return (f"{what}: {estimate.value:+.2f}, 95 % interval over {estimate.count} seeds [{estimate.low:+.2f}, "
            f"{estimate.high:+.2f}], which {verdict}.")


def _mean(estimate: Mapping[str, Any] | None, column: Column) -> str:
    if estimate is None:
        return ""
    scale, unit = (100.0, " %") if column.percent else (1.0, "")
    error = estimate["standard_error"]
    spread = "" if error is None else f" ± {error * scale:.{column.digits}f}"
    return f"{estimate['value'] * scale:.{column.digits}f}{spread}{unit}"


def _difference_table(differences: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """One row for each policy compared with, one column a measure."""
    cells: dict[str, dict[str, str]] = {}
    for d in differences:
        column = next((c for c in columns if c.measure == d["measure"]), None)
        if column is not None:
            cells.setdefault(f"{d['policy']} − {d['against']}", {})[column.measure] = _signed(d["estimate"], column)
    return table(["difference", *(c.title for c in columns)],
                 [[name, *(row.get(c.measure, "") for c in columns)] for name, row in cells.items()])


def _signed(row: Mapping[str, Any], column: Column) -> str:
    scale = 100.0 if column.percent else 1.0
    estimate = Estimate.from_json(row)
    value, low, high = (f"{x * scale:+.{column.digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"
