"""A Python function as a scorer, in the signature people already write reward functions in."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from rlhf_jax.data.groups import PromptGroup, Verdict
from rlhf_jax.plugins import check_call, function_key
from rlhf_jax.scoring.base import Progress, Verdicts

RewardFunction = Callable[..., list[float | Mapping[str, float] | None]]
"""f(prompts, completions, completion_ids=..., **columns) -> of each completion a number, several by name, or None.

Of several, "" is the score; the others are stored beside it.
"""


class FunctionScorer:
    """Calls a Python function once for each batch of groups; NaN, infinity and None count as failures."""

    def __init__(self, function: RewardFunction, *, name: str):
        self.name, self._function = name, function
        self.failures: Counter[str] = Counter()
        self.key = function_key(function)

    def release(self) -> None:
        """A function has nothing to let go of."""

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        flat = [(group, response) for group in groups for response in group.responses]
        columns: dict[str, list[Any]] = {name: [group.extra.get(name) for group, _ in flat]
                                         for name in sorted({name for group in groups for name in group.extra})}
        given: dict[str, list[Any]] = {"prompts": [g.prompt for g, _ in flat], "completions": [r.text for _, r in flat],
                                       "completion_ids": [r.ids.tolist() for _, r in flat], **columns}
        check_call(self._function, "f(prompts, completions, **columns), with completion_ids and the data set's columns",
                   **given)
        values = self._function(**given)
        if not isinstance(values, Sized):
            raise ValueError(f"scorer {self.name!r} returned {values!r}; a reward function returns a list, of one "
                             "verdict or None for each completion")
        if len(values) != len(flat):
            raise ValueError(f"scorer {self.name!r} returned {len(values)} scores for {len(flat)} completions; a "
                             "reward function returns one verdict or None for each")
        clean = iter([self._checked(value) for value in values])
        scores = [[next(clean) for _ in group.responses] for group in groups]
        if progress:
            progress(len(groups))
        return scores

    def _checked(self, value: float | Mapping[str, float] | None) -> Verdict | None:
        verdict = {} if value is None else value if isinstance(value, Mapping) else {"": value}
        if not all(isinstance(number, numbers.Real | np.number | np.bool_) for number in verdict.values()):
            raise ValueError(f"scorer {self.name!r} returned {value!r}, a {type(value).__name__}; a reward function "
                             'returns a number, {"": the score, name: another number} or None for each completion')
        if "" not in verdict:
            self.failures["no_score"] += 1
            return None
        if not all(math.isfinite(number) for number in verdict.values()):
            self.failures["non_finite_score"] += 1
            return None
        return {name: float(number) for name, number in verdict.items()}
