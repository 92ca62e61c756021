"""The steps of the verb `data`: what is left out of a mix, step by step, each loss in the funnel of its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.config.mixes import DataCommand
from rlhf_jax.data.decontaminate import Question, benchmark_index, contamination
from rlhf_jax.data.duplicates import near_duplicates
from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.mixing import (
    TRAIN,
    Entry,
    beyond_cap,
    beyond_quotas,
    contradicted,
    disjoint_batches,
    repeated_prompts,
    repeated_rows,
    shuffled,
    side,
    single_pairs,
)
from rlhf_jax.data.prompt_text import user_turns

Tick = Callable[[int, int], None]


@dataclasses.dataclass
class Mixture:
    """The entries of a mix while they are sifted.

    Attributes:
      funnels: of each source, in their order.
      found_in: a row per prompt that a benchmark asks too, with the benchmark's row and how many rows it cost.
    """

    entries: list[Entry]
    funnels: list[Funnel]
    found_in: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def funnel(self) -> Funnel:
        """The sum over the sources."""
        total = Funnel()
        for funnel in self.funnels:
            total = total.merged(funnel)
        return total

    def leave_out(self, places: set[int], reason: str) -> None:
        """Takes the entries at these places out, and counts them."""
        for place in places:
            self.funnels[self.entries[place].source].dropped[reason] += 1
        self.entries = [entry for place, entry in enumerate(self.entries) if place not in places]

    def note(self, places: set[int], note: str) -> None:
        """Counts what is kept."""
        for place in places:
            self.funnels[self.entries[place].source].notes[note] += 1


def entries_of(sources: Sequence[tuple[Sequence[Example], Funnel]]) -> Mixture:
    """All examples of the sources, graded rows as single pairs, which the funnel then counts as rows."""
    mixture = Mixture([], [funnel for _, funnel in sources])
    for number, (examples, funnel) in enumerate(sources):
        for example in examples:
            singles = [Entry(number, single) for single in single_pairs(example)]
            funnel.read += len(singles) - 1
            funnel.notes.update({"more_pairs_of_a_row": len(singles) - 1} if len(singles) > 1 else {})
            mixture.entries += singles
    return mixture


def sift(mixture: Mixture, options: DataCommand, tick: Tick = lambda done, total: None) -> None:
    """Leaves out what the options say, from what is cheap to find to what is not, and orders what stays.

    Raises:
      SourceError: a benchmark is missing or holds no questions.
      ValueError: nothing is left, or less than the mix asks for.
    """
    mixture.leave_out(repeated_rows(mixture.entries), "repeated_row")
    if options.drop_duplicate_prompts:
        mixture.leave_out(repeated_prompts(mixture.entries), "duplicate_prompt")
    if options.kind == "preference":
        against = contradicted(mixture.entries)
        if options.contradictions == "drop":
            mixture.leave_out(against, "contradicting_pair")
        else:
            mixture.note(against, "contradicting_pair")
    if options.near_duplicates is not None:
        mixture.leave_out(_near_duplicates(mixture.entries, options.near_duplicates, tick), "near_duplicate_prompt")
    if options.benchmark_files:
        _decontaminate(mixture, options)
    caps = [source.max_pairs_per_prompt for source in options.sources]
    mixture.leave_out(beyond_cap(mixture.entries, caps), "beyond_max_pairs")
    if options.size is not None:
        weights = [source.weight for source in options.sources]
        mixture.leave_out(beyond_quotas(mixture.entries, weights, options.size, options.seed), "beyond_size")
    mixture.entries = shuffled(mixture.entries, options.seed)
    if not mixture.entries:
        raise ValueError(f"no row is left:\n{mixture.funnel}")


def _near_duplicates(entries: Sequence[Entry], threshold: float, tick: Tick) -> set[int]:
    """Places of the entries whose prompt nearly repeats an earlier one that differs from it."""
    prompts = list(dict.fromkeys(entry.prompt for entry in entries if entry.prompt))
    found = near_duplicates(prompts, threshold, lambda done: tick(done, len(prompts)))
    repeats = {prompts[place] for place in found}
    return {place for place, entry in enumerate(entries) if entry.prompt in repeats}


def _decontaminate(mixture: Mixture, options: DataCommand) -> None:
    index = benchmark_index(options.benchmark_files)
    found: dict[tuple[int, str], dict[str, Any] | None] = {}
    places = set()
    for place, entry in enumerate(mixture.entries):
        prompt = (entry.source, entry.prompt)
        if prompt not in found:
            found[prompt] = _found_in(entry, options, contamination(user_turns(entry.example.prompt), index))
        if (row := found[prompt]) is not None:
            row["rows"] += 1
            places.add(place)
    mixture.found_in = [row for row in found.values() if row is not None]
    mixture.leave_out(places, "benchmark_prompt")


def _found_in(entry: Entry, options: DataCommand, found: tuple[str, Question] | None) -> dict[str, Any] | None:
    """What is kept about a prompt that a benchmark asks too; its rows are still to be counted."""
    if found is None:
        return None
    shared, question = found
    where = entry.example.origin
    return {"source": options.sources[entry.source].name, "row_number": where.number if where else None, "rows": 0,
            "prompt_id": entry.example.prompt_id, "prompt": entry.example.prompt, "shared": shared,
            "benchmark": question.benchmark, "benchmark_row": question.row_number, "question": question.text}


def sides(mixture: Mixture, options: DataCommand) -> dict[str, list[Entry]]:
    """Name of each side or batch -> its entries, in order; those that no batch takes are counted.

    Raises:
      ValueError: nothing is left to train on, or less than the batches ask for.
    """
    split: dict[str, list[Entry]] = {TRAIN: []}
    for entry in mixture.entries:
        split.setdefault(side(entry, options.valid_percent, options.test_percent), []).append(entry)
    if not split[TRAIN]:
        raise ValueError(f"all {len(mixture.entries)} rows fall on the sides that are not trained on; lower "
                         "valid_percent and test_percent, or give more data")
    if options.batches and options.batch_size is not None:
        batches, left = disjoint_batches(split.pop(TRAIN), options.batches, options.batch_size)
        split = {f"batch-{number}": batch for number, batch in enumerate(batches, start=1)} | split
        gone = set(map(id, left))
        mixture.leave_out({place for place, entry in enumerate(mixture.entries) if id(entry) in gone}, "beyond_batches")
    return split
