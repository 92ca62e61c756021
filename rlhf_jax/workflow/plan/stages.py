"""What a run computes, as shapes: the stages of a config, before any data or weight is there."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlhf_jax.data.packing import RowShape, row_length_for
from rlhf_jax.models import DecoderConfig
from rlhf_jax.sampling import SamplingConfig, rounded_up
from rlhf_jax.workflow.options import DataOptions, PreferenceOptions, RewardOptions, SftOptions

DEFAULT_LENGTH = 2048
"""Tokens of the longest example where a config sets no limit."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What a plan cannot read from a config: how long real examples are, and how close to its peak a device runs.

    Attributes:
      prompt_tokens: of an average example; UltraFeedback's have 162 (table 5 of arXiv 2405.07863).
      response_tokens: of an average example; UltraFeedback's have 280, chat models' answers more. A conversation for
        fine-tuning has prompt and response together.
      groups_per_row: prompt groups that packing puts in a row; None for what fits by the averages.
      targets_per_row: trained tokens a row has room for; None for all of them, the most a row can ask for.
      efficiency: share of the roofline's speed that a run reaches; hours are given at this.
    """

    prompt_tokens: int = 200
    response_tokens: int = 350
    groups_per_row: float | None = None
    targets_per_row: int | None = None
    efficiency: float = 0.5

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.response_tokens) < 1 or not 0 < self.efficiency <= 1:
            raise ValueError(f"prompt_tokens = {self.prompt_tokens} and response_tokens = {self.response_tokens} must "
                             f"be 1 or more, efficiency = {self.efficiency} above 0 and at most 1")

    def group_tokens(self, responses: int) -> int:
        return self.prompt_tokens + responses * self.response_tokens


@dataclasses.dataclass(frozen=True)
class TrainStage:
    """Optimizer steps. name: sft, reward, pairwise, dpo or raft. responses: of a group. examples: of the data set."""

    name: str
    config: DecoderConfig
    options: SftOptions | RewardOptions | PreferenceOptions
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
        return math.ceil(self.options.train_batch_size / self.groups_per_row)

    def micro_batches(self, ways: int) -> int:
        return max(1, math.ceil(self.rows() / (self.options.micro_rows * ways)))

    def shape(self) -> RowShape:
        """Room of a row, as `data.packing.row_shape` rounds it."""
        groups = math.ceil(self.groups_per_row)
        targets = min(self.assume.targets_per_row or self.row_length, self.row_length)
        pairs = groups * (self.responses // 2)
        return RowShape(self.row_length, min(-(-targets // 64) * 64, self.row_length),
                        _power_of_two(groups * self.responses), _power_of_two(max(pairs, 1)))


@dataclasses.dataclass(frozen=True)
class PassStage:
    """A forward pass over packed groups. name: reference or score. output: log-probs of targets, scores, or letters.

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
                        _power_of_two(groups * self.responses), _power_of_two(groups))


@dataclasses.dataclass(frozen=True)
class SampleStage:
    """Part of sampling. name: prefill or decode. prompt_length: capacity of a slot."""

    name: str
    config: DecoderConfig
    sampling: SamplingConfig
    dtype: str
    prompt_length: int
    assume: Assumptions


Stage = TrainStage | PassStage | SampleStage


def at_a_time(stage: Stage) -> int:
    """What one call of a stage's program takes on, to compare a changed stage with the one it was: lanes, prompts or
    rows; an optimizer step takes its whole batch whatever its micro-batches."""
    match stage:
        case TrainStage():
            return 1
        case PassStage():
            return stage.rows
    s = stage.sampling
    return s.slots * (s.lanes or s.num_generations) if stage.name == "decode" else max(1, s.slots // 4)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def longest(data: DataOptions | None, config: DecoderConfig) -> int:
    """Tokens of the longest prompt and response together."""
    return min((data.max_length if data else None) or DEFAULT_LENGTH, config.max_position)


def longest_group(data: DataOptions | None, config: DecoderConfig, responses: int) -> int:
    """Tokens of the longest group: one prompt and its responses, each within `max_length` together with it."""
    each = longest(data, config)
    prompt = min((data.max_prompt_length if data else None) or each // 2, each - 1)
    return prompt + responses * (each - prompt)


def train_stage(name: str, config: DecoderConfig, options: Any, data: DataOptions | None, assume: Assumptions
                ) -> TrainStage:
    """A training stage over data with these limits; a pair is one group of two responses."""
    pairs = isinstance(options, PreferenceOptions) or (isinstance(options, RewardOptions) and name == "reward")
    responses = 2 if pairs else 1
    rows = options.row_length or row_length_for(longest_group(data, config, responses))
    return TrainStage(name, config, options, rows, responses, assume)


def reference_stage(train: TrainStage) -> PassStage:
    """The pass that computes what `train` compares with, in the same rows."""
    tokens = train.options.row_length or _power_of_two(train.row_length)
    return PassStage("reference", train.config, train.options.dtype, "logps", tokens, train.options.micro_rows,
                     train.responses, train.assume, train.options)


def score_stage(config: DecoderConfig, output: str, max_length: int | None, responses: int, assume: Assumptions,
                dtype: str) -> PassStage:
    """Scoring `responses` of each prompt: what fits shares a row, the longest one sets its length."""
    tokens = _power_of_two(row_length_for(min(max_length or DEFAULT_LENGTH, config.max_position)))
    together = max(1, min(responses, (tokens - assume.prompt_tokens) // assume.response_tokens))
    return PassStage("score", config, dtype, output, tokens, 4, together, assume)


def sample_stages(config: DecoderConfig, sampling: SamplingConfig, dtype: str, data: DataOptions | None,
                  assume: Assumptions) -> tuple[SampleStage, SampleStage]:
    """Prefill and decode; prompts as long as the data's limit allows."""
    limit = (data.max_prompt_length if data else None) or longest(data, config) // 2
    capacity = sampling.prompt_length or rounded_up(min(limit, config.max_position - sampling.max_new_tokens))
    prefill = SampleStage("prefill", config, sampling, dtype, capacity, assume)
    return prefill, dataclasses.replace(prefill, name="decode")
