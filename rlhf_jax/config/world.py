"""Options of the embedded world."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, POSITIVE, SEED, Options, Range, at_least, between, only_if, only_with


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
      length_taste: what ten words more add to the log-odds of being chosen, whatever the judge says.
      rated_rows: prompts with several rated answers, and a quarter as many (at least 100) held-out ones; 0 for none.
      rating_holes: share of the ratings that nobody gave; the held-out ones have no holes.
    """

    subject: Literal["postcards", "arithmetic"] = "postcards"
    seed: Annotated[int, SEED] = 0
    sft_rows: Annotated[int, COUNT] = 3000
    preference_rows: Annotated[int, COUNT] = 2000
    prompt_rows: Annotated[int, COUNT] = 1200
    eval_prompts: Annotated[int, COUNT] = 128
    label_noise: Annotated[float, POSITIVE, only_if(subject="postcards")] = 0.7
    length_taste: Annotated[float, between(-100, 100), only_if(subject="postcards")] = 0.0
    rated_rows: Annotated[int, at_least(0), only_if(subject="postcards")] = 0
    rating_holes: Annotated[float, Range(0, 0.99), only_with("rated_rows")] = 0.7
