"""Does a scorer like long answers? The correlation of score and length within each prompt, over scored samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.evaluation.answers import correlations, length_in_tokens
from rlhf_jax.evaluation.per_prompt import ResponseNumber, measured, over_prompts, score_of
from rlhf_jax.evaluation.statistics import Estimate

LengthUnit = Literal["characters", "tokens"]
BINS, PARTS = 20, 8
"""Of the correlations in [-1, 1], and of the prompts by mean length, each part with as many prompts."""


@dataclasses.dataclass(frozen=True)
class PromptBias:
    """One prompt: its correlation (None where score or length does not vary), mean length and number of samples."""

    prompt_id: str
    correlation: float | None
    mean_length: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {"id": self.prompt_id, "correlation": self.correlation, "mean_length": self.mean_length,
                "samples": self.samples}


@dataclasses.dataclass(frozen=True)
class LengthBias:
    """Over all prompts; Dong et al., arXiv 2405.07863, section 2.2, report 0.19 for UltraRM and 0.06 for their model.

    Attributes:
      correlation: mean of the correlations, with its interval over prompts.
      deviation: their standard deviation.
      above_half: share of them above 0.5.
      unit: of the lengths.
      samples: per prompt, the fewest and the most.
      left_out: prompts without a correlation: fewer than three scored samples, equal scores or equal lengths.
      lengths: [parts + 1] edges of the mean lengths.
      heat_map: [parts, BINS] prompts by mean length and correlation; its sum over parts is the histogram.
    """

    correlation: Estimate
    deviation: float
    above_half: float
    unit: LengthUnit
    samples: tuple[int, int]
    left_out: int
    lengths: tuple[float, ...]
    heat_map: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "correlation": self.correlation.to_json()}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> LengthBias:
        return LengthBias(Estimate.from_json(row["correlation"]), row["deviation"], row["above_half"], row["unit"],
                          (row["samples"][0], row["samples"][1]), row["left_out"], tuple(row["lengths"]),
                          tuple(tuple(part) for part in row["heat_map"]))


def length_in_characters(response: Response) -> float:
    """Characters of a response's text; of all its messages where it has several."""
    if isinstance(response.text, str):
        return float(len(response.text))
    return float(sum(len(message["content"]) for message in response.text))


LENGTHS: dict[LengthUnit, ResponseNumber] = {"characters": length_in_characters, "tokens": length_in_tokens}


def prompt_biases(groups: Sequence[PromptGroup], scorer: str, unit: LengthUnit) -> list[PromptBias]:
    """Of each group, over its responses that have a score of this name."""
    score, length = score_of(scorer), LENGTHS[unit]
    tables = [measured(group, score, length) for group in groups]
    return [PromptBias(group.prompt_id, found, float(table[:, 1].mean()) if len(table) else 0.0, len(table))
            for group, table, found in zip(groups, tables, correlations(groups, score, length), strict=True)]


def length_bias(groups: Sequence[PromptGroup], scorer: str, unit: LengthUnit = "tokens", seed: int = 0) -> LengthBias:
    """How much a scorer's scores grow with length.

    Args:
      scorer: name under which the samples hold their scores.
      seed: of the bootstrap.

    Raises:
      ValueError: no prompt has three scored samples of unequal scores and lengths.
    """
    biases = prompt_biases(groups, scorer, unit)
    estimate = over_prompts(groups, [bias.correlation for bias in biases], seed)
    if estimate is None:
        names = sorted({name for group in groups for response in group.responses for name in response.scores})
        raise ValueError(f"no prompt has three samples with different lengths and different scores {scorer!r}; there "
                         f"are scores {', '.join(names) or 'of no name'}. Score at least three samples per prompt; "
                         "those that were read as text have characters and no tokens")
    kept = [bias for bias in biases if bias.correlation is not None]
    found = np.array([bias.correlation for bias in kept], np.float64)
    lengths = np.array([bias.mean_length for bias in kept])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, PARTS + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])
    heat, _, _ = np.histogram2d(lengths, found, bins=(edges, np.linspace(-1, 1, BINS + 1)))
    sizes = [bias.samples for bias in kept]
    return LengthBias(estimate, float(found.std()), float((found > 0.5).mean()), unit, (min(sizes), max(sizes)),
                      len(biases) - len(kept), tuple(edges.tolist()),
                      tuple(tuple(int(count) for count in part) for part in heat))
