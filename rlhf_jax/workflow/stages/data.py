"""A mix of data sets as files: sources converted one by one, sifted, ordered, split, and described."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config.mixes import DataCommand
from rlhf_jax.data.converters import find_converter
from rlhf_jax.data.duplicates import check_installed
from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.jsonl import own_rows, write_jsonl_atomic
from rlhf_jax.data.mix_rows import mix_row, read_stored, stored_example
from rlhf_jax.data.mixing import Entries
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.prompt_map import prompt_map
from rlhf_jax.data.sources import read_rows
from rlhf_jax.data.statistics import (
    Lengths,
    count_words,
    shared_prompts,
    source_statistics,
    statistics_table,
    text_lengths,
    token_counter,
)
from rlhf_jax.data.tokenizer import load_tokenizer
from rlhf_jax.models import find_model
from rlhf_jax.parallel import on_main
from rlhf_jax.plugins import plugin_keys
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, check_sources, read_data, sources_key
from rlhf_jax.workflow.mixture import Mixture, divided, entries_of, sift
from rlhf_jax.workflow.products import STATISTICS
from rlhf_jax.workflow.stage import Stage, hash_path, write_json_atomic

CONVERTED = ".converted"
"""Folder of the sources that are converted already; what a killed run need not read again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataStage(Stage):
    """A mix, its statistics, and the rows that benchmarks ask too."""

    options: DataCommand

    def inputs(self) -> dict[str, Any]:
        options = dataclasses.replace(self.options, output_dir="")
        tokenizer = options.tokenizer and find_model(options.tokenizer, weights=False)
        return {
            "options": options, "functions": plugin_keys(*(source.converter for source in options.sources)),
            "files": [sources_key((source.name,), source.split) for source in options.sources],
            "benchmarks": sources_key(options.benchmark_files),
            "tokenizer": [hash_path(path) for path in sorted(tokenizer.glob("*token*"))] if tokenizer else None}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        return on_main(lambda: self._make(folder, context))

    def preview(self, context: Context) -> Preview:
        mixture = self._mixture(None, context)
        divided(mixture, self.options)
        return Preview(funnel=mixture.funnel)

    def _make(self, folder: Path, context: Context) -> dict[str, Any]:
        mixture = self._mixture(folder / CONVERTED, context)
        split = divided(mixture, self.options)
        context.run.announce(str(mixture.funnel))
        files = {name: self._write(folder, name, entries) for name, entries in split.items()}
        if self.options.benchmark_files:
            write_jsonl_atomic(folder / "decontaminated.jsonl", mixture.found_in)
        self._describe(folder, mixture.entries, files)
        shutil.rmtree(folder / CONVERTED)
        funnels = [{"name": source.name, **funnel.to_json()}
                   for source, funnel in zip(self.options.sources, mixture.funnels, strict=True)]
        return {"rows": files, "funnel": mixture.funnel.to_json(), "sources": funnels}

    def _mixture(self, store: Path | None, context: Context) -> Mixture:
        """What is left of all sources. store: folder of what is converted already; None to keep nothing."""
        if self.options.near_duplicates is not None:  # what is missing is said before anything is read
            check_installed()
        for source in self.options.sources:
            check_sources(source.rows)
            if source.converter is not None:
                find_converter(source.converter, source.converter_options)
        for name in self.options.benchmark_files:
            next(iter(read_rows(name)))
        mixture = entries_of([self._source(number, store, context) for number in range(len(self.options.sources))],
                             self.options.seed)
        sift(mixture, self.options, context.progress)
        return mixture

    def _source(self, number: int, store: Path | None, context: Context) -> tuple[Sequence[Example], Funnel]:
        """The examples of a source, read now or by a run that was killed later."""
        source = self.options.sources[number]
        rows, done = ((store / f"{number:04d}{ending}" for ending in (".jsonl", ".json")) if store else (None, None))
        if rows is not None and done is not None and done.is_file() and rows.is_file():
            return OnDisk(read_stored(row) for _, row in own_rows(rows)), Funnel.from_json(json.loads(done.read_text()))
        examples, funnel = read_data(source.rows, self.options.kind, context.quarantine(f"{number:04d}"), source.graded)
        if rows is not None and done is not None:
            write_jsonl_atomic(rows, map(stored_example, examples))
            write_json_atomic(done, funnel.to_json())
        return examples, funnel

    def _write(self, folder: Path, name: str, entries: Entries) -> int:
        """Writes the shards of a side; returns its rows."""
        size = self.options.shard_size
        for shard, start in enumerate(range(0, len(entries), size)):
            some = entries.at(np.arange(start, min(start + size, len(entries))))
            write_jsonl_atomic(folder / f"{name}-{shard:05d}.jsonl", (
                mix_row(example, self.options.sources[number].name)
                for example, number in zip(some, some.rows["source"], strict=True)))
        return len(entries)

    def _describe(self, folder: Path, entries: Entries, files: Mapping[str, int]) -> None:
        """Writes the statistics, as numbers and as a table."""
        tokenizer = self.options.tokenizer
        count: Lengths = count_words if tokenizer is None else token_counter(load_tokenizer(tokenizer))
        rows, lengths, table = entries.rows, text_lengths(entries, count), []
        for number, source in enumerate(self.options.sources):
            mine = rows["source"] == number
            table.append({"source": source.name, "published": source.published,
                          **source_statistics(rows[mine], lengths[mine])})
        table.append({"source": "sum", **source_statistics(rows, lengths)})
        unit = "words" if tokenizer is None else "tokens"
        shared = shared_prompts(rows, len(self.options.sources))
        write_json_atomic(folder / STATISTICS, {"unit": unit, "rows": files, "sources": table, "shared": shared,
                                                "map": prompt_map(entries, len(self.options.sources))})
        (folder / "statistics.md").write_text(statistics_table(table, unit), encoding="utf-8")
