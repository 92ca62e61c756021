"""Python functions as scorers: the signature, failures, and what is wrong with what they return."""

import math

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.world import gold_judge, judge_text
from rlhf_jax.plugins import load_function
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.scoring.base import scores_in


def group(name, *texts, **extra):
    responses = tuple(Response(np.arange(len(t), dtype=np.int32), np.ones(len(t), bool), t) for t in texts)
    return PromptGroup(name, np.array([1], np.int32), responses, f"prompt {name}", extra=extra)


GROUPS = [group("a", "x", "yy", answer="1"), group("b", "zzz", level=3)]
SEEN = []


def lengths(prompts, completions, completion_ids, **columns):
    SEEN.append((prompts, completions, completion_ids, columns))
    return [float(len(c)) for c in completions]


def test_scores_come_back_per_group_in_order():
    assert scores_in(FunctionScorer(lengths, name="length").score(GROUPS)) == [[1.0, 2.0], [3.0]]


def test_the_function_sees_prompts_texts_ids_and_columns_one_value_a_completion():
    SEEN.clear()
    FunctionScorer(lengths, name="length").score(GROUPS)
    (prompts, completions, ids, columns), = SEEN
    assert prompts == ["prompt a", "prompt a", "prompt b"]
    assert completions == ["x", "yy", "zzz"]
    assert ids == [[0], [0, 1], [0, 1, 2]]
    assert columns == {"answer": ["1", "1", None], "level": [None, None, 3]}


def odd_values(prompts, completions, **columns):
    return [None, math.nan, math.inf]


def test_none_nan_and_infinity_are_no_scores_and_are_counted():
    scorer = FunctionScorer(odd_values, name="odd")
    assert scores_in(scorer.score(GROUPS)) == [[None, None], [None]]
    assert scorer.failures == {"no_score": 1, "non_finite_score": 2}
    scored = [g.with_scores("odd", s) for g, s in zip(GROUPS, scorer.score(GROUPS), strict=True)]
    assert all("odd" not in r.scores for g in scored for r in g.responses)


def numpy_values(prompts, completions, **columns):
    return np.arange(len(completions), dtype=np.float32)


def test_numpy_scores_become_plain_numbers():
    found = scores_in(FunctionScorer(numpy_values, name="n").score(GROUPS))
    assert found == [[0.0, 1.0], [2.0]]
    assert all(type(x) is float for scores in found for x in scores)


def too_few(prompts, completions, **columns):
    return [1.0]


def words(prompts, completions, **columns):
    return ["good"] * len(completions)


def test_a_wrong_number_of_scores_is_an_error_that_names_both_numbers():
    with pytest.raises(ValueError, match="'few' returned 1 scores for 3 completions"):
        FunctionScorer(too_few, name="few").score(GROUPS)


def test_a_score_that_is_no_number_is_an_error_that_says_what_came():
    with pytest.raises(ValueError, match=r"'words' returned 'good'.*number.* or None"):
        FunctionScorer(words, name="words").score(GROUPS)


def test_progress_tells_the_prompts_done():
    seen = []
    FunctionScorer(lengths, name="length").score(GROUPS, seen.append)
    assert seen == [2]


def test_the_key_tells_functions_of_one_module_apart():
    one, two = (FunctionScorer(f, name="s").key for f in (lengths, too_few))
    assert one != two
    assert FunctionScorer(lengths, name="s").key == one


def test_the_worlds_judge_is_found_by_name():
    function = load_function("rlhf_jax.data.world:gold_judge")
    assert function is gold_judge
    prompt = [{"role": "user", "content": "a cat at the harbor"}]
    assert function([prompt], ["The cat."]) == [judge_text("a cat at the harbor", "The cat.")]


@pytest.mark.parametrize(("path", "words"), [
    ("rlhf_jax.data.world", "is not written 'package.module:function'"), ("no.such:thing", "cannot be imported"),
    ("rlhf_jax.data.world:nothing", "cannot be imported"), ("rlhf_jax.data.world:PLACES", "not a function"),
])
def test_a_function_that_cannot_be_had_is_an_error_that_says_why(path, words):
    with pytest.raises(ValueError, match=words):
        load_function(path)
