"""Figures of policies: reward against divergence, rewards and lengths by round, win rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import POLICY_MEASURES, BestOfN, Estimate, PolicySummary, Results
from rlhf_jax.report.drawing import INK, Drawing, interval_arms, legend_below, render
from rlhf_jax.report.policies import STARTS, PolicyFamily, family_of


def policy_figures(results: Results) -> list[Drawing]:
    """The figures the results have numbers for."""
    policies = results.policies
    made = [reward_against_kl(policies, results.best_of_n), win_rates(policies, results.baseline or "the baseline"),
            by_round(policies, ("gold", "proxy"), "reward_by_round", "Reward by round",
                     "Bars are 95 % intervals over prompts. A proxy that climbs while gold stays or falls means that "
                     "the policy exploits the reward model."),
            by_round(policies, ("length", "clipped_ratio"), "length_by_round", "Answer length by round",
                     "Longer answers often please a reward model more; reward that comes with length alone is to be "
                     "distrusted. Cut off: the share of answers that ran out of budget.")]
    return [figure for figure in made if figure is not None]


def reward_against_kl(policies: Sequence[PolicySummary], best_of_n: Sequence[BestOfN]) -> Drawing | None:
    """Proxy and gold reward against the square root of the divergence from the start (Gao et al., arXiv 2210.10760)."""
    shown = [p for p in policies if p.get("kl_k1") is not None]
    measures = [m for m in ("gold", "proxy") if any(p.get(m) for p in shown)]
    if not measures:
        return None

    def draw(axes: list[Any]) -> None:
        for ax, measure in zip(axes, measures, strict=True):
            _best_of_n(ax, measure, best_of_n)
            for family, members in _families(shown, measure):
                _path(ax, family, members, measure)
            ax.set(title=POLICY_MEASURES[measure].title, xlabel="√KL from the start (√nats per answer)",
                   ylabel=POLICY_MEASURES[measure].unit)
        legend_below(axes)

    return render("reward_against_kl", "Reward against divergence",
                  "Each point is a policy; numbers are rounds. Up and to the left is better: more reward for less "
                  "change. Bars are 95 % intervals over prompts. The dashed line is best-of-n sampling from the start, "
                  "placed at the bound log n − (n − 1)/n. KL is the k1 estimate over answers drawn at "
                  "temperature 1, taken as 0 where noise makes it negative.",
                  f"Scatter of {' and '.join(measures)} reward against root KL for {len(shown)} policies.",
                  draw, panels=len(measures), height=4.2)


def _best_of_n(ax: Any, measure: str, points: Sequence[BestOfN]) -> None:
    kept = [(p, e) for p in points if (e := p.gold if measure == "gold" else p.proxy) is not None]
    if not kept:
        return
    x = np.array([math.sqrt(max(p.kl, 0.0)) for p, _ in kept])
    estimates = [e for _, e in kept]
    y = np.array([e.value for e in estimates])
    ax.errorbar(x, y, yerr=interval_arms(estimates), color=INK, linestyle="--", marker=".", linewidth=1.0,
                elinewidth=0.7, alpha=0.7, label="best of n from the start")
    ax.annotate(f"n = {kept[-1][0].n}", (x[-1], y[-1]), textcoords="offset points", xytext=(5, -9), fontsize=7.5)


def _path(ax: Any, family: PolicyFamily, members: Sequence[PolicySummary], measure: str) -> None:
    estimates = [p.estimates[measure] for p in members]
    root = [_root(p.estimates["kl_k1"]) for p in members]
    x, y = [e.value for e in root], [e.value for e in estimates]
    ax.errorbar(x, y, xerr=interval_arms(root), yerr=interval_arms(estimates), color=family.colour,
                marker=family.marker, linestyle="-" if family.iterative else "none", elinewidth=0.9, label=family.title)
    if len(members) > 1:
        for policy, a, b in zip(members, x, y, strict=True):
            ax.annotate(str(policy.round), (a, b), textcoords="offset points", xytext=(4, 4), fontsize=7.5,
                        color=family.colour)


def _root(kl: Estimate) -> Estimate:
    """The square root of a divergence and of its interval; noise below zero becomes zero."""
    value, low, high = (math.sqrt(v) if v > 0 else v * 0.0 for v in (kl.value, kl.low, kl.high))
    return Estimate(value, math.nan, low, high, kl.count)


def by_round(policies: Sequence[PolicySummary], measures: Sequence[str], name: str, title: str, caption: str
             ) -> Drawing | None:
    """Measures over the rounds of the iterative families; the others as level lines with their interval."""
    rounds = [p for p in policies if family_of(p).iterative]
    measures = [m for m in measures if any(p.get(m) for p in rounds)]
    if not measures:
        return None
    last = max(p.round for p in rounds)

    def draw(axes: list[Any]) -> None:
        for ax, measure in zip(axes, measures, strict=True):
            described = POLICY_MEASURES[measure]
            scale = 100.0 if described.percent else 1.0
            for family, members in _families(policies, measure):
                _rounds(ax, family, members, measure, policies, scale)
            ax.set(title=described.title, xlabel="round", ylabel=described.unit, xticks=range(last + 1),
                   xlim=(-0.2, last + 0.2))
        legend_below(axes)

    named = " and ".join(POLICY_MEASURES[m].title.lower() for m in measures)
    return render(name, title, "Lines start at the policy before the first round; level lines are policies trained in "
                  "one go. " + caption, f"Lines of {named} over {last} rounds.", draw, panels=len(measures), height=3.5)


def _rounds(ax: Any, family: PolicyFamily, members: Sequence[PolicySummary], measure: str,
            policies: Sequence[PolicySummary], scale: float) -> None:
    if not family.iterative:
        estimate = members[-1].estimates[measure]
        ax.axhline(scale * estimate.value, color=family.colour, linestyle=":", linewidth=1.3, label=family.title)
        if estimate.low == estimate.low:
            ax.axhspan(scale * estimate.low, scale * estimate.high, color=family.colour, alpha=0.10, linewidth=0)
        return
    start = [p for p in policies if p.family in STARTS and p.get(measure)]
    line = start[-1:] + sorted(members, key=lambda p: p.round)
    estimates = [p.estimates[measure] for p in line]
    ax.errorbar([p.round if p.family not in STARTS else 0 for p in line], [scale * e.value for e in estimates],
                yerr=interval_arms(estimates, scale), color=family.colour, marker=family.marker, elinewidth=0.9,
                capsize=2, label=family.title)


def win_rates(policies: Sequence[PolicySummary], baseline: str) -> Drawing | None:
    """Win rates against the baseline with intervals, by the judge and by the proxy."""
    shown = [p for p in policies if p.get("win_rate") is not None and p.label != baseline]
    if not shown:
        return None
    both = any(p.get("proxy_win_rate") not in (None, p.get("win_rate")) for p in shown)

    def draw(axes: list[Any]) -> None:
        (ax,) = axes
        ax.axvline(50, color=INK, linewidth=1.0, linestyle="--", alpha=0.6)
        for row, policy in enumerate(shown):
            family = family_of(policy)
            for offset, measure, fill in ((-0.14, "win_rate", family.colour), (0.16, "proxy_win_rate", "none")):
                rate = policy.get(measure)
                if rate is not None and (both or offset < 0):
                    ax.errorbar([100 * rate.value], [row + (offset if both else 0.0)],
                                xerr=interval_arms([rate], 100.0), color=family.colour, marker=family.marker,
                                markerfacecolor=fill, elinewidth=1.2, capsize=2, linestyle="none")
        ax.set(yticks=range(len(shown)), yticklabels=[p.label for p in shown], xlabel=f"% of comparisons won against "
               f"{baseline}", ylim=(len(shown) - 0.5, -0.5))

    filled = " Filled marks are the judge's verdict, hollow ones the proxy's." if both else ""
    return render("win_rate", f"Win rate against {baseline}",
                  "Every answer meets every answer of the baseline to the same prompt; ties count one half. Bars are "
                  f"95 % intervals over prompts; one that crosses the dashed line has no clear winner.{filled}",
                  f"Win rates of {len(shown)} policies against {baseline} with intervals.", draw,
                  height=0.9 + 0.34 * len(shown))


def _families(policies: Sequence[PolicySummary], measure: str) -> list[tuple[PolicyFamily, list[PolicySummary]]]:
    """The measured policies by family, in order of presentation."""
    found: dict[PolicyFamily, list[PolicySummary]] = {}
    for policy in policies:
        if policy.get(measure) is not None:
            found.setdefault(family_of(policy), []).append(policy)
    return list(found.items())
