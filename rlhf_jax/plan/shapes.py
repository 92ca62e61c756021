"""What a run computes, as shapes: the stages of a config, before any data or weight is there."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.plan import Assumptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import Remat
from rlhf_jax.data.packing import RowShape, power_of_two, row_length_for
from rlhf_jax.models import DecoderConfig
from rlhf_jax.parallel.micro_batches import pass_rows
from rlhf_jax.sampling import rounded_up
from rlhf_jax.workflow.stages.train import Trained

DEFAULT_LENGTH = 2048
"""Tokens of the longest example where a config sets no limit."""


@dataclasses.dataclass(frozen=True)
class TrainShape:
    """Optimizer steps. name: sft, reward, pairwise, dpo or raft. responses: of a group. examples: of the data set."""

    name: str
    config: DecoderConfig
    options: Trained
    row_length: int
    responses: int
    assume: Assumptions
    examples: int | None = None

    @property
    def groups_per_row(self) -> float:
        if self.assume.groups_per_row is not None:
            return self.assume.groups_per_row
        return max(1.0, self.row_length // self.assume.group_tokens(self.responses))

    def rows(self) -> int:
        """Rows of a global batch."""
        return math.ceil(self.options.train.train_batch_size / self.groups_per_row)

    def micro_batches(self, ways: int) -> int:
        return max(1, math.ceil(self.rows() / (self.micro_rows * ways)))

    def trained_with(self, **changes: Any) -> TrainShape:
        """The stage with other options of how to train."""
        options = dataclasses.replace(self.options, train=dataclasses.replace(self.options.train, **changes))
        return dataclasses.replace(self, options=options, row_length=changes.get("row_length", self.row_length))

    @property
    def micro_rows(self) -> int:
        """Of a stage that is `settled`."""
        rows = self.options.train.micro_rows
        assert rows != "auto"
        return rows

    @property
    def remat(self) -> Remat:
        """Of a stage that is `settled`."""
        remat = self.options.train.remat
        assert remat != "auto"
        return remat

    def shape(self) -> RowShape:
        """Room of a row, as `data.packing.row_shape` rounds it."""
        groups = math.ceil(self.groups_per_row)
        targets = min(self.assume.targets_per_row or self.row_length, self.row_length)
        pairs = groups * (self.responses // 2)
        return RowShape(self.row_length, min(-(-targets // 64) * 64, self.row_length),
                        power_of_two(groups * self.responses), power_of_two(max(pairs, 1)))


@dataclasses.dataclass(frozen=True)
class PassShape:
    """A forward pass over packed groups. name: reference or score. output: "logps" of the targets, or the kind of
    scorer that reads them.

    tokens: of a row. rows: each device works on at a time. responses: of a group, on average in one row.
    """

    name: str
    config: DecoderConfig
    dtype: str
    output: str
    tokens: int
    rows: int
    responses: int
    assume: Assumptions
    options: Any = None

    @property
    def groups_per_row(self) -> float:
        if self.assume.groups_per_row is not None:
            return self.assume.groups_per_row
        return max(1.0, self.tokens // self.assume.group_tokens(self.responses))

    def shape(self) -> RowShape:
        groups = math.ceil(self.groups_per_row)
        return RowShape(self.tokens, min(self.assume.targets_per_row or self.tokens, self.tokens),
                        power_of_two(groups * self.responses), power_of_two(groups))


@dataclasses.dataclass(frozen=True)
class SampleShape:
    """Part of sampling. name: prefill or decode. prompt_length: capacity of a slot."""

    name: str
    config: DecoderConfig
    sampling: SamplingConfig
    dtype: str
    prompt_length: int
    assume: Assumptions

    @property
    def settings(self) -> SamplingConfig:
        """As the stage that runs has them."""
        return dataclasses.replace(self.sampling, prompt_length=self.prompt_length)


Shape = TrainShape | PassShape | SampleShape


def at_a_time(stage: Shape) -> int:
    """What one call of a stage's program takes on, to compare a changed stage with the one it was: lanes, prompts or
    rows; an optimizer step takes its whole batch whatever its micro-batches."""
    match stage:
        case TrainShape():
            return 1
        case PassShape():
            return stage.rows
    s = stage.sampling
    return s.in_flight if stage.name == "decode" else max(1, s.slots // 4)


def longest(render: RenderOptions | None, config: DecoderConfig) -> int:
    """Tokens of the longest prompt and response together."""
    return min((render.max_length if render else None) or DEFAULT_LENGTH, config.max_position)


def longest_group(render: RenderOptions | None, config: DecoderConfig, responses: int) -> int:
    """Tokens of the longest group: one prompt and its responses, each within `max_length` together with it."""
    each = longest(render, config)
    prompt = min((render.max_prompt_length if render else None) or each // 2, each - 1)
    return prompt + responses * (each - prompt)


def train_shape(name: str, config: DecoderConfig, options: Any, render: RenderOptions | None, assume: Assumptions,
                responses: int) -> TrainShape:
    """A training stage over groups of so many responses, within these limits; a pair is one group of two."""
    rows = options.train.row_length or row_length_for(longest_group(render, config, responses))
    return TrainShape(name, config, options, rows, responses, assume)


def reference_shape(train: TrainShape) -> PassShape:
    """The pass that computes what `train` compares with, in the same rows."""
    tokens = train.options.train.row_length or power_of_two(train.row_length)
    options = train.options.train
    return PassShape("reference", train.config, options.dtype, "logps", tokens, pass_rows(options), train.responses,
                     train.assume, train.options)


def score_shape(config: DecoderConfig, output: str, max_length: int | None, responses: int, assume: Assumptions,
                dtype: str) -> PassShape:
    """Scoring `responses` of each prompt: what fits shares a row, the longest one sets its length."""
    tokens = power_of_two(row_length_for(min(max_length or DEFAULT_LENGTH, config.max_position)))
    together = max(1, min(responses, (tokens - assume.prompt_tokens) // assume.response_tokens))
    return PassShape("score", config, dtype, output, tokens, 4, together, assume)


def sample_shapes(config: DecoderConfig, sampling: SamplingConfig, dtype: str, render: RenderOptions | None,
                  assume: Assumptions) -> tuple[SampleShape, SampleShape]:
    """Prefill and decode; prompts as long as the data's limit allows."""
    limit = (render.max_prompt_length if render else None) or longest(render, config) // 2
    capacity = sampling.prompt_length or rounded_up(min(limit, config.max_position - sampling.max_new_tokens))
    prefill = SampleShape("prefill", config, sampling, dtype, capacity, assume)
    return prefill, dataclasses.replace(prefill, name="decode")
