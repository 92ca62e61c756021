"""`kind: tree`: a decision tree over regressed ratings (RLHFlow's decision-tree reward model)."""

from __future__ import annotations

import json

from jax.sharding import Mesh

from rlhf_jax.config.scorer import TreeScoring
from rlhf_jax.models import CheckpointError
from rlhf_jax.scoring.tree import TreeScorer
from rlhf_jax.training.tree import Tree
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, find_model_of, open_model, read_at
from rlhf_jax.workflow.products import TREE
from rlhf_jax.workflow.reward_model import reward_config


def open_scorer(options: TreeScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> TreeScorer:
    """The tree over the regression it lies beside.

    Raises:
      CheckpointError: there is no tree, or what is there is none.
    """
    path = find_model_of(options.model).folder / TREE
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no {TREE}; give a model that `rlhf-jax probe --kind tree` made")
    try:
        tree = Tree.from_json(json.loads(path.read_text())["tree"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no decision tree ({error}); make the model again") from error
    model = open_model(options, mesh, weights)
    return TreeScorer(model.weights, read_at(model.config, options.score_at), model.renderer, mesh, tree, name=name,
                      key=model.key)


KIND = Kind(options=TreeScoring, open=open_scorer, shape=reward_config,
            passes=lambda options, responses: Passes(1, responses),
            outputs=lambda compute: compute.slot_scores)  # walking a tree costs nothing beside it
