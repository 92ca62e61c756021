"""A user's own functions, by name: in the working folder, checked at once, and part of the keys they change."""

import json
import random
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.pairs import ENHANCER, RULES, TWO_POLICIES, PairOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.load import load_examples
from rlhf_jax.losses import PairLogps, PreferenceLoss, preference_loss, sigmoid_loss
from rlhf_jax.plugins import function_key, load_function, plugin_keys
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.pairs import PAIR_RULES, make_pair
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.pairs import PairsStage

SOURCE = '''
import jax

def mine(pair, beta):
    """The plain sigmoid loss, written out."""
    gap = (pair.chosen - pair.ref_chosen) - (pair.rejected - pair.ref_rejected)
    return -jax.nn.log_sigmoid(beta * gap)

def free(pair, margin):
    return pair.rejected - pair.chosen - margin
free.needs_reference = False

def strange(pair, temperature):
    return pair.chosen

def second_and_third(values, rng):
    return (1, 2) if len(values) > 2 else None

def no_such_place(values, rng):
    return (0, 99)

def one_place(values, rng):
    return 1

def no_numbers(values, rng):
    return ("best", "worst")

def best_and_last(values, rng):
    return [0, -1]

def without_chance(values):
    return (0, 1)

def of_nothing():
    return 0

def from_qa(row):
    return {"prompt": row["q"], "completion": row["a"]}

def from_two(row, other):
    return {}

def to_text(row):
    return "text"

def to_texts(row):
    return ["text"]

def short(prompts, completions):
    return [0.0] * len(completions)

def no_columns(prompts, completions, completion_ids):
    return [0.0] * len(completions)

def no_list(prompts, completions, **columns):
    return 1.0

def nothing(prompts, completions, **columns):
    pass
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module in the working folder, another one for each test."""
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    return name


def test_a_loss_of_ones_own_is_filled_by_its_keywords_and_trains_as_one_of_the_table(mine):
    rng = np.random.default_rng(0)
    pair = PairLogps(*(jnp.asarray(rng.normal(size=4), jnp.float32) for _ in range(6)))
    spec = PreferenceLoss(f"{mine}:mine", beta=0.3)
    (term,) = preference_loss(pair, spec)
    np.testing.assert_allclose(term.values, sigmoid_loss(pair, beta=0.3), rtol=1e-6)
    assert (spec.needs_reference, spec.needs_margin) == (True, False)
    free = PreferenceLoss(f"{mine}:free")
    assert (free.needs_reference, free.needs_margin) == (False, True)


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("missing", {}, "cannot be imported"),
    ("of_nothing", {}, r"of_nothing' takes no pair; a loss is f\(pair, \.\.\.\)"),
    ("strange", {}, "keyword 'temperature', which nothing fills"),
    ("mine", {"simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect"), ("free", {"beta": 0.5}, "beta=0.5 has no effect"),
])
def test_a_loss_that_cannot_work_is_refused_when_the_options_are_made(mine, name, settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceLoss(f"{mine}:{name}", **settings)


@pytest.mark.parametrize("name", [":f", "m:", "m", ".m:f", "a..b:f", "a b:f", "m:f:g", "m\0:f", ""])
def test_what_is_no_name_of_a_function_is_told_how_one_is_written(name):
    with pytest.raises(ValueError, match=r"is not written 'package\.module:function'"):
        load_function(name)


@pytest.mark.parametrize("name", ["os:getcwd", "builtins:len", "math:exp"])
def test_a_function_without_python_source_is_refused_where_its_key_is_asked_for(name):
    with pytest.raises(ValueError, match=f"{name.split(':')[1]}.* has no source in Python .*; write a function"):
        function_key(load_function(name))


class Callable:
    """An object that can be called."""

    def __call__(self):
        pass


@pytest.mark.parametrize("found", [partial(print, 1), Callable()])
def test_what_can_be_called_and_is_no_function_of_its_own_is_refused(found):
    with pytest.raises(ValueError, match=r"no function of its own.*write a function \(def\)"):
        function_key(found)


def test_a_pair_rule_of_ones_own_gets_values_best_first(mine):
    rule = load_function(f"{mine}:second_and_third")
    assert rule([3.0, 2.0, 1.0], random.Random(0)) == (1, 2)
    PairOptions(rule=f"{mine}:second_and_third")
    with pytest.raises(ValueError, match="did you mean 'max_min'"):
        PairOptions(rule="max_mim")
    assert {*RULES} == {*PAIR_RULES, ENHANCER, *TWO_POLICIES}


SCORED = PromptGroup("p", np.array([1], np.int32), tuple(
    Response(np.array([7, i], np.int32), np.ones(2, bool), str(i), scores={"proxy": float(i)}) for i in range(3)),
    extra={"answer": "4"})


def test_places_may_be_a_list_and_count_from_the_end(mine):
    pair, _ = make_pair(SCORED, PairOptions(rule=f"{mine}:best_and_last"))
    assert pair.extra["response_indices"] == [2, 0]


@pytest.mark.parametrize(("name", "words"), [
    ("no_such_place", r"no_such_place' returned \(0, 99\) for 3 responses; .* places of chosen and .* 2, or"),
    ("one_place", r"one_place' returned 1 for 3 responses"), ("no_numbers", r"returned \('best', 'worst'\) for 3"),
    ("without_chance", r"without_chance' cannot be called as f\(values, rng\): too many positional"),
])
def test_a_pair_rule_that_cannot_work_is_told_what_is_expected(mine, name, words):
    with pytest.raises(ValueError, match=words):
        make_pair(SCORED, PairOptions(rule=f"{mine}:{name}"))


@pytest.mark.parametrize(("name", "words"), [
    ("short", r"short' cannot be called as f\(prompts, completions, \*\*columns\), .*: .*'completion_ids'"),
    ("no_columns", r"no_columns' cannot be called as f\(.*\), .*: .*'answer'"),
    ("no_list", r"scorer 'proxy' returned 1.0; a reward function returns a list"),
    ("nothing", r"scorer 'proxy' returned None; a reward function returns a list"),
])
def test_a_scorer_that_cannot_work_is_told_what_is_expected(mine, name, words):
    with pytest.raises(ValueError, match=words):
        FunctionScorer(load_function(f"{mine}:{name}"), name="proxy").score([SCORED])


@pytest.mark.parametrize(("name", "words"), [
    ("from_two", r"from_two' cannot be called as f\(row\): missing a required argument: 'other'"),
    ("of_nothing", r"of_nothing' cannot be called as f\(row\)"),
    ("to_text", "the converter made a str of this row, no row"), ("to_texts", "the converter made a str of this row"),
])
def test_a_converter_that_cannot_work_is_told_what_is_expected(mine, tmp_path, name, words):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Why?"}) + "\n")
    with pytest.raises(ValueError, match=words):
        load_examples([str(tmp_path / "rows.jsonl")], "sft", converter=f"{mine}:{name}")


def test_a_converter_of_ones_own_reads_foreign_rows(mine, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Why?", "a": "Because."}) + "\n")
    examples, _ = load_examples([str(tmp_path / "rows.jsonl")], "sft", converter=f"{mine}:from_qa")
    assert (examples[0].prompt, examples[0].responses) == ("Why?", ("Because.",))


def test_the_source_of_a_function_is_part_of_the_key_of_what_uses_it(mine, tmp_path):
    name = f"{mine}:mine"
    assert plugin_keys("sigmoid", None, name) == [function_key(load_function(name))]
    assert plugin_keys(name) != plugin_keys(f"{mine}:free")
    options = PreferenceOptions(loss=PreferenceLoss(name))
    stage = DpoStage(start=None, reference=None, data=(), options=options)
    assert stage.inputs()["functions"] == plugin_keys(name)
    pairs = PairsStage(source=None, options=PairOptions(rule=f"{mine}:second_and_third"))
    assert pairs.inputs()["functions"] == plugin_keys(f"{mine}:second_and_third")
