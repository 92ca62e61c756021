"""Published figures from the shared files; the negative control; what `verify` says of files that are not there."""

import json
import math

import numpy as np
import pytest

from rlhf_jax.evaluation import alpaca_eval, logistic
from rlhf_jax.evaluation.length_controlled import length_feature
from rlhf_jax.workflow import published
from rlhf_jax.workflow.published import CHECKS, Check, Figure, alpaca_models


@pytest.mark.longer
@pytest.mark.parametrize("name", CHECKS)
def test_published_figures_are_ours(shared, name, monkeypatch):
    monkeypatch.setattr(logistic, "REFITS", 10)  # no interval is looked at
    figures = list(CHECKS[name].figures(shared))
    assert [figure for figure in figures if not figure.holds] == []
    if name == "alpaca_eval_length_controlled":
        assert len(figures) == 7
        assert np.mean([abs(figure.ours - figure.theirs) for figure in figures]) < 0.05


def test_a_fit_of_length_alone_misses_by_more_than_five(shared):
    missed = []
    for model in alpaca_models(shared):
        features = np.stack([length_feature(model.theirs, model.ours), np.ones(len(model.ours))], axis=1)
        alone = logistic.fit_logistic(features, alpaca_eval.outcomes(model.preferences))
        missed.append(abs(100 / (1 + math.exp(-alone[1])) - model.published["length_controlled_winrate"]))
    assert np.mean(missed) > 5


def checks(**ours):
    return {name: Check("someone", (f"{name}.csv",), lambda folder, value=value: iter([Figure("x", value, 2.0, 0.1)]))
            for name, value in ours.items()}


def test_ours_stand_beside_theirs_and_one_that_is_off_is_said(rlhf_jax, monkeypatch, tmp_path):
    (tmp_path / "a.csv").touch()
    monkeypatch.setattr("rlhf_jax.cli.verify.CHECKS", checks(a=2.05, b=2.0))
    status, out, _ = rlhf_jax("verify", tmp_path, "--output", tmp_path / "found.json")
    assert status == 0
    assert "2.05" in out
    assert "not checked: b, which reads b.csv" in out
    assert "1 figures, 0 off" in out
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "a": [{"name": "x", "ours": 2.05, "theirs": 2.0, "tolerance": 0.1, "holds": True}]}
    (tmp_path / "b.csv").touch()
    monkeypatch.setattr("rlhf_jax.cli.verify.CHECKS", checks(a=2.2, b=2.0))
    status, out, _ = rlhf_jax("verify", tmp_path)
    assert status == 1
    assert "OFF" in out
    assert "2 figures, 1 off" in out


def test_a_folder_without_such_files_is_refused(rlhf_jax, tmp_path):
    status, _, err = rlhf_jax("verify", tmp_path)
    assert status == 1
    assert "holds the files of no check; a first one would be eval/alpaca-eval/leaderboard.csv" in err
    assert "there is no such folder" in rlhf_jax("verify", tmp_path / "none")[2]
    assert published.CHECKS
