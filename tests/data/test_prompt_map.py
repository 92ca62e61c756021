"""The map of a mix's prompts: what lies where, and that only their texts decide it."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.mixing import Entries, Prompts
from rlhf_jax.data.prompt_map import LEAST, MOST, _weighted, prompt_map

COOKING = ["butter", "oven", "flour", "recipe", "dough", "sugar", "pan", "salt"]
CODE = ["python", "function", "loop", "array", "compile", "string", "class", "index"]


def prompts(topic, count, seed=0):
    draws = random.Random(seed)
    return [Example(f"Tell me about {' '.join(draws.sample(topic, 4))} number{i}") for i in range(count)]


def map_of(*sources):
    return prompt_map(Entries.of(sources), len(sources))


def places(found, source):
    return np.array([point[:2] for point in found["points"] if point[2] == source])


def test_two_topics_lie_apart_and_each_end_has_its_words():
    found = map_of(prompts(COOKING, 60), prompts(CODE, 60))
    cooking, code = places(found, 0)[:, 0], places(found, 1)[:, 0]
    assert cooking.max() < code.min() or code.max() < cooking.min()
    low, high = (set(words) for words in found["words"][0])
    assert {low <= set(COOKING), high <= set(COOKING)} == {True, False}
    assert {low <= set(CODE), high <= set(CODE)} == {True, False}


def test_the_directions_are_those_of_the_largest_variance():
    """Against the singular values of the same table of words: the spread of the points is that of the two largest."""
    some = [*prompts(COOKING, 50), *prompts(CODE, 30, seed=1)]
    points = places(map_of(some), 0)
    words = [set(re.findall("[a-z]{3,}", prompt)) for prompt in Prompts(Entries.of([some]), range(len(some)))]
    counts = Counter(word for one in words for word in one)
    usual = [word for word, count in counts.items() if 2 <= count <= len(some) / 2]
    largest = np.linalg.svd(_weighted(words, usual, counts), compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), largest, rtol=1e-3)
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-3)


def test_neither_order_nor_repetition_moves_a_point():
    sources = prompts(COOKING, 30), prompts(CODE, 30)
    assert map_of(*sources) == map_of(*(random.Random(3).sample(some * 2, 60) for some in sources))


def test_each_source_has_its_share_of_a_large_map():
    found = map_of(prompts(COOKING, 3 * MOST), prompts(CODE, 40))
    counts = [len(places(found, source)) for source in (0, 1)]
    assert counts == [MOST // 2, 40]


@pytest.mark.parametrize("some", [
    [], prompts(COOKING, LEAST - 1), [Example("")] * 50, [Example(f"{i}") for i in range(50)]],
    ids=["none", "few", "no prompts", "no words"])
def test_too_little_makes_no_map(some):
    assert map_of(some) is None


def test_conversations_are_read_as_their_texts():
    spoken = [Example([{"role": "user", "content": example.prompt}]) for example in prompts(CODE, 40)]
    assert map_of(spoken) == map_of(prompts(CODE, 40))
