"""Pairs as labelled responses, and answers to other prompts as further branches."""

from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.mismatch import labelled_pairs, with_mismatched


def response(*ids, **scores):
    return Response(np.asarray(ids, np.int32), np.ones(len(ids), bool), scores=scores)


def group(prompt, *responses, pairs=(), margins=()):
    return PromptGroup(f"p{prompt}", np.asarray([1, prompt], np.int32), responses, pairs=pairs, margins=margins)


def test_a_pair_becomes_a_desirable_and_an_undesirable_response():
    graded = group(5, response(7, data=2.0), response(8, data=1.0), response(9), pairs=((0, 1), (2, 1)), margins=(1, 2))
    first, second = labelled_pairs([graded, group(6, response(3))])
    assert [(r.ids.tolist(), r.scores) for r in first.responses] == [
        ([7], {"data": 2.0, "label": 1.0}), ([8], {"data": 1.0, "label": 0.0})]
    assert [(r.ids.tolist(), r.scores["label"]) for r in second.responses] == [([9], 1.0), ([8], 0.0)]
    assert (first.pairs, first.margins, first.prompt_id) == ((), (), "p5")


def test_every_response_gets_an_answer_to_another_prompt_and_is_taken_once():
    groups = [group(i, *(response(100 + i, 200 + branch, label=1.0) for branch in range(1 + i % 2)))
              for i in range(20, 60)]
    found = with_mismatched(groups, seed=0)
    taken = Counter()
    for before, after in zip(groups, found, strict=True):
        count = len(before.responses)
        assert [r.to_json() for r in after.responses[:count]] == [r.to_json() for r in before.responses]
        assert len(after.responses) == 2 * count
        for added in after.responses[count:]:
            assert added.scores == {"mismatched": 1.0}
            assert added.ids[0] != 100 + before.prompt_ids[1]
            taken[tuple(added.ids.tolist())] += 1
    assert sum(taken.values()) == 60
    assert sum(count == 1 for count in taken.values()) > 50  # two answers to one prompt may be neighbours
    assert [[r.ids.tolist() for r in g.responses] for g in with_mismatched(groups, seed=0)] == [
        [r.ids.tolist() for r in g.responses] for g in found]
    assert [[r.ids.tolist() for r in g.responses] for g in with_mismatched(groups, seed=1)] != [
        [r.ids.tolist() for r in g.responses] for g in found]


def test_no_conversation_becomes_longer_than_the_longest_one():
    long = PromptGroup("long", np.arange(10, dtype=np.int32), (response(1, 2),))
    short = PromptGroup("short", np.arange(1, dtype=np.int32), (response(*range(11)),))
    found = with_mismatched([long, short], seed=0)
    assert [len(g.responses[1].ids) for g in found] == [2, 2]  # of 11 tokens there is room for two


def test_one_prompt_alone_has_no_other_answers():
    with pytest.raises(ValueError, match="all rows have the same prompt"):
        with_mismatched([group(5, response(1)), group(5, response(2))], seed=0)
