import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.evaluation import PAIR_MEASURES, PreferenceReport, pair_margins, preference_accuracy


def test_worked_by_hand():
    p = np.array([0.95, 0.85, 0.25, 0.5])
    report = preference_accuracy(probabilities=p, bins=5, resamples=50)
    assert report.estimates["accuracy"].value == pytest.approx(2.5 / 4)
    assert (report.pairs, report.ties) == (4, 1)
    assert report.estimates["nll"].value == pytest.approx(-np.log(p).mean())
    assert report.estimates["brier"].value == pytest.approx(((1 - p) ** 2).mean())
    # Bins of width 0.1 hold: 0.5 (a tie, half right); 0.75 (wrong); 0.85 (right); 0.95 (right).
    assert report.estimates["ece"].value == pytest.approx((0.0 + 0.75 + 0.15 + 0.05) / 4)
    assert [b.count for b in report.reliability] == [1, 0, 1, 1, 1]
    assert math.isnan(report.reliability[1].accuracy)
    strict = preference_accuracy(probabilities=p, tie_rule="strict", resamples=50)
    assert strict.estimates["accuracy"].value == pytest.approx(0.5)


def test_margins_are_logits_of_probabilities():
    margins = np.random.default_rng(0).normal(size=50)
    a = preference_accuracy(margins, resamples=50)
    b = preference_accuracy(probabilities=1 / (1 + np.exp(-margins)), resamples=50)
    for name in PAIR_MEASURES:
        assert a.estimates[name].value == pytest.approx(b.estimates[name].value)
    far = preference_accuracy([800.0, -800.0], resamples=50)
    assert far.estimates["nll"].value == pytest.approx(400.0)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(scale=2.0, size=8000)) * np.where(rng.random(8000) < 0.5, 1, -1)
    chosen_first = rng.random(8000) < 1 / (1 + np.exp(-margins))
    margins = np.where(chosen_first, margins, -margins)
    assert preference_accuracy(margins, resamples=20).estimates["ece"].value < 0.02
    assert preference_accuracy(4 * margins, resamples=20).estimates["ece"].value > 0.05


def test_clusters_widen_the_interval():
    margins = np.repeat(np.random.default_rng(0).normal(size=40), 10)
    clusters = [f"p{i // 10}" for i in range(400)]
    apart = preference_accuracy(margins, resamples=300)
    together = preference_accuracy(margins, clusters=clusters, resamples=300)
    assert together.estimates["accuracy"].value == pytest.approx(apart.estimates["accuracy"].value)
    assert (apart.estimates["accuracy"].count, together.estimates["accuracy"].count) == (400, 40)
    assert together.estimates["accuracy"].standard_error > 2 * apart.estimates["accuracy"].standard_error


def test_margins_of_groups(make_group):
    groups = [make_group("a", proxy=[1, 4, None], pairs=((1, 0), (1, 2))),
              make_group("b", proxy=[2, 2], pairs=((0, 1),))]
    margins, clusters = pair_margins(groups, "proxy")
    assert margins.tolist() == [3.0, 0.0]
    assert clusters == ["a", "b"]
    named = [dataclasses.replace(group, prompt=[{"role": "user", "content": "Hello  there"}]) for group in groups]
    assert len(set(pair_margins(named, "proxy")[1])) == 1


def test_json_round_trip():
    report = preference_accuracy([1.0, -2.0, 0.0], resamples=50)
    row = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert PreferenceReport.from_json(row).to_json() == report.to_json()


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "either margins or probabilities"),
    ({"margins": [1.0], "probabilities": [0.5]}, "either margins or probabilities"),
    ({"margins": []}, "at least one finite number"),
    ({"margins": [math.nan]}, "at least one finite number"),
    ({"probabilities": [1.5]}, "are these margins"),
    ({"margins": [1.0, 2.0], "clusters": ["a"]}, "1 cluster ids"),
])
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        preference_accuracy(**arguments)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 20))
def test_every_pair_is_in_one_bin(probabilities, bins):
    report = preference_accuracy(probabilities=probabilities, bins=bins, resamples=10)
    assert sum(b.count for b in report.reliability) == report.pairs == len(probabilities)
    assert all(b.low - 1e-9 <= b.confidence <= b.high + 1e-9 for b in report.reliability if b.count)
    assert 0 <= report.estimates["ece"].value <= 1
