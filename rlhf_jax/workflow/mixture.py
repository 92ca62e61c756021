"""The steps of the verb `data`: what is left out of a mix, step by step, each loss in the funnel of its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.config.mixes import DataCommand
from rlhf_jax.data.decontaminate import Question, benchmark_index, contamination
from rlhf_jax.data.duplicates import near_duplicates
from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.mixing import (
    TEST,
    TRAIN,
    VALID,
    Entries,
    Prompts,
    beyond_cap,
    beyond_quotas,
    contradicted,
    disjoint_batches,
    first_of_prompts,
    repeated_prompts,
    repeated_rows,
    shuffled,
    sides,
)
from rlhf_jax.data.prompt_text import asked, user_turns

Tick = Callable[[int, int], None]


@dataclasses.dataclass
class Mixture:
    """The entries of a mix while they are sifted.

    Attributes:
      funnels: of each source, in their order.
      found_in: a row per prompt that a benchmark asks too, with the benchmark's row and how many rows it cost.
    """

    entries: Entries
    funnels: list[Funnel]
    found_in: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def funnel(self) -> Funnel:
        """The sum over the sources."""
        total = Funnel()
        for funnel in self.funnels:
            total = total.merged(funnel)
        return total

    def leave_out(self, some: np.ndarray, reason: str) -> None:
        """Takes the entries out where the mask is True, and counts them."""
        for number, count in self._by_source(some):
            self.funnels[number].dropped[reason] += count
        self.entries = self.entries.at(~some)

    def note(self, some: np.ndarray, note: str) -> None:
        """Counts what is kept."""
        for number, count in self._by_source(some):
            self.funnels[number].notes[note] += count

    def _by_source(self, some: np.ndarray) -> list[tuple[int, int]]:
        """(source, how many of its entries the mask marks), of those with any."""
        numbers, counts = np.unique(self.entries.rows["source"][some], return_counts=True)
        return list(zip(numbers.tolist(), counts.tolist(), strict=True))


def entries_of(sources: Sequence[tuple[Sequence[Example], Funnel]], seed: int) -> Mixture:
    """All examples of the sources, graded rows as single pairs, which the funnel then counts as rows."""
    mixture = Mixture(Entries.of([examples for examples, _ in sources], seed), [funnel for _, funnel in sources])
    counts = np.bincount(mixture.entries.rows["source"], minlength=len(sources)).tolist()
    for (examples, funnel), count in zip(sources, counts, strict=True):
        if more := count - len(examples):
            funnel.read += more
            funnel.notes["more_pairs_of_a_row"] += more
    return mixture


def sift(mixture: Mixture, options: DataCommand, tick: Tick = lambda done, total: None) -> None:
    """Leaves out what the options say, from what is cheap to find to what is not, and orders what stays.

    Raises:
      SourceError: a benchmark is missing or holds no questions.
      ValueError: nothing is left, or less than the mix asks for.
    """
    mixture.leave_out(repeated_rows(mixture.entries.rows), "repeated_row")
    if options.drop_duplicate_prompts:
        mixture.leave_out(repeated_prompts(mixture.entries.rows), "duplicate_prompt")
    if options.kind == "preference":
        against = contradicted(mixture.entries.rows)
        if options.contradictions == "drop":
            mixture.leave_out(against, "contradicting_pair")
        else:
            mixture.note(against, "contradicting_pair")
    if options.near_duplicates is not None:
        mixture.leave_out(_near_duplicates(mixture.entries, options.near_duplicates, tick), "near_duplicate_prompt")
    if options.benchmark_files:
        _decontaminate(mixture, options)
    caps = [source.max_pairs_per_prompt for source in options.sources]
    mixture.leave_out(beyond_cap(mixture.entries.rows, caps), "beyond_max_pairs")
    if options.size is not None:
        weights = [source.weight for source in options.sources]
        mixture.leave_out(beyond_quotas(mixture.entries.rows, weights, options.size), "beyond_size")
    mixture.entries = mixture.entries.at(shuffled(mixture.entries.rows))
    if not mixture.entries:
        raise ValueError(f"no row is left:\n{mixture.funnel}")


def _near_duplicates(entries: Entries, threshold: float, tick: Tick) -> np.ndarray:
    """[N] whether users say nearly what they say in an earlier prompt that begins otherwise."""
    first = np.sort(first_of_prompts(entries.rows))
    found = near_duplicates(Prompts(entries, first), threshold, entries.rows["opening"][first],
                            lambda done: tick(done, len(first)))
    prompts = entries.rows["prompt"]
    return np.isin(prompts, prompts[first[list(found)]])


def _decontaminate(mixture: Mixture, options: DataCommand) -> None:
    index, entries = benchmark_index(options.benchmark_files), mixture.entries
    _, first, same, counts = np.unique(entries.rows[["source", "asked"]], return_index=True, return_inverse=True,
                                       return_counts=True)
    known = np.zeros(len(first), bool)
    for number in np.argsort(first).tolist():
        example = entries[first[number]]
        if (found := contamination(user_turns(asked(example)), index)) is not None:
            known[number] = True
            source = options.sources[entries.rows["source"][first[number]]].name
            mixture.found_in.append(_found_in(example, source, int(counts[number]), *found))
    mixture.leave_out(known[same], "benchmark_prompt")


def _found_in(example: Example, source: str, rows: int, shared: str, question: Question) -> dict[str, Any]:
    """What is kept about a prompt that a benchmark asks too. rows: of the source that ask the same."""
    return {"source": source, "row_number": example.origin.number if example.origin else None, "rows": rows,
            "prompt_id": example.prompt_id, "prompt": example.prompt, "shared": shared,
            "benchmark": question.benchmark, "benchmark_row": question.row_number, "question": question.text}


def divided(mixture: Mixture, options: DataCommand) -> dict[str, Entries]:
    """Name of each side or batch -> its entries, in order; those that no batch takes are counted.

    Raises:
      ValueError: nothing is left to train on, or less than the batches ask for.
    """
    on = sides(mixture.entries.rows, options.valid_percent, options.test_percent)
    if TRAIN not in on:
        raise ValueError(f"all {len(mixture.entries)} rows fall on the sides that are not trained on; lower "
                         "valid_percent and test_percent, or give more data")
    split = {name: mixture.entries.at(on == name) for name in (TRAIN, VALID, TEST) if name in on}
    if options.batches and options.batch_size is not None:
        train = split.pop(TRAIN)
        batch = disjoint_batches(train.rows, options.batches, options.batch_size)
        split = {f"batch-{number + 1}": train.at(batch == number) for number in range(options.batches)} | split
        gone = np.zeros(len(on), bool)
        gone[on == TRAIN] = batch == options.batches
        mixture.leave_out(gone, "beyond_batches")
    return split
