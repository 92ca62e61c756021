"""Methods at equal divergence from the start, over seeds or of two runs: a table, and what it says in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlhf_jax.evaluation import PolicySummary, across_seeds
from rlhf_jax.evaluation.frontier import EqualKl, Frontier, at_equal_kl, frontier
from rlhf_jax.report.markdown import table
from rlhf_jax.report.policies import ONLINE, STARTS, compared, controls_of, judge_of, title_of

HOW = ("Each method is read on its own curve of reward over divergence from the start, at the divergence of the one of "
       "the two that moved less: between policies that were measured the reward is taken as linear in the square root "
       "of the divergence, and a method with one policy as such a line from the start.")
PLACES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Divergences in nats per answer at which curves are printed."""

Runs = Sequence[Sequence[PolicySummary]]
Reader = Callable[[Sequence[PolicySummary]], Frontier | None]


def curve_of(families: Sequence[str], measure: str) -> Reader:
    """Reads the curve of some families in the policies of a run."""
    return lambda policies: frontier(policies, families, measure)


def held_against(runs: Runs, theirs: Runs, ours_name: str, against: str, measure: str, ours: Reader, other: Reader
                 ) -> EqualKl | None:
    """Two methods seed by seed; None where no seed has both."""
    both = [(a, b) for mine, yours in zip(runs, theirs, strict=True)
            if (a := ours(mine)) is not None and (b := other(yours)) is not None]
    if not both:
        return None
    found = [at_equal_kl(a, b) for a, b in both]
    return EqualKl(ours_name, against, measure, across_seeds([f.kl for f in found]),
                   (across_seeds([f.ours for f in found]), across_seeds([f.theirs for f in found])),
                   across_seeds([f.difference for f in found]))


def against_controls(runs: Runs) -> tuple[EqualKl, ...]:
    """The online rounds against every other method of the same run."""
    measure = judge_of(policy for run in runs for policy in run)
    ours = next((family for family in ONLINE if any(p.family == family for run in runs for p in run)), None)
    if ours is None:
        return ()
    found = (held_against(runs, runs, ours, family, measure, curve_of((ours,), measure), curve_of((family,), measure))
             for family in controls_of([policy for run in runs for policy in run]) if family not in STARTS)
    return tuple(one for one in found if one is not None)


def headline_at_equal_kl(found: Sequence[EqualKl]) -> str:
    """The main sentence; empty without a comparison."""
    if not found:
        return ""
    seeds = found[0].difference.count
    intervals = "one seed, so no intervals" if seeds == 1 else f"95 % intervals over {seeds} seeds"
    clauses, subject = [], None
    for one in found:
        gap = one.difference
        clauses.append((f"{title_of(one.ours)} is " if one.ours != subject else "") +
                       compared(one.against, gap.value, gap.low, gap.high, one.kl.value))
        subject = one.ours
    return (f"At equal divergence from the start and in {found[0].measure} reward, {'; '.join(clauses)}: {intervals}.")


def equal_kl_table(found: Sequence[EqualKl]) -> str:
    """One row per comparison; empty without one."""
    rows = [[f"{title_of(f.ours)} − {title_of(f.against)}", f"{f.kl.value:.2f}",
             *(f"{value.value:.2f}" for value in f.values), _with_interval(f)] for f in found]
    return table(["at equal divergence", "nats per answer", "first", "second", "difference"], rows) if rows else ""


def _with_interval(found: EqualKl) -> str:
    gap = found.difference
    return f"{gap.value:+.2f}" + ("" if math.isnan(gap.low) else f" ({gap.low:+.2f} to {gap.high:+.2f})")


def curves_table(runs: Runs) -> str:
    """Mean reward of every method at some divergences that it reached in all seeds; empty where none was measured."""
    measure = judge_of(policy for run in runs for policy in run)
    families = dict.fromkeys(policy.family for run in runs for policy in run if policy.round > 0)
    curves = {family: [frontier(run, (family,), measure) for run in runs] for family in families}
    whole = {family: [c for c in found if c is not None] for family, found in curves.items() if all(found)}
    places = [kl for kl in PLACES if any(all(kl <= c.furthest for c in found) for found in whole.values())]
    if not places:
        return ""
    rows = [[title_of(family), *(_mean_at(found, kl) for kl in places)] for family, found in whole.items()]
    return table([f"{measure} reward at", *(f"{kl:g} nats" for kl in places)], rows)


def _mean_at(curves: Sequence[Frontier], kl: float) -> str:
    if any(kl > curve.furthest for curve in curves):
        return ""
    mean = across_seeds([curve.at(kl)[0] for curve in curves])
    return f"{mean.value:.2f}" + ("" if math.isnan(mean.standard_error) else f" ± {mean.standard_error:.2f}")


def of_two_runs(first: Sequence[PolicySummary], second: Sequence[PolicySummary]) -> str:
    """What the last method of a second run has over that of the first at equal divergence; empty if not measured."""
    measure = judge_of([*first, *second])
    curves = [frontier(run, (run[-1].family,), measure) for run in (first, second)]
    if curves[0] is None or curves[1] is None:
        return ""
    found = at_equal_kl(curves[1], curves[0])
    low, high = found.interval
    return (f"At equal divergence from the start, {found.kl:.2f} nats per answer, the second has {found.ours:.2f} "
            f"{measure} reward and the first {found.theirs:.2f}: a difference of {found.difference:+.2f} "
            f"({low:+.2f} to {high:+.2f}), over prompts. {HOW}")
