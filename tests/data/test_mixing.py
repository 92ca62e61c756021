"""Which rows a mix takes, in which order, on which side."""

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.example import Example
from rlhf_jax.data.mix_rows import mix_row, read_stored, stored_example
from rlhf_jax.data.mixing import (
    Entries,
    Prompts,
    beyond_cap,
    beyond_quotas,
    contradicted,
    disjoint_batches,
    quotas,
    repeated_prompts,
    repeated_rows,
    shuffled,
    sides,
    single_pairs,
)
from rlhf_jax.data.prompt_text import bucket
from rlhf_jax.data.rows import parse_row


def pair(prompt, chosen="good", rejected="bad", margin=None):
    return Example(prompt, (chosen, rejected), ((0, 1),), () if margin is None else (margin,), prompt_id=str(prompt))


def rows(*examples, seed=0):
    """Of the examples in this order; an example may come as (its source, itself)."""
    numbered = [example if isinstance(example, tuple) else (0, example) for example in examples]
    sources = [[example for other, example in numbered if other == source] for source in range(3)]
    found, at = Entries.of(sources, seed), [0, *np.cumsum([len(source) for source in sources]).tolist()]
    places = []
    for source, _ in numbered:
        places.append(at[source])
        at[source] += 1
    return found.at(np.array(places, int)).rows


def marked(mask):
    return set(np.flatnonzero(mask).tolist())


def chat(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


WORDS = st.sampled_from(["a", "b", "A", " b", "c d", "e", "f", "g", "h"])
PROMPTS = st.one_of(WORDS, st.lists(WORDS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2).map(
    lambda turns: chat(*turns)))
ENTRIES = st.lists(st.tuples(st.integers(0, 2), st.builds(pair, PROMPTS, WORDS, WORDS)), max_size=40)


def first_turn(example):
    prompt = example.prompt
    return " ".join((prompt if isinstance(prompt, str) else prompt[0]["content"]).lower().split())


@given(ENTRIES, st.integers(0, 50), st.integers(0, 40), st.randoms())
def test_no_prompt_stands_on_two_sides_in_any_source_or_order(entries, valid, test, rng):
    found = {}
    mixed = rng.sample(entries, len(entries))
    for (_, example), side in zip(mixed, sides(rows(*mixed), valid, test).tolist(), strict=True):
        assert found.setdefault(first_turn(example), side) == side


def test_sides_have_the_shares_that_are_asked_for():
    some = rows(*(pair(f"prompt {i}") for i in range(4000)))
    found = sides(some, 10, 20).tolist()
    assert abs(found.count("valid") / 4000 - 0.1) < 0.02
    assert abs(found.count("test") / 4000 - 0.2) < 0.02
    assert set(sides(some, 0, 0).tolist()) == {"train"}


def test_the_buckets_are_those_of_the_published_rule():
    """int(sha1(normalised prompt)[:8], 16) % 100; sha1("abc") begins with a9993e36."""
    assert bucket("abc") == 0xA9993E36 % 100


@given(ENTRIES, st.integers(0, 9), st.randoms())
def test_the_order_follows_from_what_rows_say_alone(entries, seed, rng):
    distinct = [e for e, repeats in zip(entries, repeated_rows(rows(*entries)), strict=True) if not repeats]
    orders = []
    for some in (distinct, rng.sample(distinct, len(distinct))):
        found = rows(*some, seed=seed)
        orders.append(found["said"][shuffled(found)].tolist())
    assert orders[0] == orders[1]


def test_another_seed_is_another_order():
    orders = [shuffled(rows(*(pair(f"prompt {i}") for i in range(20)), seed=seed)).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))


def test_rows_that_say_the_same_are_repeated_whatever_their_case_and_spaces():
    some = rows(pair("a b"), pair("A  b"), pair("a b", "other"), pair("a b", "bad", "good"))
    assert marked(repeated_rows(some)) == {1}
    assert marked(repeated_prompts(some)) == {1, 2, 3}
    texts = rows(*(Example("", (text,)) for text in "xyx"))
    assert marked(repeated_rows(texts)) == {2}
    assert marked(repeated_prompts(texts)) == set()


TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "A"}}}]}
OTHER = {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "a"}}}]}


@pytest.mark.parametrize(("one", "other"), [
    (pair("p", [CALL], "no"), pair("p", [OTHER], "no")),
    (pair([*chat("p"), CALL, *chat("more")], "yes", "no"), pair([*chat("p"), OTHER, *chat("more")], "yes", "no")),
    (pair("p"), dataclasses.replace(pair("p"), extra={"tools": [{"name": "f"}]})),
    (pair("p"), dataclasses.replace(pair("p"), extra={"chat_template_kwargs": {"thinking": False}})),
    (Example(chat("p"), (chat("p", "a")[1:],)), Example(chat("p"), ([{**chat("p", "a")[1], "train": False}],))),
    (pair(chat("p", "a", "b")), pair("p\n\na\n\nb")),
])
def test_rows_are_compared_by_all_that_a_model_is_shown(one, other):
    both = rows(one, (1, other), (2, one))
    assert marked(repeated_rows(both)) == {2}
    assert len(set(both["order"].tolist())) == 2
    swapped = [dataclasses.replace(e, responses=e.responses[::-1]) for e in (one, other)]
    assert not contradicted(rows(one, (1, swapped[1]))).any()
    assert len(one.responses) == 1 or marked(contradicted(rows(one, (1, swapped[0])))) == {0, 1}


def test_the_same_in_another_form_is_the_same():
    listed, written = ({"tools": tools} for tools in (TOOLS, json.dumps(TOOLS)))
    some = rows(dataclasses.replace(pair("P  q", chat("", "good")[1:]), extra=listed),
                dataclasses.replace(pair(chat("p q")), extra=written), pair("p q"),
                dataclasses.replace(pair("p q"), extra={"tools": [], "country": "Chad"}))
    assert marked(repeated_rows(some)) == {1, 3}
    assert marked(repeated_prompts(some)) == {1, 2, 3}


@pytest.mark.parametrize("answers", [([CALL], [OTHER]), ("Yes", " yes"), ([CALL], [{**CALL, "reasoning": "so"}])])
def test_no_pair_contradicts_itself(answers):
    assert marked(contradicted(rows(pair("p", *answers), pair("q", *answers)))) == set()


def test_a_label_is_part_of_what_a_row_says():
    liked, not_liked, again = (Example("p", ("a",), scores=({"label": label},)) for label in (1.0, 0.0, 1.0))
    assert marked(repeated_rows(rows(liked, not_liked, again))) == {2}


def test_texts_that_only_together_are_the_same_are_not_repeated():
    assert not repeated_rows(rows(pair("a", "b c", "d"), pair("a", "b", "c d"), pair("a b", "c", "d"))).any()


def test_pairs_that_contradict_each_other_or_their_own_score():
    some = rows(pair("p", "x", "y"), pair("p", "x", "z"), (1, pair("P", "Y", "x")), pair("q", margin=-1.0),
                pair("q", margin=1.0))
    assert marked(contradicted(some)) == {0, 2, 3}


def test_a_graded_row_is_a_row_per_pair():
    graded = Example("p", ("a", "b", "c"), ((1, 0), (2, 0)), (1.0, 2.0), ({"data": 0.0}, {"data": 1.0}, {}))
    assert [(e.responses, e.margins, e.scores) for e in single_pairs(graded)] == [
        (("b", "a"), (1.0,), ({"data": 1.0}, {"data": 0.0})), (("c", "a"), (2.0,), ({}, {"data": 0.0}))]
    assert list(single_pairs(Example("p", ("a",)))) == [Example("p", ("a",))]
    entries = Entries.of([[Example("o", ("x",))], [graded, Example("q", ("y",))]])
    assert list(entries) == [Example("o", ("x",)), *single_pairs(graded), Example("q", ("y",))]
    assert list(entries.at(np.array([2, 0]))) == [list(single_pairs(graded))[1], Example("o", ("x",))]
    assert list(Prompts(entries, np.array([3, 0, 1]))) == ["q", "o", "p"]
    system = [{"role": "system", "content": "be brief"}]
    assert list(Prompts(Entries.of([[pair([*system, *chat("A  b", "c", "d")])]]), np.array([0]))) == ["a b d"]
    assert entries.rows["margin"].tolist()[1:3] == [1.0, 2.0]
    with pytest.raises(IndexError):
        entries[4]


def test_a_cap_keeps_the_largest_margins_of_each_prompt_and_source():
    some = rows(*((source, pair("p", str(m), margin=m)) for source in (0, 1) for m in (1, 3, 2)))
    assert marked(beyond_cap(some, [1, None])) == {0, 2}
    assert marked(beyond_cap(some, [2, 2])) == {0, 3}
    equal = rows(*(pair(prompt, answer) for answer in "xyz" for prompt in "pq"))
    assert marked(beyond_cap(equal, [2])) == {4, 5}  # without margins the first ones stay
    assert not beyond_cap(rows(), [1]).any()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 500))
def test_quotas_add_up_and_follow_the_weights(weights, size):
    shares = quotas([size] * len(weights), weights, size)
    assert sum(shares) == size
    assert all(abs(share - size * w / sum(weights)) < 1 for share, w in zip(shares, weights, strict=True))


def test_a_mix_larger_than_its_sources_says_how_large_it_can_be():
    assert quotas([10, 10], [1, 1], 20) == [10, 10]
    with pytest.raises(ValueError, match=r"asks for 15 rows of sources\[1\], which has 10; .* at most about 13"):
        quotas([10, 10], [1, 3], 20)


@given(ENTRIES)
def test_a_larger_mix_of_the_same_seed_holds_the_smaller_one(entries):
    some = rows(*(entry for entry in entries if entry[0] < 2), seed=3)
    most = 2 * min((some["source"] == s).sum() for s in (0, 1))
    if most < 4:
        return
    small, large = (marked(~beyond_quotas(some, [1, 1], size)) for size in (most - 2, most))
    assert len(small) == most - 2
    assert small < large


def test_batches_share_no_prompt():
    some = rows(*(pair(f"p{i % 30}", str(i)) for i in random.Random(0).sample(range(90), 90)))
    batch = disjoint_batches(some, 3, 24)
    assert np.bincount(batch).tolist() == [24, 24, 24, 18]
    prompts = [set(some["prompt"][batch == number].tolist()) for number in range(4)]
    assert sum(map(len, prompts)) == 30 == len(set.union(*prompts))
    with pytest.raises(ValueError, match="3 batches of 31 rows need 93, and there are 90 rows"):
        disjoint_batches(some, 3, 31)
    with pytest.raises(ValueError, match="batch 1 of 2 rows gets none: no prompt has so few"):
        disjoint_batches(some, 3, 2)


def test_batches_are_filled_in_the_order_of_the_first_rows():
    some = rows(*(pair(prompt, str(i)) for i, prompt in enumerate("bbacca")))
    assert disjoint_batches(some, 2, 3).tolist() == [0, 0, 1, 2, 2, 1]


@pytest.mark.parametrize(("kind", "row"), [
    ("preference", {"prompt": chat("a", "b", "c"), "chosen": "d", "rejected": chat("a", "e")[1:], "margin": 2.5}),
    ("preference", {"prompt": "a", "chosen": "d", "rejected": "e", "system": "s", "tools": TOOLS}),
    ("sft", {"messages": chat("a", "b", "c", "d"), "tools": TOOLS}),
    ("sft", {"text": "once upon a time"}),
    ("prompt", {"prompt": "a", "chat_template_kwargs": {"x": 1}}),
    ("unpaired", {"prompt": "a", "completion": "b", "label": False}),
])
def test_rows_of_a_mix_are_read_back_as_the_same_examples(kind, row):
    example = parse_row({**row, "id": "7"}, kind)
    stored = read_stored(stored_example(example))
    for there in (stored, parse_row(mix_row(stored, "set"), kind)):
        for name in ("prompt", "responses", "pairs", "margins", "scores", "prompt_id"):
            assert getattr(there, name) == getattr(example, name), name
        assert {k: v for k, v in there.extra.items() if k != "source"} == dict(example.extra)
    assert mix_row(example, "set")["source"] == "set"
