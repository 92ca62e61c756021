"""Running a model over a whole set of prompt groups without training: eval metrics, log-probs, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.packing import (
    PackedBatch,
    RowShape,
    default_row_length,
    group_length,
    group_sizes,
    pack,
    pack_rows,
    power_of_two,
    shape_of_rows,
    split_group,
    unpack_targets,
)
from rlhf_jax.losses import Term, token_logps
from rlhf_jax.models import Params, cast, output_head
from rlhf_jax.parallel import Bound, batch_sharding, batch_ways, bound, over_rows, place, rows_here
from rlhf_jax.training.attention import lone_cpu, skips_blocks
from rlhf_jax.training.objectives import Compute, Metrics, Objective, WholeBatch
from rlhf_jax.training.step import Assemble, finish_metrics, whole

Rows = list[list[int]]
T = TypeVar("T")
SHORT_ROW = 256
"""Tokens a group may take in one row before its responses are spread over several, where attention over a row costs the
square of its length."""
LONG_ROW = 2048
"""Tokens of a row where attention visits blocks: one long row at a time then packs best, and no row is empty."""


def long_row(longest: int, tokens: int) -> int:
    """Length of a row where attention visits blocks. longest: of a group. tokens: of all groups."""
    return power_of_two(max(longest, min(LONG_ROW, tokens)))


def best_fit(groups: Sequence[PromptGroup], tokens: int, values: tuple[str, ...] = ()) -> tuple[Rows, RowShape]:
    """Which groups share a row of so many tokens, and the capacities that hold every row. values: see `RowShape`."""
    sizes = group_sizes(groups)
    rows = pack_rows(sizes.tokens.tolist(), tokens)
    return rows, shape_of_rows(sizes, rows, tokens, values)


def packed_batches(groups: Sequence[PromptGroup], rows: Rows, shape: RowShape, rows_per_batch: int, mesh: Mesh,
                   reference: Sequence[Sequence[np.ndarray]] | None = None) -> Iterator[tuple[Rows, PackedBatch]]:
    """All rows of `best_fit`, `rows_per_batch` at a time (the last batch padded), ready for the mesh."""
    sharding = batch_sharding(mesh)
    here = rows_here(sharding, rows_per_batch)
    for start in range(0, len(rows), rows_per_batch):
        some = rows[start : start + rows_per_batch]
        mine = [some[i] if i < len(some) else [] for i in here]
        yield some, place(pack(groups, mine, shape, len(here), reference), sharding, rows_per_batch)


def overlapped(items: Iterable[T]) -> Iterator[T]:
    """The items, each once the next one is under way: the device works while the host packs, tokenises and unpacks."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


class PackedMap:
    """A packed model function over any number of prompt groups, data-parallel over the mesh.

    Capacities of a row are coarse: powers of two for slots, with which those for pairs go, and eighths of the row for
    targets. So calls on similar data share compiled programs, and so do maps of one `Bound`. They never depend on
    earlier calls, so that a run that was killed computes the rest to the same bits.

    Attributes:
      rows: of a batch. limit: tokens that a group may take in one row, None where long rows cost little.

    Args:
      fn: (params, batch [B, ...]) -> array [B, M] or [B, S, ...].
      cut: `unpack_targets` or `unpack_slots`, matching what `fn` returns.
      rows_per_batch: rows each device works on at a time, where attention is over whole rows.
      row_length: tokens of a row; None takes what the groups of a call fill well.
    """

    def __init__(self, fn: Callable[[Params, PackedBatch], Any], mesh: Mesh, cut: Callable[..., dict[int, Any]], *,
                 rows_per_batch: int = 4, row_length: int | None = None):
        self.program = over_rows(fn, mesh)
        self._mesh, self._cut, self._row_length = mesh, cut, row_length
        self.rows = 1 if lone_cpu(mesh) else rows_per_batch * batch_ways(mesh)
        self.limit = None if skips_blocks(mesh) else SHORT_ROW

    def __call__(self, params: Params, groups: Sequence[PromptGroup],
                 progress: Callable[[int], None] | None = None, shape: RowShape | None = None) -> list[Any]:
        """Per group, in order, one result per response. `progress` gets the groups done since its last call.

        shape: of the rows, at least what `shape` gives for these groups; None for just that.
        """
        pieces = self._pieces(groups)
        split = [piece for _, piece in pieces]
        rows, smallest = self._fit(split, shape.tokens if shape else self._row_length or self._tokens(split))
        shape = shape or smallest
        found: dict[int, Any] = {}
        done = 0
        batches = packed_batches(split, rows, shape, self.rows, self._mesh)
        for some, result in overlapped((some, self.program(params, batch)) for some, batch in batches):
            found |= self._cut(np.asarray(result), split, some)
            if progress:
                before, done = done, len(found) * len(groups) // len(split)
                progress(done - before)
        parts: list[list[Any]] = [[] for _ in groups]
        for number, (index, _) in enumerate(pieces):
            parts[index].extend(found[number])
        return parts

    def shape(self, groups: Sequence[PromptGroup], tokens: int | None = None) -> RowShape:
        """Of the rows that a call with these groups works on; one program is compiled for each shape.

        tokens: of a row; None for what these groups fill well.
        """
        split = [piece for _, piece in self._pieces(groups)]
        return self._fit(split, tokens or self._row_length or self._tokens(split))[1]

    @staticmethod
    def _fit(groups: Sequence[PromptGroup], tokens: int) -> tuple[Rows, RowShape]:
        rows, shape = best_fit(groups, tokens)
        unit = max(64, tokens // 8)
        targets = min(-(-shape.targets // unit) * unit, max(tokens, shape.targets))
        return rows, dataclasses.replace(shape, targets=targets, pairs=max(shape.pairs, shape.slots))

    def _pieces(self, groups: Sequence[PromptGroup]) -> list[tuple[int, PromptGroup]]:
        """The groups as they are put into rows, each with its place in `groups`."""
        return [(i, piece) for i, group in enumerate(groups)
                for piece in (split_group(group, self.limit) if self.limit else [group])]

    def _tokens(self, groups: Sequence[PromptGroup]) -> int:
        """Length of a row that these groups fill well, a power of two so that few occur."""
        needed = default_row_length(groups)
        return power_of_two(needed) if self.limit else long_row(needed, sum(map(group_length, groups)))


def logps_map(compute: Compute, mesh: Mesh, *, rows_per_batch: int = 4, row_length: int | None = None) -> PackedMap:
    """params, groups -> per group and response, float32 log-probs of the trained tokens."""
    return PackedMap(logps_fn(compute), mesh, unpack_targets, rows_per_batch=rows_per_batch, row_length=row_length)


def logps_fn(compute: Compute) -> Bound:
    """(params, batch) -> [B, M] log-probs of the target tokens."""
    return bound(_logps, compute)


def _logps(compute: Compute, params: Params, batch: PackedBatch) -> Any:
    hidden = compute.hidden(params, batch)
    hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
    return token_logps(hidden, output_head(params), batch.target, **compute.vocabulary)


def _sums(terms: Sequence[Term]) -> dict[str, tuple[Any, Any, Any]]:
    """By loss: its coefficient, the weighted sum of its values, and the sum of the weights."""
    return {t.name: (t.coefficient, jnp.sum(t.values * t.weights), jnp.sum(t.weights)) for t in terms}


def _evaluated(objective: Objective, assemble: Assemble, dtype: Any, weights: tuple[Params, Params],
               batch: PackedBatch) -> tuple[Any, Metrics]:
    """What a batch adds to a loss: sums by term, or what an objective over the whole batch collects; and metrics."""
    masters, frozen = weights
    outputs = objective.outputs(assemble(cast(masters, dtype), frozen), batch)
    terms, metrics = objective.terms(outputs, batch)
    compared = _across(objective)
    return _sums(terms) if compared is None else compared.collected(outputs, batch), metrics


def _across(objective: Objective) -> WholeBatch | None:
    """The objective, if it looks across a batch."""
    return objective if isinstance(objective, WholeBatch) and objective.whole_batch else None


def make_evaluator(objective: Objective, groups: Sequence[PromptGroup], plan: BatchPlan, mesh: Mesh, *,
                   reference: Sequence[Sequence[np.ndarray]] | None = None, assemble: Assemble = whole,
                   dtype: Any = jnp.float32) -> Callable[[Params, Params], dict[str, float]]:
    """(masters, frozen) -> loss and metrics of an objective over held-out groups, weighted exactly (no mean of means).

    An objective over the whole batch sees all of `groups` as one, so no result depends on how rows are batched.
    The masters are cast to `dtype` as a training step casts them. One program, compiled at the first call, serves all
    calls.
    """
    compared = _across(objective)
    compiled = over_rows(bound(_evaluated, objective, assemble, jnp.dtype(dtype)), mesh)
    rows, shape = best_fit(groups, max(plan.row_length, default_row_length(groups)), objective.reads)
    ways = batch_ways(mesh)
    at_once = min(plan.micro_rows, -(-len(rows) // ways) * ways)

    def evaluate(masters: Params, frozen: Params) -> dict[str, float]:
        batches = packed_batches(groups, rows, shape, at_once, mesh, reference)
        parts = [jax.device_get(part) for part in overlapped(
            compiled((masters, frozen), batch) for _, batch in batches)]
        sums = [part for part, _ in parts]
        over_all: Mapping[str, Any] = {}
        if compared is not None:
            collected = jax.tree.map(lambda *xs: np.concatenate(xs), *sums)
            sums, over_all = [_sums(compared.collected_terms(collected))], compared.collected_metrics(collected)
        loss = 0.0
        for name, (coefficient, _, _) in sums[0].items():
            weight = sum(float(some[name][2]) for some in sums)
            loss += float(coefficient) * sum(float(some[name][1]) for some in sums) / max(weight, 1.0)
        means = jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *(m.means for _, m in parts))
        maxima = jax.tree.map(lambda *xs: np.max(xs), *(m.maxima for _, m in parts))
        finished = finish_metrics(Metrics({**means, **over_all}, maxima))
        return {"loss": loss, **{name: float(value) for name, value in finished.items()}}

    return evaluate
