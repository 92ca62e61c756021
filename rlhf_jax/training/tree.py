"""Decision trees over differences of ratings: which of two answers is better, in a form that a person can read.

The decision-tree reward model of RLHFlow (blog, January 2025): d = r(a) - r(b) in K objectives goes to P(a better).
Trees are grown by scikit-learn and read without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

EXTRA = "trees"
"""The extra that brings scikit-learn."""


class MissingExtra(RuntimeError):
    """A library that only this needs is not installed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """Nodes, the root first.

    Attributes:
      objective: [N] int32, which difference a node looks at; -1 of a leaf.
      threshold: [N], up to which it goes left. left, right: [N] int32, numbers of nodes; -1 of a leaf.
      better: [N] share of the pairs that came by in which a was better.
    """

    objective: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    better: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Tree:
        """The inverse of `to_json`. Raises ValueError for what is no tree."""
        try:
            arrays: dict[str, np.ndarray] = {
                field.name: np.asarray(tree[field.name], float if field.name in ("threshold", "better") else np.int32)
                for field in dataclasses.fields(cls)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no decision tree: {error}") from error
        sizes = {array.shape for array in arrays.values()}
        inner, nodes = arrays["objective"] >= 0, np.arange(len(arrays["objective"]))
        forward = (arrays["left"] > nodes) & (arrays["right"] > nodes)
        inside = np.maximum(arrays["left"], arrays["right"]) < len(nodes)
        if len(sizes) != 1 or not len(nodes) or not (forward & inside)[inner].all():
            raise ValueError("this is no decision tree: its nodes do not fit together")
        return cls(**arrays)


def one_way(tree: Tree, gaps: np.ndarray) -> np.ndarray:
    """[N] share of the better in the leaf that each difference [N, K] ends in."""
    at = np.zeros(len(gaps), np.int64)
    rows = np.arange(len(gaps))
    while (inner := tree.objective[at] >= 0).any():
        left = gaps[rows, np.maximum(tree.objective[at], 0)] <= tree.threshold[at]
        at = np.where(inner, np.where(left, tree.left[at], tree.right[at]), at)
    return tree.better[at]


def probability(tree: Tree, gaps: np.ndarray) -> np.ndarray:
    """[N] P(a better) from r(a) - r(b) [N, K], (p(d) + 1 - p(-d)) / 2: exactly the complement for the other order."""
    return 0.5 + 0.5 * (one_way(tree, gaps) - one_way(tree, -gaps))


def tree_classifier() -> Any:
    """scikit-learn's class. Raises MissingExtra where it is not installed."""
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise MissingExtra("a decision tree is grown by scikit-learn, which is not installed; install rlhf_jax with "
                           f"the extra '{EXTRA}'. A tree that is grown needs it no more") from error
    return DecisionTreeClassifier


def grow_tree(gaps: np.ndarray, depth: int = 3, seed: int = 0) -> tuple[Tree, np.ndarray]:
    """A tree grown on pairs in both orders.

    Args:
      gaps: [N, K] of the better answer minus the worse.

    Returns:
      The tree, and [K] how much each objective lowered the impurity; they add up to 1, or are 0 without any split.

    Raises:
      MissingExtra: scikit-learn is not installed.
    """
    both, better = np.concatenate([gaps, -gaps]), np.repeat([1, 0], len(gaps))
    model = tree_classifier()(max_depth=depth, random_state=seed).fit(both, better)
    grown = model.tree_
    share = grown.value[:, 0, 1] / grown.value[:, 0].sum(-1)
    leaf = grown.children_left < 0
    tree = Tree(np.where(leaf, -1, grown.feature).astype(np.int32), np.where(leaf, 0.0, grown.threshold),
                grown.children_left.astype(np.int32), grown.children_right.astype(np.int32), share)
    return tree, model.feature_importances_


def importances(gaps: np.ndarray, prompt: np.ndarray, depth: int = 3, bootstraps: int = 100, seed: int = 0
                ) -> np.ndarray:
    """[bootstraps, K] importances of trees grown on prompts drawn with replacement, each with all its pairs.

    Args:
      gaps: [N, K] of the better answer minus the worse. prompt: [N] whose pairs they are.
    """
    _, place, count = np.unique(prompt, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(count)[:-1])
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(members), size=len(members)) for _ in range(bootstraps))
    return np.stack([grow_tree(gaps[np.concatenate([members[i] for i in some])], depth, seed)[1] for some in drawn])


def describe_tree(tree: Tree, names: list[str], node: int = 0, depth: int = 0) -> list[str]:
    """The tree as lines of text, for a model card."""
    indent = "  " * depth
    if tree.objective[node] < 0:
        return [f"{indent}P(first better) = {tree.better[node]:.3f}"]
    name, edge = names[tree.objective[node]], tree.threshold[node]
    return [f"{indent}difference in {name} <= {edge:.3f}:",
            *describe_tree(tree, names, tree.left[node], depth + 1),
            f"{indent}else:", *describe_tree(tree, names, tree.right[node], depth + 1)]
