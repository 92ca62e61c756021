"""Options of data: which rows, and how they become tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from rlhf_jax.fields import COUNT, Flat, Options, at_least, only_with

Overlong = Literal["error", "drop", "truncate_prompt_left", "truncate_response"]
PairRule = Literal["all", "best_worst", "best_random"]
PromptsFrom = Literal["first_user", "before_last_assistant"]
Sources = str | tuple[str, ...]


def as_sources(dataset_name: Sources) -> tuple[str, ...]:
    """One data set or several, as a tuple."""
    return (dataset_name,) if isinstance(dataset_name, str) else tuple(dataset_name)


@dataclasses.dataclass(frozen=True)
class RowOptions(Options):
    """Which rows.

    Attributes:
      dataset_name: files, folders, globs, `tfds:name` or hub names; one, or several read in this order.
      split: which split to read, for sources that have several.
      converter: name of a row converter (`rlhf_jax.data.converters`), or "module:function" from a foreign row to one
        row or a list of rows.
      converter_options: options of the converter, where you want other values than the table's: {min_ratio: 3}.
      columns: a column's name here: its name in the rows, as {prompt: question, chosen: best}; before the converter.
      prompts_from: rows hold whole conversations, of which the prompt is what ends with the first user turn, or what
        stands before the last assistant turn.
      drop_system: leave out system and developer messages, those in columns of their own too; the funnel counts the
        rows that had one.
      drop_duplicate_prompts: keep the first row of each prompt (the same text up to white space), before max_samples.
      max_samples: valid rows used, from the start, before those too long are left out; None for all. Rows behind them
        are not read.
      max_bad_rows: budget of unusable rows, a number (int) or a share (float); they go to a quarantine file.
      allow_empty_prompt: an empty prompt means the BOS token alone.
    """

    dataset_name: Sources = ()
    split: str | None = None
    converter: str | None = None
    converter_options: Annotated[Mapping[str, Any], only_with("converter")] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompts_from: PromptsFrom | None = None
    drop_system: bool = False
    drop_duplicate_prompts: bool = False
    max_samples: Annotated[int | None, COUNT] = None
    max_bad_rows: Annotated[int | float, at_least(0)] = 0.02
    allow_empty_prompt: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """`dataset_name` as a tuple."""
        return as_sources(self.dataset_name)

    def held_out(self, dataset_name: Sources, split: str | None) -> RowOptions:
        """Other rows, all of them, of a split of their own, which are read as these are."""
        return dataclasses.replace(self, dataset_name=dataset_name, split=split, max_samples=None)


@dataclasses.dataclass(frozen=True)
class RenderOptions(Options):
    """How rows become tokens.

    Attributes:
      max_length: tokens of prompt and response together; None for no limit.
      max_prompt_length: tokens of the prompt; None for no limit.
      overlong: what becomes of longer rows.
      chat_template_path: replaces the tokenizer's template: a name, a file or a folder.
      text_as_chat: string prompts become user messages instead of plain text.
      system_prompt: system message of conversations that have none of their own; string prompts become user messages.
    """

    max_length: Annotated[int | None, COUNT] = 1024
    max_prompt_length: Annotated[int | None, COUNT] = None
    overlong: Overlong = "drop"
    chat_template_path: str | None = None
    text_as_chat: bool = False
    system_prompt: str | None = None


@dataclasses.dataclass(frozen=True)
class GradedOptions(Options):
    """Which pairs graded rows make.

    Attributes:
      pair_rule: which pairs graded rows make as preferences.
      pair_score: the number that they are graded by: data, or data/NAME of rows with several grades; of scored samples
        the name of a scorer.
      min_gap: the smallest score gap of such a pair.
    """

    pair_rule: PairRule = "all"
    pair_score: str = "data"
    min_gap: Annotated[float, at_least(0)] = 0.0


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Rows for a model, as tokens.

    Attributes:
      rows: which rows.
      render: how they become tokens.
      benchmarks: files of questions; how many prompts share 13 words in a row with one of them is said when the rows
        are read. They stay in.
    """

    rows: Flat[RowOptions] = RowOptions()
    render: Flat[RenderOptions] = RenderOptions()
    benchmarks: Sources = ()


@dataclasses.dataclass(frozen=True)
class PreferenceData(Options):
    """Preference rows for a model, as tokens.

    Attributes:
      rows: which rows.
      graded: which pairs graded rows make.
      render: how they become tokens.
      benchmarks: files of questions; how many prompts share 13 words in a row with one of them is said when the rows
        are read. They stay in.
    """

    rows: Flat[RowOptions] = RowOptions()
    graded: Flat[GradedOptions] = GradedOptions()
    render: Flat[RenderOptions] = RenderOptions()
    benchmarks: Sources = ()
