"""A weighted sum of numbers that responses carry already: a scorer without a model of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rlhf_jax.data.groups import PromptGroup, Verdict, named
from rlhf_jax.scoring.base import Progress, Scorer, Verdicts


def weighted_sum(numbers: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """sum of weight x number; None where one of the numbers is not there.

    >>> weighted_sum({"proxy/helpful": 0.5, "proxy/long": 0.25}, {"proxy/helpful": 1.0, "proxy/long": -2.0})
    0.0
    """
    if not weights.keys() <= numbers.keys():
        return None
    return sum(weight * numbers[name] for name, weight in weights.items())


class CombineScorer:
    """Scores with a weighted sum of a response's numbers.

    Args:
      weights: by the names under which the numbers are stored.
      scorer: gives the numbers first, under `name`; None for those that are stored. Its own numbers but the score stay.
    """

    def __init__(self, weights: Mapping[str, float], *, name: str, scorer: Scorer | None = None, key: str = ""):
        self.name, self._own_key = name, key
        self._weights, self._scorer = dict(weights), scorer
        self._missing: Counter[str] = Counter()

    @property
    def key(self) -> str:
        """Changes when the sums would; the stored numbers are part of what is scored."""
        return self._own_key if self._scorer is None else f"{self._own_key}-{self._scorer.key}"

    @property
    def failures(self) -> Counter[str]:
        """Responses without one of the numbers, as `no_NAME`, and those of the scorer underneath."""
        return self._missing if self._scorer is None else self._missing + self._scorer.failures

    def release(self) -> None:
        if self._scorer is not None:
            self._scorer.release()

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response that lacks one of the numbers gets None."""
        if self._scorer is None:
            found: Verdicts = [[{} for _ in group.responses] for group in groups]
            if progress:
                progress(len(groups))
        else:
            found = self._scorer.score(groups, progress)
        return [[None if verdict is None else self._combined(response.scores, verdict)
                 for response, verdict in zip(group.responses, verdicts, strict=True)]
                for group, verdicts in zip(groups, found, strict=True)]

    def _combined(self, stored: Mapping[str, float], verdict: Verdict) -> Verdict | None:
        numbers = {**stored, **named(self.name, verdict)}
        total = weighted_sum(numbers, self._weights)
        if total is None:
            self._missing.update(f"no_{name}" for name in self._weights if name not in numbers)
            return None
        return {**verdict, "": total}
