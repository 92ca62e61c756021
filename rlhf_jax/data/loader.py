"""Which groups make which optimizer step: deterministic, known in advance, resumable at any step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import grain
import jax
import numpy as np

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.packing import (
    GroupSizes,
    PackedBatch,
    RowShape,
    group_sizes,
    pack,
    pack_rows,
    power_of_two,
    shape_of_rows,
)


@lru_cache(maxsize=2)  # packing is ahead of the step that is reported
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Order of an epoch's groups; kept, since permuting all of them for every step would take quadratic time."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPlan:
    """Every step's batch, from lengths alone.

    A step takes exactly `batch_size` groups (the last of an epoch may have fewer), packs them into rows of
    `row_length` tokens and cuts the rows into micro-batches of `micro_rows`. How many micro-batches a step needs
    varies; the arrays have room for the most and the step stops at its own, so packing well costs no recompilation.
    Groups are read when their step is packed; what the plan holds is 16 bytes of each, and 4 of each step.

    Attributes:
      groups: the data set. reference: per group and response, reference log-probs of the trained tokens, or None.
      micro_rows: rows of a micro-batch, over all devices. rows_here: those of them that this process packs (others
        pack the rest); None for all.
      epochs: passes over the groups; a fraction of a pass is rounded up to whole steps, as transformers does.
      max_steps: so many steps instead of `epochs`; fewer or more, with as many passes as that takes.
      values: names of the numbers of a response that the objective reads.
      seed: with the epoch number it decides the order. shuffle: False keeps the order given.
    """

    groups: Sequence[PromptGroup]
    batch_size: int
    row_length: int
    micro_rows: int
    epochs: float = 1.0
    seed: int = 0
    shuffle: bool = True
    max_steps: int | None = None
    reference: Sequence[Sequence[np.ndarray]] | None = None
    rows_here: Sequence[int] | None = None
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("no prompt group is left to train on; see the data funnel for what was dropped and why")

    def divided(self, micro_rows: int, rows_here: Sequence[int] | None = None) -> BatchPlan:
        """The same batches in other micro-batches; what was packed stays packed."""
        other = dataclasses.replace(self, micro_rows=micro_rows, rows_here=rows_here)
        other.__dict__.update({name: self.__dict__[name] for name in ("sizes", "_packed") if name in self.__dict__})
        return other

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.groups) // self.batch_size)

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * self.steps_per_epoch) if self.max_steps is None else self.max_steps

    def members(self, step: int) -> list[int]:
        """Indices of the groups of one step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        start, stop = at * self.batch_size, min((at + 1) * self.batch_size, len(self.groups))
        if not self.shuffle:
            return list(range(start, stop))
        return _epoch_order(len(self.groups), self.seed, epoch)[start:stop].tolist()

    @cached_property
    def sizes(self) -> GroupSizes:
        """Of all groups."""
        return group_sizes(self.groups)

    def rows(self, step: int) -> list[list[int]]:
        """Indices of the groups of each row of a step."""
        members = self.members(step)
        packed = pack_rows(self.sizes.tokens[members].tolist(), self.row_length)
        return [[members[i] for i in row] for row in packed]

    @cached_property
    def _packed(self) -> tuple[np.ndarray, RowShape]:
        """[steps] int32 rows of each step, and the capacities that serve all of them."""
        counts = np.zeros(self.steps, np.int32)

        def rows() -> Iterator[list[int]]:
            for step in range(self.steps):
                found = self.rows(step)
                counts[step] = len(found)
                yield from found

        shape = shape_of_rows(self.sizes, rows(), self.row_length, self.values)
        return counts, shape

    @property
    def shape(self) -> RowShape:
        """Row capacities that serve every step."""
        return self._packed[1]

    @property
    def largest_step(self) -> int:
        """Rows of the step that has most."""
        return int(self._packed[0].max())

    @cached_property
    def accumulation(self) -> int:
        """Micro-batches that a step's arrays have room for: those of the largest step, rounded up to a power of two, so
        that trainings on other data of the kind find their step compiled."""
        return power_of_two(-(-self.largest_step // self.micro_rows))

    def micro_batches(self, step: int) -> int:
        return -(-int(self._packed[0][step]) // self.micro_rows)

    @cached_property
    def efficiency(self) -> float:
        """Share of the row tokens the device works on that are real."""
        real = sum(int(self.sizes.tokens[self.members(step)].sum()) for step in range(self.steps))
        worked = sum(self.micro_batches(step) for step in range(self.steps)) * self.micro_rows * self.row_length
        return real / worked

    def batch(self, step: int) -> tuple[PackedBatch, int]:
        """The step's arrays [accumulation, rows here, ...] and how many of its micro-batches hold anything."""
        rows = self.rows(step)
        here = range(self.micro_rows) if self.rows_here is None else self.rows_here
        places = [micro * self.micro_rows + row for micro in range(self.accumulation) for row in here]
        mine = [rows[at] if at < len(rows) else [] for at in places]
        flat = pack(self.groups, mine, self.shape, len(mine), self.reference)
        shaped: Any = jax.tree.map(lambda x: x.reshape(self.accumulation, len(here), *x.shape[1:]), flat)
        return shaped, self.micro_batches(step)

    def iterate(self, start: int = 0) -> Iterator[tuple[int, PackedBatch, int]]:
        """(step, batch, micro-batches) from `start` on; a thread packs ahead of the device."""
        source = grain.MapDataset.range(start, self.steps).map(lambda step: (int(step), *self.batch(int(step))))
        yield from source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
