"""Options of preference optimisation; the loss keys are those of `losses.PreferenceLoss`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rlhf_jax.config.commands import check_evaluated
from rlhf_jax.config.data import PreferenceData, Sources
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.trackers import TrackerOptions
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.fields import SHARE, Flat, Options, flattened
from rlhf_jax.losses import PreferenceLoss


@dataclasses.dataclass(frozen=True)
class PreferenceOptions(Options):
    """Direct preference optimisation.

    Attributes:
      loss: which losses, with which weights and knobs.
      train: how to optimise.
      lora: an adapter instead of all weights.
      ld_alpha: LD-DPO: weight of the tokens beyond the length both responses reach; None for plain sums.
      use_weighting: WPO: pairs count by how likely the policy itself finds both responses.
    """

    loss: Flat[PreferenceLoss] = PreferenceLoss()
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-7)
    lora: Flat[LoraConfig] = LoraConfig()
    ld_alpha: Annotated[float | None, SHARE] = None
    use_weighting: bool = False

    def conflicts(self) -> None:
        if self.use_weighting and self.loss.compares_pairs:
            raise ValueError(f"use_weighting weighs each pair on its own and loss_type {self.loss.loss_type!r} sorts "
                             "pairs against each other; leave one of them out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoCommand(Options):
    """Direct preference optimisation on preference rows, or on the file that `rlhf-jax pairs` wrote; OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the policy to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      reference_model: folder of the reference policy, of any shape with the policy's vocabulary; the start itself if
        not given.
      pairs: pairs.jsonl with token ids, instead of dataset_name.
      eval_dataset_name: held-out preference rows.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: rows to train on.
      options: which loss, and how to train.
      trackers: who else gets the metrics.
    """

    model_name_or_path: str
    output_dir: str
    reference_model: str | None = None
    pairs: str | None = None
    eval_dataset_name: Sources = ()
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()
    options: Flat[PreferenceOptions] = PreferenceOptions()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        if bool(self.pairs) == bool(self.data.rows.sources):
            raise ValueError("give exactly one of dataset_name (preference rows) and pairs (a pairs.jsonl file)")
        check_evaluated(self.options.train, self.eval_dataset_name)
        if self.pairs and not self.eval_dataset_name:
            for key, value in flattened(self.data).items():
                if value != flattened(PreferenceData())[key]:
                    raise ValueError(f"{key} = {value!r} has no effect on pairs, whose rows are token ids already; "
                                     "leave it out")
        if self.reference_model is not None and not self.options.loss.needs_reference:
            raise ValueError(f"reference_model has no effect on loss_type {self.options.loss.loss_type!r}, which has "
                             "no reference; leave it out")
