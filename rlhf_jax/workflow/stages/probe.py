"""Reward models made of stored features: regressions of ratings, ArmoRM's gate over them, packed as one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config.probe import ArmoRmProbe, ProbeOptions, TreeProbe
from rlhf_jax.data.ratings import Objective
from rlhf_jax.models import DecoderConfig, Params, save_hf
from rlhf_jax.models.folder import write_json
from rlhf_jax.parallel import on_main
from rlhf_jax.training.gate import gate_shape
from rlhf_jax.training.tree import Tree, describe_tree, tree_classifier
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.features import Features
from rlhf_jax.workflow.probing import debias, find_objectives, regress, ridge_report, train_gate, train_tree
from rlhf_jax.workflow.products import TREE
from rlhf_jax.workflow.reward_model import pad_as_config, reading_note
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.train import atomic_model_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeStage(Stage):
    """A reward model on a frozen backbone.

    Attributes:
      model: the backbone, as its features were read.
      ratings: features of rated answers. pairs: of preference pairs, for a gate or a tree.
      reference: features of the answers on which objectives are freed of another; None for `ratings`.
    """

    model: Checkpoint
    options: ProbeOptions
    ratings: Features
    pairs: Features | None = None
    reference: Features | None = None

    def preview(self, context: Context) -> Preview:
        del context
        self._check()
        return Preview(self.model)

    def _check(self) -> tuple[Objective, ...]:
        if isinstance(self.options, TreeProbe):
            tree_classifier()  # that it is missing is said before the regressions
        for features in (self.ratings, self.pairs, self.reference):
            if features is not None:
                features.check_model(self.model.key, str(self.model.folder))
        return find_objectives(self.ratings, self.options.ridge.objectives)

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        objectives, options = self._check(), self.options
        names = [objective.name for objective in objectives]
        context.progress(0, 3)
        ridge = regress(self.ratings, objectives, options.ridge)
        report: dict[str, Any] = {"objectives": ridge_report(names, ridge)}
        shape = dataclasses.replace(self.model.reward_model, num_labels=len(names), labels=tuple(names), gate=None)
        head: Params = {"score": ridge.weights.astype(np.float32)}
        if isinstance(options, ArmoRmProbe):
            assert self.pairs is not None
            context.progress(1, 3)
            transform, report["debias"] = debias(self.reference or self.ratings, ridge.weights, names, options)
            shape = dataclasses.replace(shape, gate=gate_shape(options.gate))
            fit, report["gate"] = train_gate(self.pairs, ridge.weights, transform, options, context)
            head |= {"gating": fit.gating, "reward_transform": transform.astype(np.float32)}
        tree = None
        if isinstance(options, TreeProbe):
            assert self.pairs is not None
            tree, report["tree"] = train_tree(self.pairs, ridge.weights, names, options)
        context.progress(2, 3)
        self._pack(folder, context, head, shape, report, tree)
        context.progress(3, 3)
        return report

    def _pack(self, folder: Path, context: Context, head: Params, shape: DecoderConfig, report: Mapping[str, Any],
              tree: Tree | None) -> None:
        """Backbone and heads as one Hugging Face folder, in ArmoRM's published layout where there is a gate."""
        params = {name: weight for name, weight in context.params(self.model).items()
                  if name not in ("head", "score", "gating", "reward_transform")}
        card = model_card(self.model, self.options, report) + reading_note(shape, self.model.folder)
        if tree is not None:
            card += "\n\n```text\n" + "\n".join(describe_tree(tree, list(shape.labels))) + "\n```\n"
        with atomic_model_dir(folder) as new:
            save_hf(new, {**params, **head}, shape, tokenizer_from=self.model.folder,
                    chat_template=self.model.chat_template, card=card)
            if tree is not None:
                content = {"objectives": list(shape.labels), "tree": tree.to_json()}
                on_main(lambda: write_json(new / TREE, content))
            on_main(lambda: pad_as_config(new, shape))


def model_card(model: Checkpoint, options: Any, report: Mapping[str, Any]) -> str:
    """What the model card says: the objectives in the order of the outputs, and how they were found."""
    lines = [f"- {name}: R2 {row['r2'] or 0.0:.3f} on {row['held_out']:,} held-out answers, {row['rows']:,} rated"
             for name, row in report["objectives"].items()]
    return (f"# Reward model of kind {options.kind}\n\nRegressed by rlhf_jax on the hidden states of "
            f"`{model.folder.name}`, frozen. Its outputs, in order:\n\n" + "\n".join(lines) + "\n")
