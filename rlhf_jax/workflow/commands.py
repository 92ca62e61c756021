"""The options of the single verbs, one frozen dataclass each."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.parallel import MeshChoice, MeshConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.workflow.options import (
    DataOptions,
    PairOptions,
    PreferenceOptions,
    RewardOptions,
    ScorerOptions,
    SftOptions,
    TrackerOptions,
    refuse_idle,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WithModel:
    model_name_or_path: str
    output_dir: str
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)


def _check_training(command: SftCommand | RewardCommand | DpoCommand) -> None:
    _ = command.trackers  # raises for what is no tracker
    if command.eval_steps is not None and not command.eval_dataset_name:
        raise ValueError(f"eval_steps = {command.eval_steps} has no effect without eval_dataset_name, the rows to "
                         "evaluate on; give them or leave it out")


def _check_not_graded(command: SftCommand | GenerateCommand) -> None:
    for name, idle in (("pair_rule", "all"), ("min_gap", 0)):
        if getattr(command, name) != idle:
            raise ValueError(f"{name} = {getattr(command, name)!r} chooses preference pairs and has no effect here; "
                             "leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftCommand(_WithModel, SftOptions, TrackerOptions, DataOptions):
    """Supervised fine-tuning of a language model on prompts and completions; the result is OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the model to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      eval_dataset_name: held-out rows of the same layout.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    eval_dataset_name: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_training(self)
        _check_not_graded(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardCommand(_WithModel, RewardOptions, TrackerOptions, DataOptions):
    """Training a reward model on preference rows: Bradley-Terry, or pairwise (A/B letter); OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the model to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      eval_dataset_name: held-out preference rows; accuracy, likelihood and calibration on them end the stage.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    eval_dataset_name: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_training(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoCommand(_WithModel, PreferenceOptions, TrackerOptions, DataOptions):
    """Direct preference optimisation on preference rows, or on the file that `rlhf-jax pairs` wrote; OUTPUT_DIR/model.

    Attributes:
      model_name_or_path: folder of the policy to start from.
      output_dir: where the model, its metrics and the quarantine file go.
      reference_model: folder of the reference policy, of any shape with the policy's vocabulary; the start itself if
        not given.
      pairs: pairs.jsonl with token ids, instead of dataset_name.
      eval_dataset_name: held-out preference rows.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    reference_model: str | None = None
    pairs: str | None = None
    eval_dataset_name: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.pairs) == bool(self.sources):
            raise ValueError("give exactly one of dataset_name (preference rows) and pairs (a pairs.jsonl file)")
        _check_training(self)
        if self.pairs and not self.eval_dataset_name:
            refuse_idle(self, DataOptions, "on pairs, whose rows are token ids already")
        if self.reference_model is not None and not self.loss.needs_reference:
            raise ValueError(f"reference_model has no effect on loss_type {self.loss_type!r}, which has no reference; "
                             "leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCommand(_WithModel, SamplingConfig, DataOptions):
    """Sampling n continuations of every prompt, with log-probs and finish reasons, into OUTPUT_DIR/shard-*.jsonl.

    Attributes:
      model_name_or_path: folder of the policy.
      output_dir: where the shards go.
      dtype: of weights, caches and computation.
      shard_size: prompts in one shard file; what a killed run loses at most.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_graded(self)
        if self.shard_size < 1:
            raise ValueError(f"shard_size = {self.shard_size}; a shard holds 1 prompt or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreCommand(ScorerOptions):
    """Scoring sampled responses with a Bradley-Terry model, a pairwise model or a Python function.

    Attributes:
      input: folder of shards that `rlhf-jax generate` or an earlier `score` wrote.
      output_dir: where the scored shards go.
      name: under which the scores are stored.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    input: str
    output_dir: str
    name: str = "proxy"
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsCommand(PairOptions):
    """Choosing preference pairs from scored responses, with a printed funnel; OUTPUT_DIR/pairs.jsonl.

    Attributes:
      input: folder of scored shards.
      output_dir: where pairs.jsonl goes.
      scorer: name of the scores to choose by.
    """

    input: str
    output_dir: str
    scorer: str = "proxy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand(_WithModel):
    """Writing a model as a Hugging Face folder: an adapter merged, another dtype, a killed run's last checkpoint.

    Attributes:
      model_name_or_path: a model, or a LoRA adapter in PEFT's layout.
      output_dir: the model becomes OUTPUT_DIR/model.
      base_model: the model an adapter belongs to, if not the one it names.
      checkpoint: folder of a training stage that did not finish; its last checkpoint replaces the model's own weights,
        whatever devices it was saved on.
      dtype: of the written weights.
      max_shard_size: gigabytes of one file.
      mesh: of devices, over which the weights are spread meanwhile.
    """

    base_model: str | None = None
    checkpoint: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_shard_size: float = 4.0

    def __post_init__(self) -> None:
        if self.max_shard_size <= 0:
            raise ValueError(f"max_shard_size = {self.max_shard_size}; a file needs some room, say 4.0 (gigabytes)")


@dataclasses.dataclass(frozen=True)
class InspectCommand:
    """What a checkpoint is, from its headers alone: family, head, tensors, bytes per device; nothing is loaded.

    Attributes:
      model_name_or_path: a model folder or hub name.
      devices: how many devices the mesh is laid over, present or not.
      mesh: of those devices; "auto" chooses by their number and the model.
    """

    model_name_or_path: str
    devices: int = 1
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorCommand(DataOptions):
    """Checking what ruins runs silently: template, BOS, stop token, padding, and the loss before any training.

    Attributes:
      model_name_or_path: a model folder or hub name.
      kind: layout of the rows of dataset_name, whose step-0 loss is measured; without them an embedded conversation is.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    model_name_or_path: str
    kind: Literal["sft", "preference"] = "sft"
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand(DataOptions):
    """Evaluating a scorer on held-out preference rows, or a policy against a baseline on held-out prompts.

    Attributes:
      scorer: the reward or preference model. Without model_name_or_path it is what is evaluated: accuracy, likelihood
        and calibration on the preference rows of dataset_name.
      output_dir: where the results go.
      model_name_or_path: a policy to evaluate on the prompts of dataset_name: rewards, KL, lengths, report.
      baseline_model: the policy to win against and to measure KL from.
      gold: a second judge of the policies' answers.
      sampling: how the policies answer.
      dtype: of the policies' weights and computation.
      seed: of the bootstrap.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
    """

    scorer: ScorerOptions
    output_dir: str
    model_name_or_path: str | None = None
    baseline_model: str | None = None
    gold: ScorerOptions | None = None
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    mesh: MeshChoice = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) != (self.baseline_model is None):
            raise ValueError("evaluating a policy takes both model_name_or_path and baseline_model (say the start); "
                             "evaluating a scorer takes neither")
        if self.model_name_or_path is None and (self.gold is not None or self.sampling != SamplingConfig()):
            raise ValueError("gold and sampling have no effect on the evaluation of a scorer; leave them out or give "
                             "model_name_or_path and baseline_model")
        if self.model_name_or_path is None and self.chat_template_path is not None:
            raise ValueError(f"chat_template_path = {self.chat_template_path!r} has no effect on the evaluation of a "
                             "scorer; set scorer.chat_template_path instead")
