"""What the numbers say, in words computed from them: who wins, by how much, and what cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation import Difference, Estimate, PolicySummary, Results, sentences_of
from rlhf_jax.evaluation.frontier import AtEqualKl, at_equal_kl, frontier
from rlhf_jax.report.policies import (
    AGAINST_PROXY,
    FAMILIES,
    MATCHED,
    ONLINE,
    STARTS,
    WORDS,
    compared,
    controls_of,
    difference,
    family_of,
    judge_of,
    last_of,
    one_round,
)


def headline(results: Results) -> list[str]:
    """Sentences for the top of the page; empty where no policy was scored and none was chosen."""
    judge = judge_of(results.policies)
    scored = [p for p in results.policies if p.get(judge) is not None]
    chosen = sentences_of(results.candidates)
    if not scored:
        return chosen
    best = max(scored, key=lambda p: _value(p, judge))
    sentences = [f"{_name(best)} has the highest {judge} reward, {best.estimates[judge]}."]
    published = next((p for c in results.candidates if c.published for p in scored if p.label == c.label), None)
    subject = published or last_of(scored, *ONLINE) or best
    if subject is not best:
        gap = difference(results, subject, best, judge)
        level = " and cannot be told apart from it." if gap and gap.verdict == "level" else "."
        what = "The published policy" if published else f"The last round of {family_of(subject).title}"
        sentences[0] += f" {what}, {subject.label}, reaches {subject.estimates[judge]}{level}"
    sentences += chosen
    controls = controls_of(results.policies)
    equal = _equal_kl(scored, subject, judge, controls)
    sentences = _at_equal_kl(equal, subject, judge) + sentences
    sentences += _against_controls(results, scored, subject, judge, equal, controls)
    if one_round(results.policies) and last_of(scored, *MATCHED) is not None:
        sentences.append("With one round, the matched control is that round itself, so there is nothing to compare.")
    sentences += _win_rate(results, subject)
    sentences += _over_optimised(results, scored, judge)
    sentences += _length(results, subject)
    if judge == "proxy":
        sentences.append(f"No gold scorer judged this run: {_flattered(results)}.")
    return sentences


def _flattered(results: Results) -> str:
    """Whom scores by the proxy alone flatter, as far as the run knows who learned from them."""
    if any(policy.family in AGAINST_PROXY for policy in results.policies):
        return "all scores are those of the reward model the policies were trained against, which flatters them"
    return "the scores flatter a policy that was trained against this scorer"


def _name(policy: PolicySummary) -> str:
    family = family_of(policy)
    return f"{policy.label} (round {policy.round} of {family.title})" if family.iterative else (
        f"{policy.label} ({family.title})")


def _equal_kl(scored: Sequence[PolicySummary], subject: PolicySummary, judge: str, controls: Sequence[str]
              ) -> dict[str, AtEqualKl]:
    """Family of a control -> the online rounds and that control where both have moved equally far."""
    ours = frontier(scored, (subject.family,), judge) if subject.family in ONLINE else None
    curves = {family: frontier(scored, (family,), judge) for family in controls if family not in STARTS}
    return {} if ours is None else {family: at_equal_kl(ours, theirs) for family, theirs in curves.items() if theirs}


def _at_equal_kl(equal: Mapping[str, AtEqualKl], subject: PolicySummary, judge: str) -> list[str]:
    told = [compared(family, found.difference, *found.interval, found.kl) for family, found in equal.items()]
    if not told:
        return []
    return [f"At equal divergence from the start and in {judge} reward, {family_of(subject).title} is "
            f"{'; '.join(told)}: 95 % intervals over the prompts of this run. A policy that moved further is not "
            "therefore better, and what follows compares policies wherever they ended."]


def _against_controls(results: Results, scored: Sequence[PolicySummary], subject: PolicySummary, judge: str,
                      equal: Mapping[str, AtEqualKl], controls: Sequence[str]) -> list[str]:
    lasts = {family: last_of(scored, family) for family in controls if family != subject.family}
    gaps = {family: gap for family, control in lasts.items()
            if control is not None and (gap := difference(results, subject, control, judge)) is not None}
    if not gaps:
        return []
    told = [_gap(gap, FAMILIES[family].title) for family, gap in gaps.items()]
    how = ("paired by prompt" if all(gap.paired for gap in gaps.values()) else
           "which treat the two policies' samples as independent")
    out = [f"In {judge} reward, {subject.label} is {'; '.join(told)}. These are 95 % "
           f"intervals over prompts, {how}; how much training runs vary from seed to seed is not in them."]
    if subject.family in ONLINE:
        out += [_online_or_not(gaps[family], equal.get(family)) for family in MATCHED if family in gaps]
    return out


def _gap(gap: Difference, title: str) -> str:
    return f"{WORDS[gap.verdict]} {title} (difference {_signed(gap.estimate)})"


def _online_or_not(gap: Difference, equal: AtEqualKl | None) -> str:
    if gap.verdict == "above":
        how = "is what helped"
        if equal is not None:
            how = ("helped, and at equal divergence too" if equal.interval[0] > 0 else
                   "helped, perhaps only by going further from the start: at equal divergence it does not show")
        return ("The matched control had the same prompts and the same number of samples, all drawn from the start at "
                f"once; the interval of the difference excludes zero, so sampling anew in rounds {how}.")
    if gap.verdict == "below":
        return ("The matched control, with the same prompts and number of samples drawn from the start at once, is "
                "better: in this run sampling anew in rounds did harm.")
    return ("The interval of the difference from the matched control holds zero: this run does not show that sampling "
            "anew in rounds helps beyond the same prompts and number of samples drawn from the start at once.")


def _win_rate(results: Results, subject: PolicySummary) -> list[str]:
    rate = subject.get("win_rate")
    if rate is None or math.isnan(rate.low) or subject.label == results.baseline:
        return []
    side = "more than half" if rate.low > 0.5 else "less than half" if rate.high < 0.5 else "not clearly off a half"
    return [f"It wins {100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] of its comparisons with "
            f"{results.baseline or 'the baseline'}: {side}."]


def _over_optimised(results: Results, scored: Sequence[PolicySummary], judge: str) -> list[str]:
    """A warning where a later round has more proxy reward and clearly less gold reward than an earlier one."""
    if judge != "gold":
        return []
    for family in (name for name, f in FAMILIES.items() if f.iterative):
        rounds = [p for p in scored if p.family == family and p.get("proxy") is not None]
        last = last_of(rounds, family)
        if last is None:
            continue
        peak = max(rounds, key=lambda p: _value(p, "gold"))
        gap = difference(results, last, peak, "gold")
        if (peak is not last and _value(last, "proxy") > _value(peak, "proxy") and gap is not None
                and gap.verdict == "below"):
            return [f"Over-optimisation: from {peak.label} to {last.label} the proxy reward rose and the gold reward "
                    f"fell by {_signed(gap.estimate)}; the policy found what the reward model likes and the judge does "
                    "not."]
    return []


def _value(policy: PolicySummary, measure: str) -> float:
    """The value of a measure that the policy is known to have."""
    return policy.estimates[measure].value


def _length(results: Results, subject: PolicySummary) -> list[str]:
    base = next((p for p in results.policies if p.label == results.baseline), None)
    if base is None or base is subject:
        return []
    before, after = base.get("length"), subject.get("length")
    if before is None or after is None or before.value == 0:
        return []
    return [f"Its answers average {after.value:.0f} tokens, {after.value / before.value:.2f} times {base.label}'s "
            f"{before.value:.0f}."]


def _signed(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return f"{estimate.value:+.2f}, no interval"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
