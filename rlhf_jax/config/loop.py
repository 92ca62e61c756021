"""Options of the online loop."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.fields import COUNT, SEED, SHARE, Options, between, only_if

_ANGLE = between(-180, 180)
_START_SEED = 500
"""What the start's seed differs by, so that in the first round it does not answer as the policy, which it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionOptions(Options):
    """Directions of preference, as in DPA (arXiv 2402.18571): each prompt asks for one, over two ratings.

    Attributes:
      objectives: the two numbers of a response that directions lie over, such as [proxy/helpfulness, proxy/verbosity];
        0 degrees is the first alone.
      min_angle: smallest angle that a prompt's direction is drawn with, in degrees.
      max_angle: the largest.
      seed: of the draw; a prompt's direction depends on the seed and its id alone.
    """

    objectives: tuple[str, ...]
    min_angle: Annotated[float, _ANGLE] = -45.0
    max_angle: Annotated[float, _ANGLE] = 45.0
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        if len(set(self.objectives)) != 2 or len(self.objectives) != 2:
            raise ValueError(f"objectives = {list(self.objectives)}; a direction lies over two different ratings")
        if self.min_angle > self.max_angle:
            raise ValueError(f"min_angle = {self.min_angle:g} is above max_angle = {self.max_angle:g}")


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
      from_start: this share of each prompt's samples is drawn from the start instead of the policy; they carry the
        number by_other = 1. For XPO (dpo.xpo_alpha) and pairs of two policies (pairs.rule across or delta).
      shard_size: prompts in one shard file; what a killed run loses at most.
      directions: each prompt asks for a direction of preference, and the best of n is the one that reaches furthest in
        it (DPA).
    """

    rounds: Annotated[int, COUNT] = 3
    prompts_per_round: Annotated[int | None, COUNT] = None
    method: Literal["dpo", "raft"] = "dpo"
    reference: Annotated[Literal["sft", "previous", "ema"], only_if(method="dpo")] = "sft"
    ref_model_mixup_alpha: Annotated[float, SHARE, only_if(reference="ema")] = 0.6
    init_from: Literal["previous", "sft"] = "previous"
    data_policy: Literal["fresh", "accumulate", "window"] = "fresh"
    window: Annotated[int, COUNT, only_if(data_policy="window")] = 2
    from_start: Annotated[float, between(0, 0.999), only_if(method="dpo")] = 0.0
    shard_size: Annotated[int, COUNT] = 128
    directions: Annotated[DirectionOptions | None, only_if(method="raft")] = None

    def divided(self, sampling: SamplingConfig) -> tuple[SamplingConfig, SamplingConfig | None]:
        """How the policy samples and how the start does, None where it does not.

        Raises:
          ValueError: from_start is no whole number of samples for each, or other keys do not fit those numbers.
        """
        if not self.from_start:
            return sampling, None
        whole = sampling.num_generations
        theirs = round(self.from_start * whole)
        if not 0 < theirs < whole or abs(theirs - self.from_start * whole) > 1e-6:
            raise ValueError(f"from_start = {self.from_start:g} of num_generations = {whole} is "
                             f"{self.from_start * whole:g} samples; give a share that is a whole number of them, and "
                             "leaves the policy some")
        return (dataclasses.replace(sampling, num_generations=whole - theirs),
                dataclasses.replace(sampling, num_generations=theirs, seed=sampling.seed + _START_SEED))
