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
from rlhf_jax.sampling import prefill_rows, rounded_up
from rlhf_jax.training.evaluate import LONG_ROW, long_row
from rlhf_jax.workflow.meshes import DEFAULT_LENGTH, Trains, groups_per_row, longest, quoting
from rlhf_jax.workflow.stages.train import Trained


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
        return groups_per_row(self.assume, self.row_length, self.responses)

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
        return groups_per_row(self.assume, self.tokens, self.responses)

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


def at_a_time(stage: Shape, ways: int) -> int:
    """What one call of a stage's program takes on, to compare a changed stage with the one it was: lanes, prompts or
    rows; an optimizer step takes its whole batch whatever its micro-batches. ways: the mesh cuts a batch into."""
    match stage:
        case TrainShape():
            return 1
        case PassShape():
            return stage.rows
    s = stage.sampling
    return s.in_flight if stage.name == "decode" else prefill_rows(s.slots, ways)


def train_shape(training: Trains, config: DecoderConfig, assume: Assumptions) -> TrainShape:
    """A training's stage, of a model of this shape; a pair is one group of two."""
    return TrainShape(training.name, config, training.options, training.row_length(config.max_position),
                      training.responses, quoting(assume, training.quoted))


def reference_shape(train: TrainShape) -> PassShape:
    """The pass that computes what `train` compares with, in the same rows."""
    tokens = train.options.train.row_length or power_of_two(train.row_length)
    options = train.options.train
    return PassShape("reference", train.config, options.dtype, "logps", tokens, pass_rows(options), train.responses,
                     train.assume, train.options)


def score_shape(config: DecoderConfig, output: str, max_length: int | None, responses: int, assume: Assumptions,
                dtype: str) -> PassShape:
    """Scoring `responses` of each prompt, in one row as `PackedMap` packs them for accelerators; a conversation of
    `max_length` is the least that a row must hold."""
    most = min(max_length or DEFAULT_LENGTH, config.max_position)
    group = row_length_for(max(most, assume.group_tokens(responses)))
    return PassShape("score", config, dtype, output, long_row(group, LONG_ROW), 4, responses, assume)


def sample_shapes(config: DecoderConfig, sampling: SamplingConfig, dtype: str, render: RenderOptions | None,
                  assume: Assumptions) -> tuple[SampleShape, SampleShape]:
    """Prefill and decode; prompts as long as the data's limit allows."""
    limit = (render.max_prompt_length if render else None) or longest(render, config.max_position) // 2
    capacity = sampling.prompt_length or rounded_up(min(limit, config.max_position - sampling.max_new_tokens))
    prefill = SampleShape("prefill", config, sampling, dtype, capacity, assume)
    return prefill, dataclasses.replace(prefill, name="decode")
