"""Near duplicates: candidates of MinHash, verified."""

import importlib.util
import random

import numpy as np
import pytest

from rlhf_jax.data import duplicates
from rlhf_jax.data.duplicates import near_duplicates, shingles

WORDS = [f"word{i}" for i in range(400)]


def jaccard(a, b):
    return len(a & b) / len(a | b)


def nearly_repeated(count, seed=0):
    """Random texts, and `count` of them with a word or two changed."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(count + count // 2)]
    for text in texts[:count]:  # one word changed: 3 of 38 runs, similarity 35 / 41; and two: 32 / 44
        words = text.split()
        for place in rng.sample([5, 15, 25, 35], rng.choice((1, 2))):
            words[place] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def by_comparing_all(texts, threshold, openings):
    found, kept = {}, []
    for place, text in enumerate(texts):
        others = [other for other in kept if openings[other] != openings[place]]
        shares = [jaccard(shingles(text), shingles(texts[other])) for other in others]
        if shares and max(shares) >= threshold:
            found[place] = others[shares.index(max(shares))]
        else:
            kept.append(place)
    return found


def test_shingles_by_hand():
    assert shingles("The cat  sat on a mat.") == {"the cat sat", "cat sat on", "sat on a", "on a mat", "a mat ."}
    assert shingles("Hi  there!") == {"hi there !"}
    assert shingles("") == {""}
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == 1 / 3
    assert jaccard(shingles("a b c d"), shingles("A b  c\nd")) == 1.0
    assert shingles("x <- 3") == {"x < -", "< - 3"}


@pytest.mark.parametrize(("one", "other"), [
    ("What is 3 + 4 * 5?", "What is 3 - 4 / 5?"), ("Is a < b in this code", "Is a > b in this code"),
    ("(2 + 3) * 4 = ", "2 + (3 * 4) = "), ("→ ← ↑ ↓ →", "→ ↑ ← ↓ →")])
def test_signs_are_words_too(one, other):
    assert jaccard(shingles(one), shingles(other)) < 0.5


@pytest.mark.longer
def test_what_is_found_is_what_comparing_all_with_all_finds():
    pytest.importorskip("datasketch")
    texts = nearly_repeated(100)
    found = near_duplicates(texts, 0.8)
    assert found == by_comparing_all(texts, 0.8, range(len(texts)))
    assert 30 < len(found) < 70


@pytest.mark.parametrize("cached", [duplicates._CACHED, 3])
def test_prompts_that_share_most_of_a_template_are_compared_as_any_others(monkeypatch, cached):
    pytest.importorskip("datasketch")
    monkeypatch.setattr(duplicates, "_CACHED", cached)
    rng, template = random.Random(0), " ".join(WORDS[:60])
    texts = [f"{template} {' '.join(rng.choices(WORDS, k=18))}" for _ in range(60)]
    texts += [f"{text} indeed" for text in texts[:10]]
    found = near_duplicates(texts, 0.8)
    assert found == by_comparing_all(texts, 0.8, range(len(texts)))
    assert set(found) == set(range(60, 70))


def test_texts_of_one_opening_are_no_near_duplicates_of_each_other():
    pytest.importorskip("datasketch")
    text = " ".join(WORDS[:40])
    texts = [f"{text} {end}" for end in ("a", "b", "c", "d")]
    assert near_duplicates(texts, 0.8, np.array([7, 7, 7, 7], np.uint64)) == {}
    assert near_duplicates(texts, 0.8, np.array([7, 8, 7, 8], np.uint64)) == {1: 0, 3: 0}
    some = nearly_repeated(30)
    openings = np.random.default_rng(0).integers(0, 2, len(some))
    found = near_duplicates(some, 0.7, openings)
    assert found == by_comparing_all(some, 0.7, openings)
    assert 0 < len(found) < len(near_duplicates(some, 0.7))


def test_each_text_is_read_once_however_many_are_like_it():
    pytest.importorskip("datasketch")

    class Counted(list):
        read = 0

        def __getitem__(self, place):
            self.read += 1
            return super().__getitem__(place)

    texts = Counted(f"{' '.join(WORDS[:60])} {i}" for i in range(40))
    assert near_duplicates(texts, 0.8) == dict.fromkeys(range(1, 40), 0)
    assert texts.read == 40
    assert near_duplicates([], 0.8) == {}


def test_progress_and_the_threshold():
    pytest.importorskip("datasketch")
    seen = []
    texts = ["one two three four five six", "one two three four five seven", "quite another text than that"]
    assert near_duplicates(texts, 0.9, tick=seen.append) == {}
    assert near_duplicates(texts, 0.6) == {1: 0}
    assert seen == [3]


def test_without_datasketch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "rlhf_jax\[data\]", or set near_duplicates to null'):
        near_duplicates(["a"], 0.8)
