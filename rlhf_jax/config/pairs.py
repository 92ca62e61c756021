"""Options of pairing."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, POSITIVE, SEED, Options, at_least, between, only_if, only_with
from rlhf_jax.plugins import is_plugin

ENHANCER = "enhancer"
TWO_POLICIES = ("across", "delta")
"""Rules that need the answers of two policies."""
RULES = ("max_min", "max_min_p", "max_random", "max_max", "random", ENHANCER, *TWO_POLICIES)


@dataclasses.dataclass(frozen=True)
class PairOptions(Options):
    """How scored responses become a preference pair (the seed's `choose_type`).

    Attributes:
      rule: max_min (best and worst, the paper's), max_min_p (the same by penalised scores, so it needs length_penalty),
        max_random (best and another), max_max (best and second best), random (two at random), enhancer (best and, of
        those near it, the one that the pairs so far say least about, by the reward model's features); of the answers of
        two policies across (the best of each, the better one chosen) and delta (the best of each, the policy's own
        chosen whatever the scores); or "module:function" that gets the values of the responses, best first, and a
        random.Random, and returns the places of chosen and rejected, or None for no pair.
      scorer: name of the score to choose by, as `proxy`, or of a number beside it, as `proxy/helpfulness`.
      min_gap: the smallest penalised score gap of a pair.
      length_penalty: subtracted from the score for each unit of length, *before* selection and ordering.
      length_unit: "characters" (the paper's) or "tokens".
      drop_truncated: responses that ran out of budget take no part.
      margin_scale: times the score gap is the pair's margin, for losses that read it; min_gap is of the gap itself.
      budget: so many pairs at most, as if each one's label cost something; None keeps all.
      budget_by: which pairs these are: random ones, or those on whose gap the members of an ensemble disagree most.
      width: of the enhancer: the other response lies at most so far below the best one, in scores; the second best
        always may be it. None for no limit.
      ridge: of the enhancer: lambda, what the covariance of features is before there are pairs.
      projection: of the enhancer: numbers that features are projected to, by a matrix of the seed; None for none.
      seed: of the random rules, the budget and the projection; a prompt's draw depends on the seed and its id alone.
    """

    rule: str = "max_min"
    scorer: str = "proxy"
    min_gap: Annotated[float, at_least(0)] = 0.0
    length_penalty: Annotated[float, between(-1e6, 1e6)] = 0.0
    length_unit: Annotated[Literal["characters", "tokens"], only_with("length_penalty")] = "characters"
    drop_truncated: bool = False
    margin_scale: Annotated[float, POSITIVE] = 1.0
    budget: Annotated[int | None, COUNT] = None
    budget_by: Annotated[Literal["random", "disagreement"], only_with("budget")] = "random"
    width: Annotated[float | None, at_least(0), only_if(rule=ENHANCER)] = None
    ridge: Annotated[float, POSITIVE, only_if(rule=ENHANCER)] = 1.0
    projection: Annotated[int | None, COUNT, only_if(rule=ENHANCER)] = 256
    seed: Annotated[int, SEED] = 0

    def conflicts(self) -> None:
        if not is_plugin(self.rule) and self.rule not in RULES:
            near = difflib.get_close_matches(self.rule, RULES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"rule = {self.rule!r}; {hint}choose one of {', '.join(RULES)}, or module:function")
        if self.rule == "delta" and self.min_gap:
            raise ValueError(f"min_gap = {self.min_gap:g} has no effect with rule = 'delta', which chooses by who "
                             "answered and not by the score; leave it out, or set rule: across")
        if self.rule == "max_min_p" and not self.length_penalty:
            raise ValueError("rule = 'max_min_p' is max_min by penalised scores, and length_penalty is 0; set it (the "
                             "paper's is 0.001 per character), or set rule: max_min")
