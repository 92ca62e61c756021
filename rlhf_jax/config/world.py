"""Options of the embedded world."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rlhf_jax.fields import COUNT, POSITIVE, SEED, Options


@dataclasses.dataclass(frozen=True)
class WorldConfig(Options):
    """Sizes of the world's data sets.

    Attributes:
      seed: of everything in it.
      sft_rows: prompts with completions.
      preference_rows: labelled pairs.
      prompt_rows: prompts of the loop, all different up to 1,536.
      eval_prompts: prompts that no other set but preference_eval asks, all different up to 512.
      label_noise: divides gold differences before labels are drawn: higher is noisier.
    """

    seed: Annotated[int, SEED] = 0
    sft_rows: Annotated[int, COUNT] = 3000
    preference_rows: Annotated[int, COUNT] = 2000
    prompt_rows: Annotated[int, COUNT] = 1200
    eval_prompts: Annotated[int, COUNT] = 128
    label_noise: Annotated[float, POSITIVE] = 0.7
