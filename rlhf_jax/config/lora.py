"""Options of low-rank adapters, under TRL's names."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from rlhf_jax.fields import POSITIVE, Options, at_least, only_if

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Hugging Face's names of the projections that can get an update."""
_ADAPTED = only_if(use_peft=True)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Options):
    """Low-rank adapters (Hu et al., arXiv 2106.09685).

    Attributes:
      use_peft: train an adapter instead of all weights; OUTPUT_DIR/model is merged, the adapter itself is
        OUTPUT_DIR/model/adapter, in PEFT's layout.
      lora_r: rank.
      lora_alpha: the update is scaled by lora_alpha / lora_r.
      lora_target_modules: projections that get an update.
      use_rslora: scale by lora_alpha / sqrt(lora_r) instead (Kalajdzievski, arXiv 2312.03732).
      lora_dropout: share of the inputs of the update that are left out at random while training, the others scaled up
        (PEFT's). By packed row, layer and projection, so that neither mesh nor micro_rows change what is drawn.
      lora_init: the factor that starts random, the other at zero: "a", which reads the input, as Hu et al., or "b"
        (Hayou et al., arXiv 2406.08447, compare both).
    """

    use_peft: bool = False
    lora_r: Annotated[int, at_least(1, 65_536), _ADAPTED] = 16
    lora_alpha: Annotated[float, POSITIVE, _ADAPTED] = 32.0
    lora_target_modules: Annotated[tuple[str, ...], _ADAPTED] = MODULES
    use_rslora: Annotated[bool, _ADAPTED] = False
    lora_dropout: Annotated[float, at_least(0, 0.99), _ADAPTED] = 0.0
    lora_init: Annotated[Literal["a", "b"], _ADAPTED] = "a"

    def conflicts(self) -> None:
        unknown = sorted(set(self.lora_target_modules) - set(MODULES))
        if unknown or not self.lora_target_modules:
            raise ValueError(f"lora_target_modules has {unknown or 'no entry'}; choose from {sorted(MODULES)}")

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied with."""
        return self.lora_alpha / (math.sqrt(self.lora_r) if self.use_rslora else self.lora_r)


def adapter_of(lora: LoraConfig) -> LoraConfig | None:
    """The adapter to train, None for all weights."""
    return lora if lora.use_peft else None
