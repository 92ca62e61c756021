"""Rows of several sources as one mix: what is left out and why, in which order, and on which side of a split.

Everything follows from the rows themselves and a seed. Nothing depends on when or in how many goes it was done. What is
held of a row are hashes, by which rows are compared; what it says is read from where its source lies when it is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_jax.data.context_columns import template_variables
from rlhf_jax.data.example import LABEL, Example
from rlhf_jax.data.on_disk import hash64
from rlhf_jax.data.prompt_text import BUCKETS, asked, bucket, compared, normalised, opening, user_turns

TRAIN, VALID, TEST = "train", "valid", "test"
ROW = np.dtype([("source", np.int32), ("place", np.int64), ("pair", np.int32), ("prompt", np.uint64),
                ("asked", np.uint64), ("said", np.uint64), ("labelled", np.uint64), ("opposite", np.uint64),
                ("opening", np.uint64), ("bucket", np.uint8), ("order", np.uint64), ("margin", np.float64)])
"""What a mix holds of a row: the number of its source, the place of its example there, and which of its pairs it is
(0 where there is none); hashes of its prompt (0 where there is none), of what its users ask (see `prompt_text.asked`),
of all that it says and shows a model, of its prompt and answers in their order and in the opposite one, and of what
decides the side of a split (see `prompt_text.opening`); that text's bucket; what rows are shuffled by; and the margin
(NaN where there is none)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entries(Sequence[Example]):
    """Rows of a mix: an example each, with one pair at most, read anew at each access.

    Attributes:
      sources: the examples of each source, on disk where they are many. rows: [N] of ROW.
    """

    sources: Sequence[Sequence[Example]]
    rows: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Sequence[Example]], seed: int = 0) -> Entries:
        """All examples of the sources, those with several pairs as several rows. seed: of the order."""
        found = (_row(number, place, pair, single, seed) for number, examples in enumerate(sources)
                 for place, example in enumerate(examples) for pair, single in enumerate(single_pairs(example)))
        return cls(sources, np.fromiter(found, ROW))

    def at(self, some: np.ndarray) -> Entries:
        """Those at these places ([n] int), or where a mask [N] is True."""
        return Entries(self.sources, self.rows[some])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]
        row = self.rows[place]
        example = self.sources[row["source"]][int(row["place"])]
        return single_pair(example, row["pair"]) if example.pairs else example


class Prompts(Sequence[str]):
    """What users say in the prompts of the entries at some places ([n] int), normalised, each read when asked for."""

    def __init__(self, entries: Entries, places: np.ndarray):
        self._entries, self._places = entries, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        return normalised("\n\n".join(user_turns(self._entries[self._places[place]].prompt)))


def single_pair(example: Example, number: int) -> Example:
    """The example with this one of its pairs alone."""
    pair = example.pairs[number]
    return dataclasses.replace(
        example, responses=tuple(example.responses[i] for i in pair), pairs=((0, 1),),
        scores=tuple(example.scores[i] for i in pair) if example.scores else (),
        margins=(example.margins[number],) if example.margins else ())


def single_pairs(example: Example) -> Iterator[Example]:
    """An example per pair; one without pairs as it is."""
    if not example.pairs:
        yield example
    for number in range(len(example.pairs)):
        yield single_pair(example, number)


def _row(source: int, place: int, pair: int, example: Example, seed: int) -> tuple[int | float, ...]:
    prompt, answers = (compared(example.prompt, "user"),
                       [compared(response, "assistant") for response in example.responses])
    label = str(example.scores[0].get(LABEL) if example.scores else None)
    shown = template_variables(example.extra)
    beside = [json.dumps(shown, ensure_ascii=False, sort_keys=True)] if shown else []
    first = opening(example)
    said = "\0".join((str(seed), prompt, *answers, label, *beside))
    order = hashlib.sha1(said.encode("utf-8", "surrogatepass")).digest()
    return (source, place, pair, hash64(prompt) if prompt else 0, hash64(*map(normalised, user_turns(asked(example)))),
            hash64(prompt, *answers, label, *beside), hash64(prompt, *answers, *beside),
            hash64(prompt, *reversed(answers), *beside), hash64(first), bucket(first),
            int.from_bytes(order[:8], "big"), example.margins[0] if example.margins else np.nan)


def repeated_rows(rows: np.ndarray) -> np.ndarray:
    """[N] whether a row says and shows what an earlier one does, white space and case of its texts aside."""
    return _again(rows["said"])


def repeated_prompts(rows: np.ndarray) -> np.ndarray:
    """[N] whether an earlier row has the prompt; texts without a prompt have none in common."""
    return _again(rows["prompt"]) & (rows["prompt"] != 0)


def first_of_prompts(rows: np.ndarray) -> np.ndarray:
    """[n] places of the first row of each prompt that there is, by the prompts' hashes."""
    prompts, first = np.unique(rows["prompt"], return_index=True)
    return first[prompts != 0]


def _again(values: np.ndarray) -> np.ndarray:
    """[N] whether a value stands before."""
    again = np.ones(len(values), bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again


def contradicted(rows: np.ndarray) -> np.ndarray:
    """[N] whether another row labels the pair the other way round, or its own chosen answer scores lower."""
    found: np.ndarray = np.isin(rows["opposite"], rows["labelled"]) & (rows["opposite"] != rows["labelled"])
    return found | (rows["margin"] < 0)


def beyond_cap(rows: np.ndarray, caps: Sequence[int | None]) -> np.ndarray:
    """[N] whether a row is more than its source's cap of one prompt; those with the largest margins stay."""
    most = np.array([len(rows) if cap is None else cap for cap in caps])
    return _ranks(rows[["source", "prompt"]], -np.nan_to_num(rows["margin"])) >= most[rows["source"]]


def _ranks(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[N] how many of its group come before each, by their values and, where those are equal, their places."""
    group = np.unique(groups, return_inverse=True)[1]
    order = np.lexsort((values, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return ranks


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


def beyond_quotas(rows: np.ndarray, weights: Sequence[float], size: int) -> np.ndarray:
    """[N] whether a mix of `size` rows does not take a row: those of a source that come last in its order."""
    shares = quotas(np.bincount(rows["source"], minlength=len(weights)).tolist(), weights, size)
    return _ranks(rows["source"], rows["order"]) >= np.array(shares)[rows["source"]]


def shuffled(rows: np.ndarray) -> np.ndarray:
    """[N] places in an order that follows from what the rows say and the seed alone."""
    return np.argsort(rows["order"], kind="stable")


def sides(rows: np.ndarray, valid_percent: int, test_percent: int) -> np.ndarray:
    """[N] the side of the split, by the hash of the opening, so that a prompt is on one side in every source."""
    test = rows["bucket"] >= BUCKETS - test_percent
    return np.where(test, TEST, np.where(rows["bucket"] >= BUCKETS - test_percent - valid_percent, VALID, TRAIN))


def disjoint_batches(rows: np.ndarray, count: int, size: int) -> np.ndarray:
    """[N] int: which of `count` batches of `size` rows takes each row, no two sharing an opening; `count` for none.

    All rows of an opening go into the first batch that has room for them, so that a batch may end a few rows short;
    openings come in order of their first row.

    Raises:
      ValueError: there are not enough rows.
    """
    _, first, inverse, sizes = np.unique(rows["opening"], return_index=True, return_inverse=True, return_counts=True)
    batch_of, filled = np.full(len(first), count), [0] * count
    for number in np.argsort(first):
        room = (i for i in range(count) if filled[i] + sizes[number] <= size)
        batch_of[number] = batch = next(room, count)
        if batch < count:
            filled[batch] += int(sizes[number])
    if len(rows) < count * size:
        raise ValueError(f"{count} batches of {size:,} rows need {count * size:,}, and there are {len(rows):,} rows "
                         "to train on. Lower batches or batch_size")
    if empty := [i + 1 for i in range(count) if not filled[i]]:
        raise ValueError(f"batch {empty[0]} of {size:,} rows gets none: no prompt has so few. Raise batch_size")
    return batch_of[inverse]
