"""Judging samples: what a stage reports is of that stage alone."""

import dataclasses

import numpy as np
import pytest

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.data.rows import Example
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.evaluate import JUDGED, evaluate_scorer, judge
from rlhf_jax.workflow.sample import shard_name
from rlhf_jax.workflow.stage import Stage


def none_for_one_word(prompts, completions, **columns):
    return [float(len(c)) if " " in c else None for c in completions]


def never(prompts, completions, **columns):
    return [None] * len(completions)


def test_failures_are_those_of_this_policy_alone(start, prompts, make_context, tmp_path):
    response = Response(np.array([5, 4], np.int32), np.ones(2, bool), logps=np.zeros(2, np.float32))
    answers = tuple(dataclasses.replace(response, text=text) for text in ("Dear Ann", "Ann", "Love, Ann"))
    write_groups(tmp_path / "sampled" / shard_name(0), [dataclasses.replace(p, responses=answers) for p in prompts[:4]])
    sampled = Stage("sample", tmp_path / "sampled", "key", {}, 0.0, False)
    scorers = [FunctionScorer(none_for_one_word, name="proxy"), FunctionScorer(never, name="gold")]
    context = make_context(tmp_path / "run")
    reports = [judge(context, f"evaluate/{name}/judge", dataclasses.replace(sampled, key=name), scorers, start,
                     "float32") for name in ("first", "second")]
    for stage in reports:
        assert stage.report == {"prompts": 4, "failures": {"proxy": {"no_score": 4}, "gold": {"no_score": 12}}}
    judged = read_groups(reports[0].folder / JUDGED)
    assert [sorted(r.scores) for r in judged[0].responses] == [["kl_k1", "kl_k3", "proxy"], ["kl_k1", "kl_k3"],
                                                               ["kl_k1", "kl_k3", "proxy"]]


PAIRS = [Example("q", ("a b", "c d e"), ((1, 0),), prompt_id="both"),
         Example("q", ("one", "c d"), ((1, 0),), prompt_id="one failed"),
         Example("q", ("a b", "one", "c d e"), ((2, 0), (2, 1)), prompt_id="a pair of two"),
         Example("q", ("one", "two"), ((1, 0),), prompt_id="none")]


def test_pairs_that_were_not_judged_are_counted_by_reason_beside_those_that_were():
    before = Funnel(read=6)
    before.invalid["missing_column"] = 2
    report = evaluate_scorer(FunctionScorer(none_for_one_word, name="proxy"), PAIRS, before, seed=0)
    assert (report["pairs_read"], report["pairs"], report["failures"]) == (5, 2, {"no_score": 4})
    assert report["funnel"] == {"read": 6, "valid": 4, "kept": 2, "invalid": {"missing_column": 2},
                                "dropped": {"no_score": 2}, "notes": {}}
    assert before.kept == 4


def word_is_nan(prompts, completions, **columns):
    return [float("nan") if c == "two" else float(len(c)) if " " in c else None for c in completions]


def test_rows_lost_for_several_reasons_are_not_judged_and_the_reasons_are_listed():
    report = evaluate_scorer(FunctionScorer(word_is_nan, name="proxy"), PAIRS, Funnel(read=4), seed=0)
    assert report["failures"] == {"no_score": 3, "non_finite_score": 1}
    assert report["funnel"]["dropped"] == {"not_judged": 2}


def test_a_scorer_that_judges_no_pair_says_why():
    with pytest.raises(ValueError, match=r"none of the 5 pairs could be judged.*'no_score': 9.*max_length"):
        evaluate_scorer(FunctionScorer(never, name="proxy"), PAIRS, Funnel(read=4), seed=0)


def saw_answer(prompts, completions, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def test_a_reward_function_gets_the_columns_of_held_out_pairs_too():
    pair = Example("q", ("3", "4"), ((1, 0),), prompt_id="p", extra={"answer": "4"})
    report = evaluate_scorer(FunctionScorer(saw_answer, name="proxy"), [pair], Funnel(read=1), seed=0)
    assert report["accuracy"]["value"] == 1.0
