"""Options of training stages, under TRL's names where TRL has one."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Literal

from rlhf_jax.config.data import GradedOptions, RowOptions, Sources, as_sources
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.fields import (
    COUNT,
    POSITIVE,
    SEED,
    SHARE,
    Flat,
    Options,
    Range,
    at_least,
    between,
    changed,
    only_if,
    only_with,
)

Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr", "inverse_sqrt"]
Remat = Literal["none", "dots", "full"]
"""What the backward pass computes again: nothing; all but dense products (and attention by blocks, on a CPU); all but
the layers' inputs."""
AttnImplementation = Literal["auto", "xla", "blocked", "splash", "triton", "cudnn"]
"""auto: splash on TPUs, triton on NVIDIA GPUs, blocked on a lone CPU device, else xla. xla: whole rows, anywhere.
blocked: a loop over blocks, for one CPU device. splash: JAX's TPU kernel. triton: our kernel for NVIDIA GPUs. cudnn:
cuDNN's fused kernel, for NVIDIA GPUs in bfloat16 or float16."""
_DECAY = Range(0, 0.9999999999)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Options):
    """How to optimise; what to optimise is the objective's business.

    Attributes:
      train_batch_size: examples (prompt groups) in one optimizer step, over all devices, whatever their number.
      micro_rows: packed rows that each device works on at a time; the rest is gradient accumulation. auto takes what
        is estimated to be fastest of what fits the memory; on devices that do not report it (CPUs) rows of 1,024
        tokens together, at least 1 and at most 4.
      row_length: tokens of a packed row; None takes the smallest multiple of 128 that holds every group.
      num_train_epochs: passes over the data, may be fractional; a fraction of a pass is rounded up to whole steps.
      max_steps: train for so many steps, however many passes that takes; it replaces num_train_epochs.
      learning_rate: peak learning rate, reached after warm-up.
      lr_scheduler_type: how the rate moves after warm-up.
      min_lr_rate: floor of `cosine_with_min_lr`, as a share of the peak.
      warmup_steps: number of steps, or a share of all steps (rounded up, but for the last one) where below 1.
      weight_decay: AdamW's; norms and biases are spared.
      adam_beta1: decay of the first moment.
      adam_beta2: decay of the second moment.
      adam_epsilon: added to the root of the second moment.
      mu_dtype: of the first moment as it is kept; bfloat16 saves two bytes a weight. The second moment stays float32:
        in bfloat16 its steps of a thousandth would be rounded away.
      max_grad_norm: gradients are scaled down to this global norm; 0 switches clipping off.
      dtype: of activations and working weights; master weights stay float32.
      remat: what the backward pass recomputes; auto as with micro_rows, on CPUs dots.
      attn_implementation: of attention over packed rows; auto chooses by the devices.
      logits_chunk: row positions whose vocabulary logits exist at one time.
      logging_steps: a metric line every so many steps, averaged over them.
      eval_steps: evaluate every so many steps, and at the end; None for the end only.
      save_steps: checkpoint every so many steps; None for the end only.
      save_total_limit: checkpoints kept; an old one goes only after the new one is whole.
      seed: of the data order and of fresh heads and adapters.
    """

    train_batch_size: Annotated[int, at_least(1, 2**24)] = 32
    micro_rows: Annotated[int | Literal["auto"], at_least(1, 2**16)] = "auto"
    row_length: Annotated[int | None, at_least(1, 2**24)] = None
    num_train_epochs: Annotated[float, POSITIVE] = 1.0
    max_steps: Annotated[int | None, COUNT] = None
    learning_rate: Annotated[float, POSITIVE] = 1e-6
    lr_scheduler_type: Schedule = "cosine"
    min_lr_rate: Annotated[float, SHARE, only_if(lr_scheduler_type="cosine_with_min_lr")] = 0.1
    warmup_steps: Annotated[float, at_least(0)] = 0.03
    weight_decay: Annotated[float, between(0, 1e4)] = 0.0
    adam_beta1: Annotated[float, _DECAY] = 0.9
    adam_beta2: Annotated[float, _DECAY] = 0.999
    adam_epsilon: Annotated[float, between(0, 1)] = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: Annotated[float, between(0, 1e9)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat | Literal["auto"] = "auto"
    attn_implementation: AttnImplementation = "auto"
    logits_chunk: Annotated[int, at_least(1, 2**24)] = 256
    logging_steps: Annotated[int, COUNT] = 10
    eval_steps: Annotated[int | None, COUNT] = None
    save_steps: Annotated[int | None, COUNT] = None
    save_total_limit: Annotated[int, COUNT, only_with("save_steps")] = 2
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        if self.lr_scheduler_type == "constant" and self.warmup_steps >= 1:
            raise ValueError(f"warmup_steps = {self.warmup_steps:g} has no effect with lr_scheduler_type = 'constant', "
                             "which knows no warm-up; set constant_with_warmup, or leave warmup_steps out")
        if self.attn_implementation == "cudnn" and self.dtype == "float32":
            raise ValueError("attn_implementation = 'cudnn' computes in bfloat16 or float16; set dtype: bfloat16")


@dataclasses.dataclass(frozen=True)
class SftOptions(Options):
    """Supervised fine-tuning; its learning rate is TRL's default.

    Attributes:
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    train: Flat[TrainConfig] = TrainConfig(learning_rate=2e-5)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class BradleyTerryOptions(Options):
    """A reward model with a scalar head.

    Attributes:
      kind: "bradley_terry" has a scalar head, "pairwise" is a language model that answers A or B, "odin" has two heads,
        "ensemble" several, "regression" one for each rating; of solutions, "process" answers each step with + or -,
        "outcome_generative" the whole, "outcome" has a scalar head.
      center_rewards_coefficient: weight of (r_chosen + r_rejected)^2.
      use_margin: subtract the rows' margins, which every pair must have.
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    kind: Literal["bradley_terry"] = "bradley_terry"
    center_rewards_coefficient: Annotated[float, at_least(0)] = 0.0
    use_margin: bool = False
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-6)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class PairwiseOptions(Options):
    """A preference model: a language model that answers which of two responses is better, A or B.

    Attributes:
      kind: "pairwise".
      augment: rrm trains on 14 rows for each pair, in which answers to other prompts lose, or are neutral among
        themselves (arXiv 2409.13156); rrm+ on the pairs and those rows.
      neutral_answer: the word for neither, one token beside A and B.
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    kind: Literal["pairwise"] = "pairwise"
    augment: Literal["none", "rrm", "rrm+"] = "none"
    neutral_answer: Annotated[str, only_if(augment=("rrm", "rrm+"))] = "Same"
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-6)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class OdinOptions(Options):
    """A reward model with two heads, of which one takes the length (ODIN, arXiv 2402.07319); defaults of its code.

    Attributes:
      kind: "odin".
      length_unit: what the length of a response's last turn is counted in.
      length_coefficient: weight of (1 - rho(length, length head)) + |rho(length, quality head)|.
      orthogonal_coefficient: weight of the overlap of the two heads.
      train: how to optimise; a batch is one micro-batch, since correlations are those of all its responses.
      lora: an adapter instead of all weights.
    """

    kind: Literal["odin"] = "odin"
    length_unit: Literal["tokens", "characters"] = "tokens"
    length_coefficient: Annotated[float, at_least(0)] = 1.0
    orthogonal_coefficient: Annotated[float, at_least(0)] = 1.0
    train: Flat[TrainConfig] = TrainConfig(train_batch_size=256, learning_rate=2e-6, weight_decay=0.001)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class EnsembleOptions(Options):
    """Several reward heads on one backbone, each with a start and a draw of the prompts of its own (arXiv 2310.02743).

    Attributes:
      kind: "ensemble".
      members: heads.
      bootstrap: each member counts a prompt as often as it drew it (Poisson, mean 1); false: all learn from all rows.
      center_rewards_coefficient: weight of (r_chosen + r_rejected)^2, which keeps the members' scores comparable.
      train: how to optimise; the seed is also that of the draws.
      lora: an adapter instead of all weights; the members share it.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[int, at_least(2, 1024)] = 4
    bootstrap: bool = True
    center_rewards_coefficient: Annotated[float, at_least(0)] = 0.01
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-6)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class ProcessOptions(Options):
    """A process model: a language model that answers each step of a solution with + or -; RLHFlow's rates.

    Attributes:
      kind: "process".
      label_threshold: a step whose label is a number above this is answered with +; 0 where one right completion of
        several makes a step right.
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    kind: Literal["process"] = "process"
    label_threshold: Annotated[float, Range(0, 0.9999999999)] = 0.0
    train: Flat[TrainConfig] = TrainConfig(learning_rate=2e-6, warmup_steps=0.05)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class OutcomeGenerativeOptions(Options):
    """A generative outcome model: a language model that answers a whole solution with + or -; RLHFlow's rates.

    Attributes:
      kind: "outcome_generative".
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    kind: Literal["outcome_generative"] = "outcome_generative"
    train: Flat[TrainConfig] = TrainConfig(learning_rate=2e-6, warmup_steps=0.05)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True)
class OutcomeOptions(Options):
    """A scalar outcome model: one output, the log-odds that a solution is right; RLHFlow's rates.

    Attributes:
      kind: "outcome".
      train: how to optimise.
      lora: an adapter instead of all weights.
    """

    kind: Literal["outcome"] = "outcome"
    train: Flat[TrainConfig] = TrainConfig(train_batch_size=16, learning_rate=1e-6, weight_decay=0.001)
    lora: Flat[LoraConfig] = LoraConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionOptions(Options):
    """A reward model with an output for each of several ratings, by squared error over the ratings that there are.

    Attributes:
      kind: "regression".
      objectives: the ratings of graded rows, each NAME for ratings in 0 to 1 or NAME:LOW:HIGH for whole steps, such as
        data/helpfulness:0:4.
      train: how to optimise; an example is a row with all its answers.
      lora: an adapter instead of all weights.
    """

    objectives: tuple[str, ...]
    kind: Literal["regression"] = "regression"
    train: Flat[TrainConfig] = TrainConfig(learning_rate=5e-6)
    lora: Flat[LoraConfig] = LoraConfig()

    def conflicts(self) -> None:
        if not self.objectives:
            raise ValueError("objectives names no rating; name those of the rows, such as [data/helpfulness:0:4]")


RewardOptions = (BradleyTerryOptions | PairwiseOptions | OdinOptions | EnsembleOptions | RegressionOptions
                 | ProcessOptions | OutcomeGenerativeOptions | OutcomeOptions)
OF_SOLUTIONS = (ProcessOptions, OutcomeGenerativeOptions, OutcomeOptions)
"""What learns from solutions with labels, and from no pairs."""


def check_evaluated(train: TrainConfig, rows: RowOptions, eval_dataset_name: Sources, eval_split: str | None) -> None:
    """Raises ValueError for an evaluation's rhythm or split without rows to evaluate on.

    And for an evaluation on the rows that are trained on.
    """
    if eval_split is not None and not eval_dataset_name:
        raise ValueError(f"eval_split = {eval_split!r} has no effect without eval_dataset_name; name its data set")
    trained = {os.path.realpath(name) for name in rows.sources}
    same = [name for name in as_sources(eval_dataset_name) if os.path.realpath(name) in trained]
    if same and eval_split in (None, rows.split or "train"):
        raise ValueError(f"eval_dataset_name = {same[0]!r} holds the rows that are trained on (split = {rows.split}); "
                         "name another split of it with eval_split, or other rows")
    if train.eval_steps is not None and not eval_dataset_name:
        raise ValueError(f"eval_steps = {train.eval_steps} has no effect without eval_dataset_name, the rows to "
                         "evaluate on; give them or leave it out")


def check_graded(options: RewardOptions, graded: GradedOptions) -> None:
    """Raises ValueError for the choice of pairs where no pairs are learned."""
    if isinstance(options, (RegressionOptions, *OF_SOLUTIONS)) and (idle := changed(graded)):
        raise ValueError(f"{', '.join(idle)} has no effect with kind = {options.kind!r}, which learns from no pairs; "
                         "leave it out")
