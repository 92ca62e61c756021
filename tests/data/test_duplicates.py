"""Near duplicates: candidates of MinHash, verified."""

import importlib.util
import random

import pytest

from rlhf_jax.data.duplicates import jaccard, near_duplicates, shingles

WORDS = [f"word{i}" for i in range(400)]


def test_shingles_by_hand():
    assert shingles("The cat  sat, on a mat") == {"the cat sat", "cat sat on", "sat on a", "on a mat"}
    assert shingles("Hi  there!") == {"hi there!"}
    assert shingles("") == {""}
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == 1 / 3
    assert jaccard(shingles("a b c d"), shingles("A b, c d")) == 1.0


@pytest.mark.longer
def test_what_is_found_is_what_comparing_all_with_all_finds():
    pytest.importorskip("datasketch")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(150)]
    for text in texts[:100]:  # one word changed: 3 of 38 runs, similarity 35 / 41; and two: 32 / 44
        words = text.split()
        for place in rng.sample([5, 15, 25, 35], rng.choice((1, 2))):
            words[place] = rng.choice(WORDS)
        texts.append(" ".join(words))
    found = near_duplicates(texts, 0.8)
    kept = []
    for place, text in enumerate(texts):
        similar = [other for other in kept if jaccard(shingles(text), shingles(texts[other])) >= 0.8]
        assert (place in found) == bool(similar)
        if similar:
            assert found[place] == similar[0]
        else:
            kept.append(place)
    assert 30 < len(found) < 70


def test_progress_and_the_threshold():
    pytest.importorskip("datasketch")
    seen = []
    texts = ["one two three four five six", "one two three four five seven", "quite another text than that"]
    assert near_duplicates(texts, 0.9, seen.append) == {}
    assert near_duplicates(texts, 0.6) == {1: 0}
    assert seen == [3]


def test_without_datasketch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "rlhf_jax\[data\]", or set near_duplicates to null'):
        near_duplicates(["a"], 0.8)
