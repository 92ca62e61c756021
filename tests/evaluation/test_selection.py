"""Which rounds are rejected, for what, and which policy is published."""

import math

import pytest

from rlhf_jax.data.groups import text_group
from rlhf_jax.evaluation import Candidate, Estimate, best_candidate, judge_candidate, sentences_of


def judged(count=12, **numbers):
    """Groups of one answer each; a number is one for all, or a function of the prompt's place."""
    return [text_group(str(i), f"prompt {i}", [("x", {
        name: float(value(i) if callable(value) else value) for name, value in numbers.items()})])
        for i in range(count)]


def noisy(mean):
    return lambda i: mean + 0.1 * math.sin(7 * i)


def against(before, after, **options):
    return judge_candidate("b", judged(**after), ("a", judged(**before)), **{"measure": "judge", **options})


def test_a_round_is_rejected_where_its_paired_interval_lies_below_zero():
    worse = against({"judge": noisy(1)}, {"judge": lambda i: noisy(0.9)(i) + 0.02 * math.cos(3 * i)})
    assert worse.rejected.startswith("judge is -0.0991 [")
    assert worse.gain.high < 0
    level = against({"judge": noisy(1)}, {"judge": lambda i: 0.99 + 0.1 * math.cos(5 * i)})
    assert level.gain.value < 0 < level.gain.high
    assert not level.rejected  # not clearly worse
    assert not against({"judge": noisy(1)}, {"judge": noisy(1.5)}).rejected


def test_the_pairing_finds_what_two_separate_intervals_hide():
    wide = {"judge": lambda i: 10 * math.sin(i)}
    found = against(wide, {"judge": lambda i: 10 * math.sin(i) - 0.1})
    alone = judge_candidate("a", judged(**wide), None, measure="judge")
    assert alone.judged.low < found.judged.value < alone.judged.high
    assert found.rejected


@pytest.mark.parametrize(("kl", "rejected"), [(3.9, False), (4.1, True)])
def test_a_round_too_far_from_the_start_is_rejected(kl, rejected):
    found = against({"judge": 1, "kl_k1": 0}, {"judge": 2, "kl_k1": kl}, kl_limit=4)
    assert bool(found.rejected) == rejected
    assert found.kl == pytest.approx(kl)
    assert not rejected or found.rejected == "its divergence from the start, 4.1 nats, is above the limit of 4"
    with pytest.raises(ValueError, match="none was measured; draw answers at temperature 1"):
        against({"judge": 1}, {"judge": 2}, kl_limit=4)


@pytest.mark.parametrize(("proxy", "held", "rejected"), [
    (2, 0.9, True), (2, 1, True),  # rose alone
    (2, 1.1, False),  # both rose
    (0.9, 0.9, False),  # the proxy fell too: that is no over-optimisation
])
def test_a_proxy_that_rises_alone_is_over_optimised(proxy, held, rejected):
    before = {"judge": 1, "proxy": noisy(1), "proxy/worst_case": noisy(1)}
    found = against(before, {"judge": 1, "proxy": noisy(proxy), "proxy/worst_case": noisy(held)},
                    pessimistic="proxy/worst_case")
    assert bool(found.rejected) == rejected
    assert not rejected or {"proxy rose by +1", "proxy/worst_case did not"} == {
        words for words in ("proxy rose by +1", "proxy/worst_case did not") if words in found.rejected}
    assert not against(before, {"judge": 1, "proxy": noisy(proxy), "proxy/worst_case": noisy(held)}).rejected


def test_a_number_that_no_answer_has_is_named_with_those_there_are():
    for options in ({"measure": "proxy/worst"}, {"measure": "judge", "pessimistic": "proxy/worst"}):
        with pytest.raises(ValueError, match=r"goes by 'proxy/worst', and no answer .*; there are judge, proxy"):
            judge_candidate("start", judged(judge=1, proxy=1), None, **options)


def candidate(label, value, half, **more):
    return Candidate(label, Estimate(value, half / 2, value - half, value + half, 9), **more)


def test_the_best_lower_bound_is_published_and_the_sentences_say_why():
    some = [candidate("start", 0.5, 0.1), candidate("a", 2, 0.2), candidate("b", 2.5, 1.5),
            candidate("c", 9, 0.1, rejected="it is too far")]
    assert best_candidate(some).label == "a"
    assert best_candidate([some[0], some[3]]).label == "start"
    twins = [candidate("one", 1, 0.1), candidate("two", 1, 0.1)]
    assert best_candidate(twins).label == "one"
    lone = Candidate("lone", Estimate(3.0, math.nan, math.nan, math.nan, 1))
    assert best_candidate([*some, lone]).label == "lone"  # one prompt has no interval
    told = sentences_of([some[0], candidate("a", 2, 0.2, published=True), some[3]])
    assert told[0].startswith("Published is a: of the accepted policies its interval on the 9 validation prompts, 2.00 "
                              "[1.80, 2.20], has the highest lower end.")
    assert told[1:] == ["c was rejected: it is too far."]
    assert sentences_of(()) == []


def test_it_goes_through_json():
    for some in (candidate("a", 1, 0.5, gain=Estimate(0.5, 0.1, 0.3, 0.7, 9), kl=1.5, rejected="why"),
                 candidate("b", 2, 0.5, published=True)):
        assert Candidate.from_json(some.to_json()) == some
