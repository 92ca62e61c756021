"""Ratings on scales: the nineteen objectives of ArmoRM, and tables of ratings with holes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.graded import finite_number

GRADES = "data/"
"""How the numbers of a response begin that a data set's raters gave by name; one without a name is `data`."""


class Scale(NamedTuple):
    """A rating in `low..high`, whole steps unless `unit`. unit: it is taken as it is, since it lies in 0 to 1."""

    low: float = 0.0
    high: float = 1.0
    unit: bool = True

    def to_unit(self, rating: Any) -> Any:
        """The middle of the rating's step, when 0 to 1 is divided into as many steps as there are; NaN stays NaN.

        HelpSteer's 0..4 become 0.1, 0.3, ... 0.9, so that 5 r - 0.5 gives them back, as ArmoRM's model card does
        (arXiv 2406.12845).
        """
        return rating if self.unit else (rating - self.low + 0.5) / (self.high - self.low + 1.0)

    def from_unit(self, value: Any) -> Any:
        """The inverse of `to_unit`: of a regressed value, the rating it stands for."""
        return value if self.unit else value * (self.high - self.low + 1.0) + self.low - 0.5

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class Rated(NamedTuple):
    """An objective that raters gave. name: ours. source, column: the data set and its column. scale: of that column."""

    name: str
    source: str
    column: str
    scale: Scale


UNIT = Scale()
_TO_FOUR, _TO_FIVE, _TO_TEN = Scale(0, 4, False), Scale(1, 5, False), Scale(1, 10, False)

ARMORM: tuple[Rated, ...] = (
    *(Rated(f"helpsteer-{column}", "helpsteer", column, _TO_FOUR)
      for column in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")),
    Rated("ultrafeedback-overall_score", "ultrafeedback", "overall_score", _TO_TEN),
    *(Rated(f"ultrafeedback-{column}", "ultrafeedback", column, _TO_FIVE)
      for column in ("instruction_following", "truthfulness", "honesty", "helpfulness")),
    Rated("beavertails-is_safe", "beavertails", "is_safe", UNIT),
    Rated("prometheus-score", "prometheus", "score", _TO_FIVE),
    Rated("argilla-overall_quality", "argilla", "overall_quality", _TO_FIVE),
    Rated("argilla-judge_lm", "argilla", "judge_lm", _TO_TEN),
    *(Rated(f"code-{column}", "code", column, _TO_FIVE)
      for column in ("complexity", "style", "explanation", "instruction-following", "readability")),
)
"""The objectives of ArmoRM in its order (RLHFlow/ArmoRM-Llama3-8B-v0.1). How HelpSteer and BeaverTails become numbers
in 0 to 1 is published; the steps of the others follow from the same rule and the scales of their data sets."""
VERBOSITY = "helpsteer-verbosity"
"""The objective that ArmoRM frees the others of."""


class Objective(NamedTuple):
    """What is regressed. number: of a response, such as `data/helpfulness`. scale: it is given on."""

    number: str
    scale: Scale

    @property
    def name(self) -> str:
        """What the model's output is called: the number without the mark of a data set's grades."""
        return self.number.removeprefix(GRADES)


def parse_objective(text: str) -> Objective:
    """An objective as a user names it: NAME for ratings in 0 to 1, NAME:LOW:HIGH for whole steps.

    Raises:
      ValueError: for what is neither.
    """
    name, *ends = text.split(":")
    if not name or len(ends) not in (0, 2) or not all(re.fullmatch(r"-?\d+", end) for end in ends):
        raise ValueError(f"objective {text!r}; write NAME for ratings in 0 to 1, or NAME:LOW:HIGH with whole numbers, "
                         "such as data/quality:1:5")
    if not ends:
        return Objective(name, UNIT)
    low, high = map(int, ends)
    if low >= high:
        raise ValueError(f"objective {text!r}: {low} is not below {high}")
    return Objective(name, Scale(low, high, unit=False))


def parse_objectives(texts: Sequence[str]) -> tuple[Objective, ...]:
    """Objectives as a user names them, each once.

    Raises:
      ValueError: as `parse_objective`, or one is named twice.
    """
    objectives = tuple(map(parse_objective, texts))
    names = [objective.name for objective in objectives]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the objective {min(twice)!r} is named twice; name each once")
    return objectives


def to_unit(name: str, rating: Any, scale: Scale) -> float:
    """One rating in 0 to 1.

    Raises:
      BadRow: rating_outside_scale, or what `finite_number` raises.
    """
    number = float(rating) if isinstance(rating, bool) else finite_number(rating, name)
    if not scale.low <= number <= scale.high:
        raise BadRow("rating_outside_scale", f"{name} is rated {number:g}, and its scale is {scale}; correct the row, "
                                             f"or give its scale: {name}:LOW:HIGH")
    return float(scale.to_unit(number))


def rated_by(source: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The ratings of one answer in a row of a data set, in 0 to 1, by objective; absent where nobody gave one.

    Raises:
      BadRow: rating_outside_scale, and no_rating where the row has none of the data set's columns.
    """
    columns = [rated for rated in ARMORM if rated.source == source]
    found = {rated.name: to_unit(rated.column, row[rated.column], rated.scale)
             for rated in columns if row.get(rated.column) is not None}
    if not found:
        raise BadRow("no_rating", f"the row has none of the ratings of {source}: "
                                  f"{', '.join(rated.column for rated in columns)}")
    return found


def rating_table(scores: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> np.ndarray:
    """[R, K] ratings in 0 to 1 of R responses, NaN where a response was not rated for an objective.

    Args:
      scores: of each response, its named numbers.

    Raises:
      BadRow: rating_outside_scale.
    """
    table = np.full((len(scores), len(objectives)), np.nan)
    for row, found in enumerate(scores):
        for column, (number, scale) in enumerate(objectives):
            if (rating := found.get(number)) is not None:
                table[row, column] = to_unit(number, rating, scale)
    return table
