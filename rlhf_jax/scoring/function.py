"""A Python function as a scorer, in the signature people already write reward functions in."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.plugins import function_key
from rlhf_jax.scoring.base import Progress, Scores

RewardFunction = Callable[..., list[float | None]]
"""f(prompts, completions, completion_ids=..., **columns) -> one number or None a completion."""


class FunctionScorer:
    """Calls a Python function once for each batch of groups; NaN, infinity and None count as failures."""

    def __init__(self, function: RewardFunction, *, name: str):
        self.name, self._function = name, function
        self.failures: Counter[str] = Counter()
        self.key = function_key(function)

    def release(self) -> None:
        """A function has nothing to let go of."""

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Scores:
        flat = [(group, response) for group in groups for response in group.responses]
        columns: dict[str, list[Any]] = {name: [group.extra.get(name) for group, _ in flat]
                                         for name in sorted({name for group in groups for name in group.extra})}
        values = self._function(prompts=[g.prompt for g, _ in flat], completions=[r.text for _, r in flat],
                                completion_ids=[r.ids.tolist() for _, r in flat], **columns)
        if len(values) != len(flat):
            raise ValueError(f"scorer {self.name!r} returned {len(values)} scores for {len(flat)} completions; a "
                             "reward function returns one number or None for each")
        clean = iter([self._checked(value) for value in values])
        scores = [[next(clean) for _ in group.responses] for group in groups]
        if progress:
            progress(len(groups))
        return scores

    def _checked(self, value: float | None) -> float | None:
        if value is not None and not isinstance(value, numbers.Real | np.number | np.bool_):
            raise ValueError(f"scorer {self.name!r} returned {value!r}, a {type(value).__name__}; a reward function "
                             "returns one number or None for each completion")
        if value is None or not math.isfinite(value):
            self.failures["no_score" if value is None else "non_finite_score"] += 1
            return None
        return float(value)
