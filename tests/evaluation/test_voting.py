"""Votes over sampled solutions: every number is that of all subsets counted one by one, and GSM8K's as published."""

import gzip
import json
from itertools import combinations

import numpy as np
import pytest

from rlhf_jax.data.answers import find_rule
from rlhf_jax.data.groups import text_group
from rlhf_jax.evaluation import voting as module
from rlhf_jax.evaluation.voting import Ballot, ballot_of, best_of, majority, pass_at, voting, weighted_majority
from rlhf_jax.workflow.published import SOLUTIONS, SOLVERS


def counted(ballot, n, choose):
    """The mean over all subsets of what `choose` makes of their members."""
    return np.mean([choose(ballot, list(some)) for some in combinations(range(len(ballot.candidates)), n)])


def vote(ballot, some, weights=None):
    totals = {}
    for i in some:
        if ballot.candidates[i] >= 0:
            totals[ballot.candidates[i]] = totals.get(ballot.candidates[i], 0) + (1 if weights is None else weights[i])
    ahead = [name for name, total in totals.items() if total == max(totals.values())]
    return np.mean([ballot.correct[ballot.candidates == name].any() for name in ahead]) if ahead else 0.0


def random_ballot(seed, size):
    rng = np.random.default_rng(seed)
    found = rng.integers(-1, rng.integers(1, 6), size)
    return Ballot(found, (found == 0) | (found == 4), rng.integers(0, 8, size) / 8)  # eighths: their sums are exact


@pytest.mark.parametrize("seed", range(12))
def test_all_numbers_are_those_of_all_subsets(seed):
    size = 1 + seed % 9
    ballot = random_ballot(seed, size)
    for n in range(1, size + 1):
        assert pass_at(ballot, n) == pytest.approx(counted(ballot, n, lambda b, some: b.correct[some].any()), abs=1e-12)
        assert majority(ballot, n) == pytest.approx(counted(ballot, n, vote), abs=1e-12)
        assert weighted_majority(ballot, n) == pytest.approx(
            counted(ballot, n, lambda b, some: vote(b, some, b.scores)), abs=1e-12)

        def best(b, some):
            front = [i for i in some if b.scores[i] == b.scores[some].max()]
            return b.correct[front].mean()

        assert best_of(ballot, n) == pytest.approx(counted(ballot, n, best), abs=1e-12)


def test_one_sample_is_pass_at_one_whoever_chooses():
    ballot = random_ballot(3, 9)
    one = ballot.correct.mean()
    assert pass_at(ballot, 1) == pytest.approx(one)
    assert best_of(ballot, 1) == pytest.approx(one)
    assert majority(ballot, 1) == pytest.approx((ballot.correct & (ballot.candidates >= 0)).mean())


def test_equal_weights_are_a_majority():
    ballot = random_ballot(5, 8)._replace(scores=np.full(8, 0.1))  # whose sums are not exact
    for n in range(1, 9):
        assert weighted_majority(ballot, n) == pytest.approx(majority(ballot, n), abs=1e-12)


def test_a_thousand_samples_are_within_reach():
    rng = np.random.default_rng(0)
    found = np.where(rng.random(1024) < 0.4, 0, rng.integers(1, 40, 1024))
    ballot = Ballot(found, found == 0)
    curve = [majority(ballot, n) for n in (1, 4, 16, 64)]
    assert curve == sorted(curve)
    assert curve[-1] > 0.999
    assert majority(ballot, 1024) == 1.0
    draws = [vote(ballot, rng.choice(1024, 4, replace=False)) for _ in range(4000)]
    assert curve[1] == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 4000**0.5)


def test_many_subsets_are_drawn_and_it_is_said(monkeypatch):
    ballot = random_ballot(1, 12)
    exact = weighted_majority(ballot, 6)
    monkeypatch.setattr(module, "MOST_SUBSETS", 100)
    module.subsets.cache_clear()
    group = text_group("p", "q", [])
    assert weighted_majority(ballot, 6) == pytest.approx(exact, abs=0.05)
    assert weighted_majority(ballot, 6) == weighted_majority(ballot, 6)
    assert voting([group], [ballot]).drawn == (4, 8)
    module.subsets.cache_clear()


def test_scores_below_zero_weigh_nothing():
    ballot = random_ballot(2, 4)._replace(scores=np.array([0.5, -0.1, 0.2, 0.3]))
    assert weighted_majority(ballot, 2) is None
    found = voting([text_group("p", "q", [])], [ballot])
    assert "weighted_majority" not in found.points[2]
    assert "best_of" in found.points[2]


@pytest.fixture(scope="module")
def solutions(shared):
    """GSM8K's test problems, each with the solutions of four models."""
    path = shared / SOLUTIONS
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        rows = list(map(json.loads, lines))
    return [text_group(str(i), row["question"], [(row[model]["solution"], {}) for model in SOLVERS],
                       extra={"answer": row["ground_truth"]}) for i, row in enumerate(rows)]


@pytest.mark.longer
def test_solutions_without_an_answer_and_the_flexible_rule(solutions):
    """What `verify` does not print of the same file; its figures are tests/workflow/test_published.py's."""
    strict, flexible = ([ballot_of(group, find_rule(name), "answer", None) for group in solutions]
                        for name in ("gsm8k", "gsm8k_flexible"))
    silent = np.array([ballot.candidates < 0 for ballot in strict])
    assert silent.sum(axis=0).tolist() == [4, 1, 5, 1]
    assert [ballot.correct.tolist() for ballot in strict] == [ballot.correct.tolist() for ballot in flexible]
    found = voting(solutions, strict)
    assert (found.prompts, found.left_out, set(found.points)) == (1319, 0, {1, 2, 4})


def test_a_prompt_without_a_reference_is_named():
    rule = find_rule("gsm8k")
    with pytest.raises(ValueError, match=r"prompt 'p' has no column 'answer', the reference; it has none\. Set ans"):
        ballot_of(text_group("p", "q", [("#### 3", {})]), rule, "answer", None)
    with pytest.raises(ValueError, match=r"prompt 'p', column 'answer': the reference 'about three' holds no answer"):
        ballot_of(text_group("p", "q", [("#### 3", {})], extra={"answer": "about three"}), rule, "answer", None)


def test_prompts_with_fewer_samples_are_left_out_and_counted():
    rule, extra = find_rule("gsm8k"), {"answer": "3"}
    groups = [text_group("p", "q", [("#### 3", {"proxy": 0.5}), ("#### 4", {"proxy": 0.1})], extra=extra),
              text_group("q", "r", [("#### 3", {"proxy": 0.5}), ("#### 4", {})], extra=extra),
              text_group("r", "s", [("#### 3", {}), ("#### 4", {})], extra=extra)]
    found = voting(groups, [ballot_of(group, rule, "answer", "proxy") for group in groups])
    assert (found.prompts, found.left_out) == (1, 2)
    assert found.points[2]["best_of"].value == 1.0
    assert found.points[2]["majority"].value == 0.5
    with pytest.raises(ValueError, match="no prompt has 3 solutions"):
        voting(groups, [ballot_of(group, rule, "answer", "proxy") for group in groups], max_n=3)
