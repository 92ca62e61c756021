"""Options of the verb `data`: sources, and how they become one mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from rlhf_jax.config.data import GradedOptions, PairRule, PromptsFrom, RowOptions, Sources, as_sources
from rlhf_jax.fields import COUNT, POSITIVE, SEED, Options, at_least, between, only_if, only_with

_OF_PAIRS = {"pair_rule": "all", "pair_score": "data", "min_gap": 0.0, "max_pairs_per_prompt": None}
"""What a source's keys about pairs are without effect."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """A source of a mix.

    Attributes:
      name: a file, a folder, a glob, `tfds:name` or a hub name.
      split: which split to read, for a source that has several.
      converter: name of a row converter, or "module:function".
      converter_options: of that converter, other values than those of its row in the table.
      columns: a column's name here: its name in the rows.
      prompts_from: of rows that hold whole conversations, what is the prompt (kind: prompt).
      drop_system: leave out system and developer messages; the funnel counts the rows that had one.
      weight: share of the mix relative to the other sources'.
      max_rows: valid rows that are read, from the start; rows behind them are not read.
      pair_rule: which pairs graded rows make.
      pair_score: the number that they are graded by: data, or data/NAME of rows with several grades.
      min_gap: the smallest score gap of such a pair.
      max_pairs_per_prompt: so many pairs of one prompt, those with the largest margins.
      max_bad_rows: budget of unusable rows, a number (int) or a share (float).
      published: pairs or rows that a publication counts after its own rules; stated beside ours, not enforced.
    """

    name: str
    split: str | None = None
    converter: str | None = None
    converter_options: Annotated[Mapping[str, Any], only_with("converter")] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompts_from: PromptsFrom | None = None
    drop_system: bool = False
    weight: Annotated[float, POSITIVE] = 1.0
    max_rows: Annotated[int | None, COUNT] = None
    pair_rule: PairRule = "all"
    pair_score: str = "data"
    min_gap: Annotated[float, at_least(0)] = 0.0
    max_pairs_per_prompt: Annotated[int | None, COUNT] = None
    max_bad_rows: Annotated[int | float, at_least(0)] = 0.02
    published: Annotated[int | None, COUNT] = None

    @property
    def rows(self) -> RowOptions:
        """Which rows are read."""
        return RowOptions(dataset_name=self.name, split=self.split, converter=self.converter,
                          converter_options=self.converter_options, columns=self.columns,
                          prompts_from=self.prompts_from, drop_system=self.drop_system, max_samples=self.max_rows,
                          max_bad_rows=self.max_bad_rows, allow_empty_prompt=False)

    @property
    def graded(self) -> GradedOptions:
        """Which pairs graded rows make."""
        return GradedOptions(pair_rule=self.pair_rule, pair_score=self.pair_score, min_gap=self.min_gap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCommand(Options):
    """Mixing data sets: convert, de-duplicate, decontaminate, cap, mix, shuffle and split, with every loss counted.

    Attributes:
      output_dir: where train-*.jsonl, valid-*.jsonl, test-*.jsonl, report.html, statistics.md and decontaminated.jsonl
        go.
      sources: what is mixed; of equal rows the first is kept.
      kind: layout of the rows.
      contradictions: what becomes of pairs that another row, or their own score, labels the other way round.
      drop_duplicate_prompts: keep one row of each prompt.
      near_duplicates: rows are left out whose users share this much of their three-word runs (Jaccard) with those of an
        earlier prompt that begins otherwise; null to keep them. Needs the extra `data`.
      benchmarks: files of questions; rows whose prompt shares 13 words in a row with one of them are left out.
      size: rows of the mix, in the proportion of the sources' weights; null for all rows.
      valid_percent: percentage of prompts that go to valid-*.jsonl, by their hash.
      test_percent: percentage of prompts that go to test-*.jsonl.
      batches: so many disjoint batches of training prompts, for rounds: batch-1-*.jsonl ... in place of train-*.jsonl.
      batch_size: rows of each.
      tokenizer: folder or hub name of the tokenizer that lengths are counted by; null counts words.
      shard_size: rows of one file.
      seed: of the order and of what is taken for the mix.
    """

    output_dir: str
    sources: tuple[SourceOptions, ...]
    kind: Literal["preference", "sft", "prompt", "unpaired"] = "preference"
    contradictions: Annotated[Literal["drop", "keep"], only_if(kind="preference")] = "drop"
    drop_duplicate_prompts: bool = False
    near_duplicates: Annotated[float | None, between(0.5, 1)] = 0.8
    benchmarks: Sources = ()
    size: Annotated[int | None, COUNT] = None
    valid_percent: Annotated[int, between(0, 50)] = 0
    test_percent: Annotated[int, between(0, 50)] = 0
    batches: Annotated[int, at_least(0)] = 0
    batch_size: Annotated[int | None, COUNT, only_with("batches")] = None
    tokenizer: str | None = None
    shard_size: Annotated[int, COUNT] = 100_000
    seed: Annotated[int, SEED] = 0

    @property
    def benchmark_files(self) -> tuple[str, ...]:
        """`benchmarks` as a tuple."""
        return as_sources(self.benchmarks)

    def conflicts(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; give at least one, as a name or as an object {name: ...}")
        for number, source in enumerate(self.sources):
            self._check_source(source, f"sources[{number}]")
        if self.batches and self.batch_size is None:
            raise ValueError(f"batches = {self.batches} needs batch_size, the rows of each")
        if self.valid_percent + self.test_percent > 90:
            raise ValueError(f"valid_percent = {self.valid_percent} and test_percent = {self.test_percent} leave less "
                             "than a tenth to train on; lower them")

    def _check_source(self, source: SourceOptions, where: str) -> None:
        if self.size is None and source.weight != 1.0:
            raise ValueError(f"{where}.weight = {source.weight:g} has no effect without size, the rows of the mix; "
                             "give both, or leave it out")
        for name, without in _OF_PAIRS.items():
            if self.kind != "preference" and getattr(source, name) != without:
                raise ValueError(f"{where}.{name} has no effect with kind = {self.kind!r}; leave it out")
        if self.kind != "prompt" and source.prompts_from is not None:
            raise ValueError(f"{where}.prompts_from has no effect with kind = {self.kind!r}; leave it out")
