"""Options of self-training."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.commands import SHARD_SIZE, RewardCommand
from rlhf_jax.config.data import PreferenceData, RowOptions, Sources, as_sources
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.trackers import TrackerOptions
from rlhf_jax.config.training import PairwiseOptions
from rlhf_jax.fields import COUNT, Flat, Options, between


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfTrainingCommand(Options):
    """Self-training of a pairwise preference model (SSRM, arXiv 2409.06903): few labels, many pairs without; DIR/model.

    A first model learns from the labelled rows. In each round the last model judges the unlabelled pairs in both
    orders, those it is sure of are labelled as it says, and the next model learns from both.

    Attributes:
      model_name_or_path: folder of the language model to start from.
      output_dir: the run folder: stages, rounds.json, report.html, and `model`, which points at the last round's.
      unlabelled_dataset_name: rows of prompts with two or more answers; labels they may have are not read.
      eval_dataset_name: held-out preference rows; each round's accuracy on them is reported.
      eval_split: which split of eval_dataset_name to read.
      rounds: of labelling and training, behind the first training.
      confidence: a pair is kept where one side has more than this probability of being better.
      init_from: each round's training goes on from the "previous" model, or begins again from the "start".
      shard_size: unlabelled rows in one shard file; what a killed run loses at most.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: labelled preference rows.
      options: how to train.
      trackers: who else gets the metrics.
    """

    model_name_or_path: str
    output_dir: str
    unlabelled_dataset_name: Sources
    eval_dataset_name: Sources = ()
    eval_split: str | None = None
    rounds: Annotated[int, COUNT] = 3
    confidence: Annotated[float, between(0.5, 1)] = 0.8
    init_from: Literal["previous", "start"] = "previous"
    shard_size: Annotated[int, COUNT] = SHARD_SIZE
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()
    options: Flat[PairwiseOptions] = PairwiseOptions()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        """Raises ValueError for what the first training would refuse, and for no unlabelled rows."""
        _ = self.first
        if not as_sources(self.unlabelled_dataset_name):
            raise ValueError("unlabelled_dataset_name is empty; name rows of prompts with two or more answers, or "
                             "train on the labelled ones alone with `rlhf-jax reward --kind pairwise`")

    @property
    def first(self) -> RewardCommand:
        """The training on the labelled rows alone."""
        return RewardCommand(
            model_name_or_path=self.model_name_or_path, output_dir=self.output_dir,
            eval_dataset_name=self.eval_dataset_name, eval_split=self.eval_split, mesh=self.mesh, data=self.data,
            options=self.options, trackers=self.trackers)

    @property
    def unlabelled(self) -> RowOptions:
        """The rows without labels, read as the labelled ones are."""
        return dataclasses.replace(self.data.rows, dataset_name=self.unlabelled_dataset_name, max_samples=None)

    @property
    def held_out(self) -> RowOptions:
        return self.data.rows.held_out(self.eval_dataset_name, self.eval_split)
