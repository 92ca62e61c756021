"""Options of preference optimisation; the loss keys are those of `losses.PreferenceLoss`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rlhf_jax.config.data import PreferenceData, Sources
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.trackers import TrackerOptions
from rlhf_jax.config.training import TrainConfig, check_evaluated
from rlhf_jax.fields import SHARE, Flat, Options, between, changed, flattened
from rlhf_jax.losses import PreferenceLoss


@dataclasses.dataclass(frozen=True)
class PreferenceOptions(Options):
    """Direct preference optimisation.

    Attributes:
      loss: which losses, with which weights and knobs.
      train: how to optimise.
      lora: an adapter instead of all weights.
      ld_alpha: LD-DPO: weight of the tokens beyond the length both responses reach; None for plain sums.
      use_weighting: WPO: pairs count by how likely the policy itself finds both responses, in every loss of a mixture.
      xpo_alpha: XPO (arXiv 2405.21046): alpha times the mean log-probability of the responses that another policy gave
        (loop.from_start, or the pairs of two policies), which the policy moves away from. TRL's alpha is 1e-5.
      win_rate: name of the number that loss_type sppo takes as a response's probability of winning.
      split_pairs: for losses of single responses (kto, bco, apo_zero_unpaired): preference rows are read, and of each
        pair the chosen response is desirable and the rejected one is not; else rows have a completion and a label.
    """

    loss: Flat[PreferenceLoss] = PreferenceLoss()
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-7)
    lora: Flat[LoraConfig] = LoraConfig()
    ld_alpha: Annotated[float | None, SHARE] = None
    use_weighting: bool = False
    xpo_alpha: Annotated[float, between(0, 1e6)] = 0.0
    win_rate: str = "proxy"
    split_pairs: bool = False

    def conflicts(self) -> None:
        if self.use_weighting and self.loss.compares_pairs:
            raise ValueError(f"use_weighting weighs each pair on its own and loss_type {self.loss.loss_type!r} sorts "
                             "pairs against each other; leave one of them out")
        if self.split_pairs and not self.loss.of_responses:
            raise ValueError(f"split_pairs has no effect with loss_type = {self.loss.loss_type!r}, which reads pairs; "
                             "leave it out")
        if self.win_rate != PreferenceOptions.win_rate and not self.loss.needs_wins:
            raise ValueError(f"win_rate = {self.win_rate!r} has no effect with loss_type = {self.loss.loss_type!r}, "
                             "which reads no probability of winning; leave it out, or set loss_type: sppo")
        if self.ld_alpha is not None and self.loss.of_likelihoods:
            raise ValueError(f"ld_alpha has no effect with loss_type = {self.loss.loss_type!r}, the likelihood of all "
                             "tokens alike; leave it out")
        if self.xpo_alpha and self.loss.compares_pairs and not self.loss.of_responses:
            raise ValueError(f"xpo_alpha adds a mean over single responses, and loss_type {self.loss.loss_type!r} is "
                             "one of a whole batch; leave one of them out")
        for name in ("ld_alpha", "use_weighting", "xpo_alpha") if self.loss.of_responses else ():
            if getattr(self, name) not in (None, False, 0.0):
                raise ValueError(f"{name} is about pairs, and loss_type = {self.loss.loss_type!r} reads single "
                                 "responses; leave it out")

    @property
    def responses(self) -> int:
        """Responses of a group as the loss reads it."""
        labelled = 1 if self.loss.of_responses and not self.split_pairs else 2
        return 2 * labelled if self.loss.needs_mismatched else labelled


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoCommand(Options):
    """Preference optimisation on preference rows, unpaired rows, or the file of `rlhf-jax pairs`; OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the policy to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      reference_model: folder of the reference policy, of any shape with the policy's vocabulary; the start itself if
        not given.
      pairs: pairs.jsonl with token ids, instead of dataset_name.
      eval_dataset_name: held-out preference rows, read as those of dataset_name (columns, converter ...).
      eval_split: which split of eval_dataset_name to read, where it has several.
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
    eval_split: str | None = None
    mesh: MeshChoice = MeshConfig()
    data: Flat[PreferenceData] = PreferenceData()
    options: Flat[PreferenceOptions] = PreferenceOptions()
    trackers: Flat[TrackerOptions] = TrackerOptions()

    def conflicts(self) -> None:
        if bool(self.pairs) == bool(self.data.rows.sources):
            raise ValueError("give exactly one of dataset_name (preference rows) and pairs (a pairs.jsonl file)")
        check_evaluated(self.options.train, self.data.rows, self.eval_dataset_name, self.eval_split)
        if self.options.loss.of_responses and not self.options.split_pairs:
            if self.pairs:
                raise ValueError(f"loss_type = {self.options.loss.loss_type!r} reads single responses, and pairs are "
                                 "pairs; set split_pairs, or give dataset_name with rows of a completion and a label")
            if idle := changed(self.data.graded):
                raise ValueError(f"{', '.join(idle)} has no effect on single responses; leave it out, or set "
                                 "split_pairs for rows of graded responses")
        if self.pairs and not self.eval_dataset_name:
            for key, value in flattened(self.data).items():
                if value != flattened(PreferenceData())[key]:
                    raise ValueError(f"{key} = {value!r} has no effect on pairs, whose rows are token ids already; "
                                     "leave it out")
        if self.reference_model is not None and not self.options.loss.needs_reference:
            raise ValueError(f"reference_model has no effect on loss_type {self.options.loss.loss_type!r}, which has "
                             "no reference; leave it out")
