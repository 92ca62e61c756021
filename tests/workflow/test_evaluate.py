"""Evaluating a scorer: what was judged, what was not, and why."""

import numpy as np
import pytest
import scipy.special

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.evaluation import PAIR_MEASURES, ScorerReport
from rlhf_jax.evaluation.statistics import Coverage
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.stages.evaluate import evaluate_scorer


def none_for_one_word(prompts, completions, **columns):
    return [float(len(c)) if " " in c else None for c in completions]


def never(prompts, completions, **columns):
    return [None] * len(completions)


PAIRS = [Example("q", ("a b", "c d e"), ((1, 0),), prompt_id="both"),
         Example("q", ("one", "c d"), ((1, 0),), prompt_id="one failed"),
         Example("q", ("a b", "one", "c d e"), ((2, 0), (2, 1)), prompt_id="a pair of two"),
         Example("q", ("one", "two"), ((1, 0),), prompt_id="none")]


def test_pairs_that_were_not_judged_are_counted_by_reason_beside_those_that_were():
    before = Funnel(read=6)
    before.invalid["missing_column"] = 2
    report, verdicts = evaluate_scorer(FunctionScorer(none_for_one_word, name="proxy"), PAIRS, before, seed=0)
    assert (report.pairs_read, report.preference.pairs, report.failures) == (5, 2, {"no_score": 4})
    assert report.funnel.to_json() == {"read": 6, "valid": 4, "kept": 2, "invalid": {"missing_column": 2},
                                "dropped": {"no_score": 2}, "notes": {}}
    assert before.kept == 4
    assert [(v.prompt_id, v.pair, dict(v.scores), v.result) for v in verdicts] == [
        ("both", (1, 0), {"chosen": 5.0, "rejected": 3.0}, 1.0), ("one failed", (1, 0), {}, None),
        ("a pair of two", (2, 0), {"chosen": 5.0, "rejected": 3.0}, 1.0), ("a pair of two", (2, 1), {}, None),
        ("none", (1, 0), {}, None)]


def test_numbers_keep_how_many_of_their_rows_were_judged():
    report, _ = evaluate_scorer(FunctionScorer(none_for_one_word, name="proxy"), PAIRS, Funnel(read=4), seed=0)
    assert report.incomplete == dict.fromkeys(PAIR_MEASURES, Coverage(1, 4))  # one more was judged in part
    kept = report.to_json()
    assert (kept["accuracy"]["rows"], report.numbers()["nll"]["rows"]) == ({"judged": 1, "of": 4},) * 2
    assert ScorerReport.from_json(kept).incomplete == report.incomplete
    whole, _ = evaluate_scorer(FunctionScorer(longer, name="proxy"), PAIRS, Funnel(read=4), seed=0)
    assert not whole.incomplete
    assert "rows" not in whole.to_json()["accuracy"]


def word_is_nan(prompts, completions, **columns):
    return [float("nan") if c == "two" else float(len(c)) if " " in c else None for c in completions]


def test_rows_lost_for_several_reasons_are_not_judged_and_the_reasons_are_listed():
    report, _ = evaluate_scorer(FunctionScorer(word_is_nan, name="proxy"), PAIRS, Funnel(read=4), seed=0)
    assert report.failures == {"no_score": 3, "non_finite_score": 1}
    assert report.funnel.dropped == {"not_judged": 2}


def test_a_scorer_that_judges_no_pair_says_why():
    with pytest.raises(ValueError, match=r"none of the 5 pairs could be judged.*'no_score': 9.*max_length"):
        evaluate_scorer(FunctionScorer(never, name="proxy"), PAIRS, Funnel(read=4), seed=0)


def stated(prompts, completions, **columns):
    return [float(c) for c in completions]


class Probable(FunctionScorer):
    """As an outcome or process model scores: by a probability."""

    probabilities = True


def test_probabilities_are_compared_by_their_log_odds():
    rng = np.random.default_rng(0)
    a, b = scipy.special.expit(rng.normal(0, 2, (2, 4000)))
    first = rng.random(4000) < a * (1 - b) / (a * (1 - b) + b * (1 - a))  # of pairs with one right answer
    pairs = [Example(str(i), (str(x), str(y)), ((0, 1) if won else (1, 0),), prompt_id=str(i))
             for i, (x, y, won) in enumerate(zip(a, b, first, strict=True))]
    reports = [evaluate_scorer(kind(stated, name="proxy"), pairs, Funnel(read=4000), seed=0)[0]
               for kind in (Probable, FunctionScorer)]
    found, plain = (report.preference.estimates for report in reports)
    margins = np.where(first, 1, -1) * (scipy.special.logit(a) - scipy.special.logit(b))
    assert found["nll"].value == pytest.approx(np.logaddexp(0, -margins).mean(), rel=1e-6)
    assert found["ece"].value < 0.02 < plain["ece"].value
    assert found["accuracy"] == plain["accuracy"]


@pytest.mark.parametrize(("chosen", "rejected", "won"), [(1.0, 1.0, 0.5), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_probabilities_of_zero_and_one_stay_numbers(chosen, rejected, won):
    pair = Example("q", (str(chosen), str(rejected)), ((0, 1),), prompt_id="p")
    found = evaluate_scorer(Probable(stated, name="proxy"), [pair], Funnel(read=1), seed=0)[0].preference.estimates
    assert found["accuracy"].value == won
    assert np.isfinite([estimate.value for estimate in found.values()]).all()


def saw_answer(prompts, completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def test_a_reward_function_gets_the_columns_of_held_out_pairs_too():
    pair = Example("q", ("3", "4"), ((1, 0),), prompt_id="p", extra={"answer": "4"})
    report, _ = evaluate_scorer(FunctionScorer(saw_answer, name="proxy"), [pair], Funnel(read=1), seed=0)
    assert report.preference.estimates["accuracy"].value == 1.0


def longer(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def test_a_column_named_subset_gives_an_accuracy_for_each_subset():
    pairs = [Example(prompt, answers, ((0, 1),), prompt_id=f"{subset}{prompt}", extra={"subset": subset})
             for subset, prompt, answers in (("a", "q", ("long", "no")), ("a", "q", ("of", "me")),
                                             ("a", "r", ("no", "long")), ("b", "q", ("long", "no")))]
    report, _ = evaluate_scorer(FunctionScorer(longer, name="proxy"), pairs, Funnel(read=4), seed=0)
    assert {name: (e.value, e.count) for name, e in report.benchmark.items()} == {
        "subset/a": (0.5, 2), "subset/b": (1.0, 1)}
    assert report.preference.estimates["accuracy"].value == 2.5 / 4
    again = ScorerReport.from_json(report.to_json())
    assert again.to_json() == report.to_json()
    assert again.benchmark["subset/a"].value == 0.5
