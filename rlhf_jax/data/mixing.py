"""Rows of several sources as one mix: what is left out and why, in which order, and on which side of a split.

Everything follows from the rows themselves and a seed. Nothing depends on when or in how many goes it was done.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from rlhf_jax.data.example import LABEL, Example
from rlhf_jax.data.prompt_text import BUCKETS, bucket, normalised, opening, plain_text

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A row of a mix: an example with one pair at most, and the number of its source."""

    source: int
    example: Example

    @cached_property
    def prompt(self) -> str:
        """The prompt as normalised text."""
        return normalised(plain_text(self.example.prompt))

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The responses as normalised text; of a pair chosen and rejected."""
        return tuple(normalised(plain_text(response)) for response in self.example.responses)

    @cached_property
    def opening(self) -> str:
        """What decides the side of a split, see `prompt_text.opening`."""
        return opening(self.example)

    @property
    def label(self) -> float | None:
        """Of unpaired data: 1 for a desirable response, 0 for another."""
        return self.example.scores[0].get(LABEL) if self.example.scores else None

    @property
    def margin(self) -> float | None:
        return self.example.margins[0] if self.example.margins else None

    def order(self, seed: int) -> bytes:
        """What entries are shuffled by."""
        text = "\0".join((str(seed), self.prompt, *self.answers, str(self.label)))
        return hashlib.sha1(text.encode()).digest()


def single_pairs(example: Example) -> Iterator[Example]:
    """An example per pair; one without pairs as it is."""
    if not example.pairs:
        yield example
    for number, pair in enumerate(example.pairs):
        yield dataclasses.replace(
            example, responses=tuple(example.responses[i] for i in pair), pairs=((0, 1),),
            scores=tuple(example.scores[i] for i in pair) if example.scores else (),
            margins=(example.margins[number],) if example.margins else ())


def repeated_rows(entries: Sequence[Entry]) -> set[int]:
    """Places of the entries that say what an earlier one says, white space and case aside."""
    seen: set[tuple[str, tuple[str, ...], float | None]] = set()
    repeated = set()
    for place, entry in enumerate(entries):
        said = (entry.prompt, entry.answers, entry.label)
        if said in seen:
            repeated.add(place)
        seen.add(said)
    return repeated


def repeated_prompts(entries: Sequence[Entry]) -> set[int]:
    """Places of all but the first entry of each prompt; texts without a prompt stay."""
    first: dict[str, int] = {}
    return {place for place, entry in enumerate(entries)
            if entry.prompt and first.setdefault(entry.prompt, place) != place}


def contradicted(entries: Sequence[Entry]) -> set[int]:
    """Places of the pairs that another entry labels the other way round, or whose own chosen answer scores lower."""
    pairs = {(entry.prompt, *entry.answers) for entry in entries}
    return {place for place, entry in enumerate(entries)
            if (entry.prompt, *reversed(entry.answers)) in pairs or (entry.margin is not None and entry.margin < 0)}


def beyond_cap(entries: Sequence[Entry], caps: Sequence[int | None]) -> set[int]:
    """Places of the pairs that are more than the source's cap of one prompt; those with the largest margins stay."""
    by_prompt: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        by_prompt[entry.source, entry.prompt].append(place)
    beyond: set[int] = set()
    for (source, _), places in by_prompt.items():
        beyond.update(sorted(places, key=lambda place: -(entries[place].margin or 0.0))[caps[source]:]
                      if caps[source] is not None else ())
    return beyond


def quotas(available: Sequence[int], weights: Sequence[float], size: int) -> list[int]:
    """How many of `size` rows each source gives, in proportion to the weights, by largest remainders.

    Raises:
      ValueError: a source has fewer rows than its share; the message says the largest size there is.
    """
    exact = [size * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] - exact[i])
    for source in by_remainder[: size - sum(shares)]:
        shares[source] += 1
    if short := [i for i, share in enumerate(shares) if share > available[i]]:
        largest = int(min(have * sum(weights) / weight for have, weight in zip(available, weights, strict=True)))
        raise ValueError(f"size = {size:,} asks for {shares[short[0]]:,} rows of sources[{short[0]}], which has "
                         f"{available[short[0]]:,}; with these weights size is at most about {largest:,}. Lower size "
                         "or that source's weight")
    return shares


def beyond_quotas(entries: Sequence[Entry], weights: Sequence[float], size: int, seed: int) -> set[int]:
    """Places of the entries that a mix of `size` rows does not take: those that come last in the order of the seed."""
    by_source: dict[int, list[int]] = {source: [] for source in range(len(weights))}
    for place in sorted(range(len(entries)), key=lambda i: entries[i].order(seed)):
        by_source[entries[place].source].append(place)
    shares = quotas([len(places) for places in by_source.values()], weights, size)
    return {place for source, places in by_source.items() for place in places[shares[source]:]}


def shuffled(entries: Iterable[Entry], seed: int) -> list[Entry]:
    """The entries in an order that follows from what they say and the seed alone."""
    return sorted(entries, key=lambda entry: entry.order(seed))


def side(entry: Entry, valid_percent: int, test_percent: int) -> str:
    """The side of the split: by the hash of the opening, so that a prompt is on one side in every source."""
    number = bucket(entry.opening)
    if number >= BUCKETS - test_percent:
        return TEST
    return VALID if number >= BUCKETS - test_percent - valid_percent else TRAIN


def disjoint_batches(entries: Sequence[Entry], count: int, size: int) -> tuple[list[list[Entry]], list[Entry]]:
    """`count` batches of `size` entries of which no two share an opening, and what is left.

    All entries of an opening go into the first batch that has room for them, so that a batch may end a few rows short;
    openings come in order of their first entry.

    Raises:
      ValueError: there are not enough entries.
    """
    sizes = Counter(entry.opening for entry in entries)
    batch_of: dict[str, int] = {}
    filled = [0] * count
    for entry in entries:
        if entry.opening not in batch_of:
            room = (i for i in range(count) if filled[i] + sizes[entry.opening] <= size)
            batch_of[entry.opening] = number = next(room, count)
            if number < count:
                filled[number] += sizes[entry.opening]
    batches: list[list[Entry]] = [[] for _ in range(count + 1)]
    for entry in entries:
        batches[batch_of[entry.opening]].append(entry)
    if len(entries) < count * size:
        raise ValueError(f"{count} batches of {size:,} rows need {count * size:,}, and there are {len(entries):,} rows "
                         "to train on. Lower batches or batch_size")
    if empty := [i + 1 for i in range(count) if not batches[i]]:
        raise ValueError(f"batch {empty[0]} of {size:,} rows gets none: no prompt has so few. Raise batch_size")
    return batches[:count], batches[count]
