"""Options of the probes: what is made of stored features without running a backbone again."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.data import PreferenceData, Sources, as_sources
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.fields import COUNT, POSITIVE, SEED, Flat, Options, Range, above, at_least, only_with

Pool = Literal["last", "mean"]
_DROPOUT = Range(0, 0.999)


@dataclasses.dataclass(frozen=True)
class RidgeOptions(Options):
    """Regressing ratings on features, one objective at a time.

    Attributes:
      objectives: the numbers that are regressed, each NAME for ratings in 0 to 1 or NAME:LOW:HIGH for whole steps, such
        as data/helpfulness:0:4; none for all grades the rows have, which must then lie in 0 to 1.
      held_out: share of the prompts whose ratings choose the strength of the penalty.
      split: what is held out: whole prompts, or single answers as in ArmoRM's code.
      refit: fit again on all rows with the chosen strength; false keeps the fit on the others, as ArmoRM's code does.
      few_rows: allow fewer rated rows than a feature has numbers; the penalty alone then decides.
      seed: of what is held out, and of the gate.
    """

    objectives: tuple[str, ...] = ()
    held_out: Annotated[float, Range(0.001, 0.999)] = 0.2
    split: Literal["prompt", "row"] = "prompt"
    refit: bool = True
    few_rows: bool = False
    seed: Annotated[int, SEED] = 42


@dataclasses.dataclass(frozen=True)
class DebiasOptions(Options):
    """Freeing the other objectives of one.

    Attributes:
      debias: the objective that they are freed of, as an output of the model is called (data/verbosity is verbosity);
        none for no such step.
      debias_threshold: rank correlation with it that counts as none.
      debias_grid: how the penalty is found: exact by bisection, or armorm for the published grid, which can end above
        the threshold.
    """

    debias: str | None = None
    debias_threshold: Annotated[float, above(0, 1), only_with("debias")] = 0.03
    debias_grid: Annotated[Literal["exact", "armorm"], only_with("debias")] = "exact"


@dataclasses.dataclass(frozen=True)
class GateOptions(Options):
    """Training ArmoRM's gating network on pairs; the defaults are those of its code.

    Attributes:
      gate_hidden: units of a hidden layer.
      gate_layers: hidden layers.
      gate_temperature: the softmax over the objectives divides by it.
      gate_dropout: share of the units left out in training.
      gate_learning_rate: of AdamW without decay; it falls to 0 by a cosine.
      gate_steps: optimizer steps.
      gate_batch_size: pairs of a step, drawn with replacement.
    """

    gate_hidden: Annotated[int, at_least(1, 2**20)] = 1024
    gate_layers: Annotated[int, at_least(1, 100)] = 3
    gate_temperature: Annotated[float, POSITIVE] = 10.0
    gate_dropout: Annotated[float, _DROPOUT] = 0.2
    gate_learning_rate: Annotated[float, POSITIVE] = 1e-3
    gate_steps: Annotated[int, COUNT] = 2000
    gate_batch_size: Annotated[int, at_least(1, 2**24)] = 1024


@dataclasses.dataclass(frozen=True)
class ArmoRmProbe(Options):
    """ArmoRM (arXiv 2406.12845): regressed objectives under a gate that reads the prompt.

    Attributes:
      kind: armorm, ridge for the regressions alone, or tree.
      ridge: the regressions.
      debiasing: freeing objectives of another, say of verbosity.
      gate: the gating network.
    """

    kind: Literal["armorm"] = "armorm"
    ridge: Flat[RidgeOptions] = RidgeOptions()
    debiasing: Flat[DebiasOptions] = DebiasOptions()
    gate: Flat[GateOptions] = GateOptions()


@dataclasses.dataclass(frozen=True)
class RidgeProbe(Options):
    """A regression of several ratings at once: one linear output for each.

    Attributes:
      kind: "ridge".
      ridge: the regressions.
    """

    kind: Literal["ridge"] = "ridge"
    ridge: Flat[RidgeOptions] = RidgeOptions()


@dataclasses.dataclass(frozen=True)
class TreeProbe(Options):
    """A decision tree over differences in regressed ratings, which a person can read; grown by scikit-learn (trees).

    Attributes:
      kind: "tree".
      tree_depth: questions on the way to a leaf.
      tree_bootstraps: draws of the prompts over which the objectives' importances are measured.
      ridge: the regressions.
    """

    kind: Literal["tree"] = "tree"
    tree_depth: Annotated[int, at_least(1, 30)] = 3
    tree_bootstraps: Annotated[int, COUNT] = 100
    ridge: Flat[RidgeOptions] = RidgeOptions()


ProbeOptions = ArmoRmProbe | RidgeProbe | TreeProbe


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesCommand(Options):
    """Storing the hidden states of answers and prompts for `rlhf-jax probe`; OUTPUT_DIR/shard-*.

    Attributes:
      model_name_or_path: folder of the backbone: a reward model, or a language model.
      output_dir: where the shards go.
      kind: layout of the rows; graded for ratings, preference for the pairs that a gate learns from.
      pool: the state of an answer's last token, or the mean over its tokens, which no reward model reads.
      dtype: of weights, computation and what is stored.
      shard_size: prompts in one shard; what a killed run loses at most, and what is in memory at one time.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: the rows. Of graded rows an answer that is too long is left out alone.
    """

    model_name_or_path: str
    output_dir: str
    kind: Literal["graded", "preference"] = "graded"
    pool: Pool = "last"
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_size: Annotated[int, COUNT] = 128
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeCommand(Options):
    """Making a reward model of stored features: ratings regressed, ArmoRM's gate or a tree on top; OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the backbone that the features were read from.
      ratings: folders of features of graded rows.
      output_dir: where the model goes.
      pairs: folders of features of preference rows, for the gate or the tree.
      reference: folders of features of the answers on which objectives are freed of another; none for `ratings`.
      chat_template_path: the template that the features were made with, if it was not the model's own.
      mesh: of devices, over which the weights are spread while they are written.
      options: what is made.
    """

    model_name_or_path: str
    ratings: Sources
    output_dir: str
    pairs: Sources = ()
    reference: Sources = ()
    chat_template_path: str | None = None
    mesh: MeshChoice = MeshConfig()
    options: Flat[ProbeOptions] = ArmoRmProbe()

    def conflicts(self) -> None:
        paired = not isinstance(self.options, RidgeProbe)
        if not as_sources(self.ratings):
            raise ValueError("ratings names no folder; give the output_dir of `rlhf-jax features` on graded rows")
        if paired and not as_sources(self.pairs):
            raise ValueError(f"kind = {self.options.kind!r} learns from pairs, and none are given: set pairs to the "
                             "output_dir of `rlhf-jax features --kind preference`, or kind: ridge")
        if not paired and as_sources(self.pairs):
            raise ValueError(f"pairs = {self.pairs!r} has no effect with kind = 'ridge'; leave it out, or set "
                             "kind: armorm or tree")
        freed = isinstance(self.options, ArmoRmProbe) and self.options.debiasing.debias is not None
        if as_sources(self.reference) and not freed:
            raise ValueError(f"reference = {self.reference!r} has no effect without debias, the objective that others "
                             "are freed of")
