"""Options of the embedded world."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, POSITIVE, SEED, Options, only_if


@dataclasses.dataclass(frozen=True)
class WorldConfig(Options):
    """Sizes of the world's data sets.

    Attributes:
      subject: postcards, or arithmetic: sums in steps, whose judged solutions are world:steps and world:steps_eval.
      seed: of everything in it.
      sft_rows: prompts with completions.
      preference_rows: labelled pairs; of arithmetic solutions with labelled steps.
      prompt_rows: prompts of the loop, all different up to 1,536.
      eval_prompts: prompts that no other set but preference_eval asks, all different up to 512.
      label_noise: divides gold differences before labels are drawn: higher is noisier.
    """

    subject: Literal["postcards", "arithmetic"] = "postcards"
    seed: Annotated[int, SEED] = 0
    sft_rows: Annotated[int, COUNT] = 3000
    preference_rows: Annotated[int, COUNT] = 2000
    prompt_rows: Annotated[int, COUNT] = 1200
    eval_prompts: Annotated[int, COUNT] = 128
    label_noise: Annotated[float, POSITIVE, only_if(subject="postcards")] = 0.7
