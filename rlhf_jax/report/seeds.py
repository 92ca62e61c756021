"""Several seeds of one run: means with standard errors over seeds, and paired differences with t intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from rlhf_jax.evaluation import (
    POLICY_MEASURES,
    Difference,
    Estimate,
    PolicyMeasure,
    PolicySummary,
    Results,
    across_seeds,
)
from rlhf_jax.evaluation.frontier import EqualKl
from rlhf_jax.report.equal_kl import HOW, against_controls, curves_table, equal_kl_table, headline_at_equal_kl
from rlhf_jax.report.markdown import joined, table
from rlhf_jax.report.policies import FAMILIES, MATCHED, ONLINE, controls_of, last_of, present_measures


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """Several seeds of one run. Estimates are over seeds; their count is the seeds that have the number.

    Attributes:
      title: of the run.
      seeds: how many.
      policies: each with the mean, the standard error of the mean and the t interval of every measure; its numbers of
        prompts and samples are those of the first seed that has it.
      differences: family -> the last online round minus the last policy of that family, taken within each seed.
      equal_kl: the online rounds against every other method at equal divergence from the start, within each seed.
      curves: the methods' rewards at some divergences, a Markdown table.
    """

    title: str
    seeds: int
    policies: tuple[PolicySummary, ...]
    differences: Mapping[str, tuple[Difference, ...]]
    equal_kl: tuple[EqualKl, ...] = ()
    curves: str = ""


def aggregate(results: Sequence[Results]) -> Aggregate:
    """Over the results of several seeds of the same run.

    Raises:
      ValueError: there are no results.
    """
    if not results:
        raise ValueError("nothing to aggregate: give the results of at least one seed")
    runs = [one.policies for one in results]
    controls = controls_of([policy for run in runs for policy in run])
    labels = dict.fromkeys(policy.label for run in runs for policy in run)
    return Aggregate(results[0].title, len(results),
                     tuple(over_seeds([p for run in runs for p in run if p.label == label]) for label in labels),
                     {family: found for family in controls if (found := tuple(_differences(runs, family)))},
                     against_controls(runs), curves_table(runs))


def over_seeds(policies: Sequence[PolicySummary]) -> PolicySummary:
    """One policy of several seeds."""
    values = {name: [e.value for p in policies if (e := p.get(name)) is not None] for name in POLICY_MEASURES}
    return dataclasses.replace(policies[0], estimates={
        name: across_seeds(found) for name, found in values.items() if found})


def _differences(runs: Sequence[Sequence[PolicySummary]], family: str) -> Iterator[Difference]:
    """The last online round minus the last policy of a family, seed by seed, in every measure both have."""
    found = [(last_of(run, *ONLINE), last_of(run, family)) for run in runs]
    pairs = [(ours, theirs) for ours, theirs in found if ours is not None and theirs is not None]
    for name in POLICY_MEASURES:
        values = [a.value - b.value for ours, theirs in pairs
                  if (a := ours.get(name)) is not None and (b := theirs.get(name)) is not None]
        if values:
            yield Difference(pairs[0][0].label, pairs[0][1].label, name, across_seeds(values))


def write_seeds_markdown(total: Aggregate) -> str:
    """The tables of an aggregate, equal divergence first, and what they say; ends with a newline."""
    measures = present_measures(total.policies)
    parts = [f"## {total.title}: {total.seeds} seeds", headline_at_equal_kl(total.equal_kl),
             equal_kl_table(total.equal_kl), HOW if total.equal_kl else "", total.curves,
             "Each method at its end, however far that is from the start:" if total.equal_kl else "",
             _conclusion(total.differences),
             table(["policy", *(m.title for m in measures)],
                   [[p.label, *(mean_cell(p.get(m.name), m) for m in measures)] for p in total.policies])
             if measures else "", "Mean over seeds ± standard error of the mean."]
    if total.differences:
        parts += [_difference_table(total.differences, measures),
                  "Taken within each seed; in brackets, 95 % t intervals over seeds."]
    return joined(parts)


def _conclusion(differences: Mapping[str, Sequence[Difference]]) -> str:
    """What the seeds say of online against the matched control, by the gold reward where there is one."""
    rows = {d.measure: (family, d) for family in MATCHED for d in differences.get(family, ())}
    if not rows.keys() & {"gold", "proxy"}:
        return ""
    family, row = rows["gold"] if "gold" in rows else rows["proxy"]
    estimate = row.estimate
    what = f"{row.policy} minus the {FAMILIES[family].title} control in {row.measure} reward"
    if math.isnan(estimate.low):
        return f"{what}: {estimate.value:+.2f} with one seed, so no interval."
    verdict = ("excludes zero: sampling anew in rounds helps" if estimate.low > 0 else
               "excludes zero: sampling anew in rounds harms" if estimate.high < 0 else
               "holds zero: the two are not distinguishable with these seeds")
    return (f"{what}: {estimate.value:+.2f}, 95 % interval over {estimate.count} seeds [{estimate.low:+.2f}, "
            f"{estimate.high:+.2f}], which {verdict}.")


def mean_cell(estimate: Estimate | None, measure: PolicyMeasure) -> str:
    """A table cell: the mean over seeds ± its standard error; empty where nothing was measured."""
    if estimate is None:
        return ""
    scale, unit = (100.0, " %") if measure.percent else (1.0, "")
    error = estimate.standard_error
    spread = "" if math.isnan(error) else f" ± {error * scale:.{measure.digits}f}"
    return f"{estimate.value * scale:.{measure.digits}f}{spread}{unit}"


def _difference_table(differences: Mapping[str, Sequence[Difference]], measures: Sequence[PolicyMeasure]) -> str:
    """One row for each policy compared with, one column per measure."""
    cells: dict[str, dict[str, str]] = {}
    for d in (d for found in differences.values() for d in found):
        row = cells.setdefault(f"{d.policy} − {d.against}", {})
        row[d.measure] = difference_cell(d.estimate, POLICY_MEASURES[d.measure])
    return table(["difference", *(m.title for m in measures)],
                 [[name, *(row.get(m.name, "") for m in measures)] for name, row in cells.items()])


def difference_cell(estimate: Estimate, measure: PolicyMeasure) -> str:
    """A table cell: a difference and its interval over seeds."""
    scale = 100.0 if measure.percent else 1.0
    value, low, high = (f"{x * scale:+.{measure.digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"
