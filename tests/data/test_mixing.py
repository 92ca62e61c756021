"""Which rows a mix takes, in which order, on which side."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.example import Example
from rlhf_jax.data.mix_rows import mix_row, read_stored, stored_example
from rlhf_jax.data.mixing import (
    Entry,
    beyond_cap,
    beyond_quotas,
    contradicted,
    disjoint_batches,
    quotas,
    repeated_prompts,
    repeated_rows,
    shuffled,
    side,
    single_pairs,
)
from rlhf_jax.data.prompt_text import bucket
from rlhf_jax.data.rows import parse_row


def pair(prompt, chosen="good", rejected="bad", margin=None, source=0):
    margins = () if margin is None else (margin,)
    return Entry(source, Example(prompt, (chosen, rejected), ((0, 1),), margins, prompt_id=str(prompt)))


def chat(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


WORDS = st.sampled_from(["a", "b", "A", " b", "c d", "e", "f", "g", "h"])
PROMPTS = st.one_of(WORDS, st.lists(WORDS, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2).map(
    lambda turns: chat(*turns)))
ENTRIES = st.lists(st.builds(pair, PROMPTS, WORDS, WORDS, source=st.integers(0, 2)), max_size=40)


def first_turn(entry):
    prompt = entry.example.prompt
    return " ".join((prompt if isinstance(prompt, str) else prompt[0]["content"]).lower().split())


@given(ENTRIES, st.integers(0, 50), st.integers(0, 40), st.randoms())
def test_no_prompt_stands_on_two_sides_in_any_source_or_order(entries, valid, test, rng):
    sides = {}
    for entry in rng.sample(entries, len(entries)):
        assert sides.setdefault(first_turn(entry), side(entry, valid, test)) == side(entry, valid, test)


def test_sides_have_the_shares_that_are_asked_for():
    found = [side(pair(f"prompt {i}"), 10, 20) for i in range(4000)]
    assert abs(found.count("valid") / 4000 - 0.1) < 0.02
    assert abs(found.count("test") / 4000 - 0.2) < 0.02
    assert {side(pair(f"prompt {i}"), 0, 0) for i in range(100)} == {"train"}


def test_the_buckets_are_those_of_the_published_rule():
    """int(sha1(normalised prompt)[:8], 16) % 100; sha1("abc") begins with a9993e36."""
    assert bucket("abc") == 0xA9993E36 % 100


@given(ENTRIES, st.integers(0, 9), st.randoms())
def test_the_order_follows_from_what_rows_say_alone(entries, seed, rng):
    distinct = [e for place, e in enumerate(entries) if place not in repeated_rows(entries)]
    mixed = rng.sample(distinct, len(distinct))
    assert [e.answers for e in shuffled(mixed, seed)] == [e.answers for e in shuffled(distinct, seed)]


def test_another_seed_is_another_order():
    entries = [pair(f"prompt {i}") for i in range(20)]
    assert [e.prompt for e in shuffled(entries, 0)] != [e.prompt for e in shuffled(entries, 1)]


def test_rows_that_say_the_same_are_repeated_whatever_their_case_and_spaces():
    entries = [pair("a b"), pair("A  b"), pair("a b", "other"), pair("a b", "bad", "good")]
    assert repeated_rows(entries) == {1}
    assert repeated_prompts(entries) == {1, 2, 3}
    texts = [Entry(0, Example("", (text,))) for text in "xyx"]
    assert repeated_rows(texts) == {2}
    assert repeated_prompts(texts) == set()


def test_pairs_that_contradict_each_other_or_their_own_score():
    entries = [pair("p", "x", "y"), pair("p", "x", "z"), pair("P", "Y", "x", source=1), pair("q", margin=-1.0),
               pair("q", margin=1.0)]
    assert contradicted(entries) == {0, 2, 3}


def test_a_graded_row_is_a_row_per_pair():
    graded = Example("p", ("a", "b", "c"), ((1, 0), (2, 0)), (1.0, 2.0), ({"data": 0.0}, {"data": 1.0}, {}))
    assert [(e.responses, e.margins, e.scores) for e in single_pairs(graded)] == [
        (("b", "a"), (1.0,), ({"data": 1.0}, {"data": 0.0})), (("c", "a"), (2.0,), ({}, {"data": 0.0}))]
    assert list(single_pairs(Example("p", ("a",)))) == [Example("p", ("a",))]


def test_a_cap_keeps_the_largest_margins_of_each_prompt_and_source():
    entries = [pair("p", str(m), margin=m, source=source) for source in (0, 1) for m in (1, 3, 2)]
    assert beyond_cap(entries, [1, None]) == {0, 2}
    assert beyond_cap(entries, [2, 2]) == {0, 3}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 500))
def test_quotas_add_up_and_follow_the_weights(weights, size):
    shares = quotas([size] * len(weights), weights, size)
    assert sum(shares) == size
    assert all(abs(share - size * w / sum(weights)) < 1 for share, w in zip(shares, weights, strict=True))


def test_a_mix_larger_than_its_sources_says_how_large_it_can_be():
    assert quotas([10, 10], [1, 1], 20) == [10, 10]
    with pytest.raises(ValueError, match=r"asks for 15 rows of sources\[1\], which has 10; .* at most about 13"):
        quotas([10, 10], [1, 3], 20)


@given(ENTRIES, st.randoms())
def test_a_larger_mix_of_the_same_seed_holds_the_smaller_one(entries, rng):
    entries = [e for e in entries if e.source < 2]
    have = [sum(e.source == s for e in entries) for s in (0, 1)]
    most = 2 * min(have)
    if most < 4:
        return
    small, large = (set(range(len(entries))) - beyond_quotas(entries, [1, 1], size, 3) for size in (most - 2, most))
    assert len(small) == most - 2
    assert small < large


def test_batches_share_no_prompt():
    entries = [pair(f"p{i % 30}", str(i)) for i in random.Random(0).sample(range(90), 90)]
    batches, left = disjoint_batches(entries, 3, 24)
    assert [len(batch) for batch in [*batches, left]] == [24, 24, 24, 18]
    prompts = [{e.prompt for e in batch} for batch in [*batches, left]]
    assert sum(map(len, prompts)) == 30 == len(set.union(*prompts))
    with pytest.raises(ValueError, match="3 batches of 31 rows need 93, and there are 90 rows"):
        disjoint_batches(entries, 3, 31)
    with pytest.raises(ValueError, match="batch 1 of 2 rows gets none: no prompt has so few"):
        disjoint_batches(entries, 3, 2)


TOOLS = [{"type": "function", "function": {"name": "f"}}]


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
