import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.evaluation import (
    JudgedAnswers,
    best_of_n_curve,
    prompt_win_rates,
    score_difference,
    summarise,
    win_rate,
)

EMPTY = np.zeros(0, np.int32)

scores = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=4)


def scored(score):
    return Response(EMPTY, EMPTY.astype(bool), scores={} if score is None else {"gold": score})


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=4))
def test_equals_brute_force(cases):
    policy, baseline = (
        [PromptGroup(f"p{i}", EMPTY, tuple(scored(score) for score in case[side])) for i, case in enumerate(cases)]
        for side in (0, 1))
    expected = []
    for ours, theirs in cases:
        games = [1.0 if a > b else 0.5 if a == b else 0.0
                 for a in ours for b in theirs if a is not None and b is not None]
        expected.append(sum(games) / len(games) if games else None)
    found = prompt_win_rates(policy, baseline[::-1], "gold")
    assert found == pytest.approx(expected)
    mirrored = prompt_win_rates(baseline, policy, "gold")
    assert mirrored == pytest.approx([None if x is None else 1.0 - x for x in expected])


def test_estimate_over_prompts(make_group):
    policy = [make_group("a", gold=[2.0, 0.0]), make_group("b", gold=[5.0, 5.0])]
    baseline = [make_group("b", gold=[5.0, 1.0]), make_group("a", gold=[1.0])]
    estimate = win_rate(policy, baseline, "gold", resamples=50)
    assert estimate.value == pytest.approx((0.5 + 0.75) / 2)
    assert estimate.count == 2


def test_difference_is_paired_by_prompt(make_group):
    policy = [make_group("a", gold=[2.0, 4.0]), make_group("b", gold=[90.0]), make_group("c", gold=[None])]
    other = [make_group("c", gold=[1.0]), make_group("b", gold=[89.0, 88.0]), make_group("a", gold=[1.0])]
    estimate = score_difference(policy, other, "gold")
    assert estimate.value == pytest.approx((2.0 + 1.5) / 2)
    assert estimate.standard_error == pytest.approx(0.25, rel=0.05)
    assert estimate.count == 2


def test_rows_of_one_prompt_are_one_unit(make_group):
    rng = np.random.default_rng(0)
    groups, baseline = [], []
    for prompt, level in enumerate(rng.normal(size=30)):
        for row in range(4):
            group = make_group(f"{prompt}-{row}", gold=[level + 0.1 * rng.normal()])
            groups.append(dataclasses.replace(group, prompt=f"Say  {prompt}" if row else f"Say {prompt} "))
            baseline.append(dataclasses.replace(make_group(f"{prompt}-{row}", gold=[0.0]), prompt=groups[-1].prompt))
    apart = [dataclasses.replace(group, prompt="") for group in groups]
    for measure in (win_rate, score_difference):
        together, alone = measure(groups, baseline, "gold"), measure(apart, baseline, "gold")
        assert together.value == pytest.approx(alone.value)
        assert (together.count, alone.count) == (30, 120)
        assert together.standard_error > 1.6 * alone.standard_error
    summary = summarise("x", "sft", 0, JudgedAnswers(groups, baseline, gold="gold", proxy="gold"))
    assert {estimate.count for estimate in summary.estimates.values()} == {30}
    assert (summary.prompts, summary.samples) == (30, 120)
    assert {point.proxy.count for point in best_of_n_curve(groups, "gold")} == {30}


def test_prompts_must_match(make_group):
    a, b = make_group("a", gold=[1.0]), make_group("b", gold=[1.0])
    with pytest.raises(ValueError, match="2 of 2 prompts occur on one side alone"):
        win_rate([a], [b], "gold")
    with pytest.raises(ValueError, match="occurs twice"):
        win_rate([a, a], [a, a], "gold")
    with pytest.raises(ValueError, match="scored by 'proxy'"):
        win_rate([a], [a], "proxy")
    with pytest.raises(ValueError, match="scored by 'proxy'"):
        score_difference([a], [a], "proxy")
