"""Training options, under TRL's names where TRL has one."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.training.attention import AttnImplementation

Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr", "inverse_sqrt"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to optimise; what to optimise is the objective's business.

    Attributes:
      train_batch_size: examples (prompt groups) in one optimizer step, over all devices, whatever their number.
      micro_rows: packed rows that each device works on at a time; the rest is gradient accumulation.
      row_length: tokens of a packed row; None takes the smallest multiple of 128 that holds every group.
      num_train_epochs: passes over the data, may be fractional; a fraction of a pass is rounded up to whole steps.
      max_steps: train for so many steps, however many passes that takes; it replaces num_train_epochs.
      learning_rate: peak.
      lr_scheduler_type: how the rate moves after warm-up.
      min_lr_rate: floor of `cosine_with_min_lr`, as a share of the peak.
      warmup_steps: number of steps, or a share of all steps (rounded up) where below 1.
      weight_decay: AdamW's; norms and biases are spared.
      adam_beta1: decay of the first moment.
      adam_beta2: decay of the second moment.
      adam_epsilon: added to the root of the second moment.
      max_grad_norm: gradients are scaled down to this global norm; 0 switches clipping off.
      dtype: of activations and working weights; masters and moments stay float32.
      remat: what the backward pass recomputes.
      attn_implementation: of attention over packed rows; auto chooses by the devices.
      logits_chunk: row positions whose vocabulary logits exist at one time.
      logging_steps: a metric line every so many steps, averaged over them.
      eval_steps: evaluate every so many steps, and at the end; None for the end only.
      save_steps: checkpoint every so many steps; None for the end only.
      save_total_limit: checkpoints kept; an old one goes only after the new one is whole.
      seed: of the data order and of fresh heads and adapters.
    """

    train_batch_size: int = 32
    micro_rows: int = 4
    row_length: int | None = None
    num_train_epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 1e-6
    lr_scheduler_type: Schedule = "cosine"
    min_lr_rate: float = 0.1
    warmup_steps: float = 0.03
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots"] = "dots"
    attn_implementation: AttnImplementation = "auto"
    logits_chunk: int = 256
    logging_steps: int = 10
    eval_steps: int | None = None
    save_steps: int | None = None
    save_total_limit: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_batch_size", "micro_rows", "logits_chunk", "logging_steps", "save_total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be 1 or more")
        for name in ("max_steps", "eval_steps", "save_steps", "row_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be 1 or more, or null")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be 0 or more")
        for name in ("learning_rate", "num_train_epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be greater than 0")
        if self.save_total_limit != 2 and self.save_steps is None:
            raise ValueError(f"save_total_limit = {self.save_total_limit} has no effect without save_steps, since "
                             "nothing is saved before the end; set save_steps or leave it out")
        if self.attn_implementation == "cudnn" and self.dtype == "float32":
            raise ValueError("attn_implementation = 'cudnn' computes in bfloat16 or float16; set dtype: bfloat16")
        if self.min_lr_rate != 0.1 and self.lr_scheduler_type != "cosine_with_min_lr":
            raise ValueError(f"min_lr_rate = {self.min_lr_rate} has no effect with lr_scheduler_type = "
                             f"{self.lr_scheduler_type!r}; use 'cosine_with_min_lr' or leave min_lr_rate out")
