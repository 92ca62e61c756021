import sys

import numpy as np
import pytest

from rlhf_jax.training.tree import MissingExtra, Tree, describe_tree, grow_tree, importances, one_way, probability

HAND = Tree(*(np.asarray(x) for x in ([0, -1, 1, -1, -1], [0.5, 0, -1.0, 0, 0], [1, -1, 3, -1, -1], [2, -1, 4, -1, -1],
                                      [0.5, 0.25, 0.75, 0.5, 1.0])))
"""d0 <= 0.5: 0.25; else d1 <= -1: 0.5; else 1."""


def pairs(rows=2000, seed=0):
    """Better minus worse: the first objective decides, the second a little, the third not at all."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(size=(rows, 3))
    first = rng.random(rows) < 1 / (1 + np.exp(-(4 * gaps[:, 0] + gaps[:, 1])))
    return np.where(first[:, None], gaps, -gaps)


def test_a_tree_is_walked_by_hand():
    gaps = np.array([[0.5, 9.0], [0.6, -1.0], [0.6, 0.0]])
    np.testing.assert_array_equal(one_way(HAND, gaps), [0.25, 0.5, 1.0])
    np.testing.assert_array_equal(probability(HAND, gaps), [0.5, 0.625, 0.875])  # the other order ends in 0.25


def test_the_other_order_has_the_complement():
    gaps = np.random.default_rng(0).normal(size=(500, 2))
    np.testing.assert_array_equal(probability(HAND, gaps) + probability(HAND, -gaps), 1.0)


def test_it_is_stored_as_it_is_and_what_is_none_is_refused():
    again = Tree.from_json(HAND.to_json())
    gaps = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_array_equal(one_way(again, gaps), one_way(HAND, gaps))
    for broken in ({"objective": [0]}, {**HAND.to_json(), "left": [0] * 5}, {**HAND.to_json(), "right": [9] * 5},
                   {**HAND.to_json(), "better": [1.0]}):
        with pytest.raises(ValueError, match="no decision tree"):
            Tree.from_json(broken)
    assert describe_tree(HAND, ["helpful", "short"])[:2] == ["difference in helpful <= 0.500:",
                                                             "  P(first better) = 0.250"]


def test_a_grown_tree_finds_what_decides():
    pytest.importorskip("sklearn")
    train, held_out = pairs(), pairs(seed=1)
    tree, shares = grow_tree(train)
    assert (probability(tree, held_out) > 0.5).mean() > 0.85
    assert shares.argmax() == 0
    assert shares.sum() == pytest.approx(1)
    many = importances(train, np.arange(2000) // 4, bootstraps=5)
    assert many.shape == (5, 3)
    assert (many[:, 0] > 0.8).all()
    np.testing.assert_array_equal(many, importances(train, np.arange(2000) // 4, bootstraps=5))


def test_the_walk_is_scikit_learns():
    tree_module = pytest.importorskip("sklearn.tree")
    train, held_out = pairs(), pairs(seed=1)
    model = tree_module.DecisionTreeClassifier(max_depth=3, random_state=0)
    model.fit(np.concatenate([train, -train]), np.repeat([1, 0], len(train)))
    np.testing.assert_allclose(one_way(grow_tree(train)[0], held_out), model.predict_proba(held_out)[:, 1], rtol=1e-12)


def test_without_its_extra_a_tree_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(MissingExtra, match="install rlhf_jax with the extra 'trees'"):
        grow_tree(pairs(10))
