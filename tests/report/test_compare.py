import copy

import pytest

from rlhf_jax.evaluation import Results
from rlhf_jax.report import compare_runs
from rlhf_jax.report.compare import settings


def test_two_runs_are_held_against_each_other(results):
    other = copy.deepcopy(results)
    gold = other["policies"][-1]["gold"]
    for name in ("value", "low", "high"):
        gold[name] += 1.0
    other["config"]["dpo"]["beta"] = 0.3
    text = compare_runs(("runs/a", "runs/b"), (Results.from_json(results), Results.from_json(other)))
    assert text.startswith("## runs/b against runs/a\n")
    assert "| measure | first: online-3 | second: online-3 | difference |" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| Gold reward"))
    assert "| 1.80 (1.70 to 1.90) | 2.80 (2.70 to 2.90) | 1.00 (0.86 to 1.14) |" in line
    assert "| dpo.beta | 0.1 | 0.3 |" in text
    assert "learning_rate" not in text


def test_equal_settings_are_said_and_a_run_without_policies_is_named(results):
    run = Results.from_json(results)
    text = compare_runs(("a", "b"), (run, run))
    assert "Both runs have the same settings." in text
    assert "At equal divergence from the start, 13.80 nats per answer, the second has 1.80 gold reward and the first " \
           "1.80: a difference of +0.00" in text
    with pytest.raises(ValueError, match="the run b compared no policies"):
        compare_runs(("a", "b"), (run, Results("empty")))


def test_settings_that_differ():
    first = {"output_dir": "a", "dpo": {"beta": 0.1, "x": None}, "mesh": "auto"}
    second = {"output_dir": "b", "dpo": {"beta": 0.2, "x": None}, "mesh": {"fsdp": 4}}
    assert settings(first, second) == [["dpo.beta", "0.1", "0.2"], ["mesh", '"auto"', ""], ["mesh.fsdp", "", "4"]]
    assert settings(None, None) == []
