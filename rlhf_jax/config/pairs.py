"""Options of pairing."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Literal

from rlhf_jax.fields import SEED, Options, at_least, between, only_with
from rlhf_jax.plugins import is_plugin

RULES = ("max_min", "max_random", "max_max", "random")


@dataclasses.dataclass(frozen=True)
class PairOptions(Options):
    """How scored responses become a preference pair (the seed's `choose_type`).

    Attributes:
      rule: max_min (best and worst, the paper's), max_random (best and another), max_max (best and second best),
        random (two at random); or "module:function" that gets the values of the responses, best first, and a
        random.Random, and returns the places of chosen and rejected, or None for no pair.
      scorer: name of the score to choose by, as `proxy`, or of a number beside it, as `proxy/helpfulness`.
      min_gap: the smallest penalised score gap of a pair.
      length_penalty: subtracted from the score for each unit of length, *before* selection and ordering.
      length_unit: "characters" (the paper's) or "tokens".
      drop_truncated: responses that ran out of budget take no part.
      seed: of the random rules; a prompt's draw depends on the seed and its id alone.
    """

    rule: str = "max_min"
    scorer: str = "proxy"
    min_gap: Annotated[float, at_least(0)] = 0.0
    length_penalty: Annotated[float, between(-1e6, 1e6)] = 0.0
    length_unit: Annotated[Literal["characters", "tokens"], only_with("length_penalty")] = "characters"
    drop_truncated: bool = False
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        if not is_plugin(self.rule) and self.rule not in RULES:
            near = difflib.get_close_matches(self.rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"rule = {self.rule!r}; {hint}choose one of {', '.join(RULES)}, or module:function")
