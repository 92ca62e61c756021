"""Options of the online loop."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, SHARE, Options, only_if


@dataclasses.dataclass(frozen=True)
class LoopOptions(Options):
    """The online loop: rounds, prompts per round, reference, data policy.

    Attributes:
      rounds: iterations.
      prompts_per_round: None shares all prompts evenly among the rounds; rounds never share one.
      method: "dpo", or "raft" (fine-tuning on the best of n).
      reference: the anchor of DPO: "sft" (the start, as in the paper), "previous" (the last policy), or "ema".
      ref_model_mixup_alpha: ema: reference <- alpha x policy + (1 - alpha) x reference after each round.
      init_from: each round's training starts from the "previous" policy or again from "sft".
      data_policy: train on the "fresh" round, on all so far ("accumulate"), or on the last `window` rounds.
      window: rounds that data_policy "window" trains on.
      shard_size: prompts in one shard file; what a killed run loses at most.
    """

    rounds: Annotated[int, COUNT] = 3
    prompts_per_round: Annotated[int | None, COUNT] = None
    method: Literal["dpo", "raft"] = "dpo"
    reference: Annotated[Literal["sft", "previous", "ema"], only_if(method="dpo")] = "sft"
    ref_model_mixup_alpha: Annotated[float, SHARE, only_if(reference="ema")] = 0.6
    init_from: Literal["previous", "sft"] = "previous"
    data_policy: Literal["fresh", "accumulate", "window"] = "fresh"
    window: Annotated[int, COUNT, only_if(data_policy="window")] = 2
    shard_size: Annotated[int, COUNT] = 128
