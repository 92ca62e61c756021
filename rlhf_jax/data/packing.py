"""Packing prompt groups into fixed-shape rows: each prompt once, then its branches.

    tokens      [B, T]   p p p a a a b b | p p c c d d d d .
    group_ids   [B, T]   1 1 1 1 1 1 1 1 | 2 2 2 2 2 2 2 2 0      0 = padding
    branch_ids  [B, T]   0 0 0 1 1 1 2 2 | 0 0 1 1 2 2 2 2 0      0 = the shared prompt
    positions   [B, T]   0 1 2 3 4 5 3 4 | 0 1 2 3 2 3 4 5 .      each branch continues its prompt

The first token of each branch is predicted from the last prompt token, so targets carry the position they are
predicted from (`source`) instead of relying on a shift of the row. Only trained-on tokens become targets, so the
vocabulary is never multiplied for prompt tokens.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import struct

from rlhf_jax.data.groups import PromptGroup, Response


@struct.dataclass
class PackedBatch:
    """Rows of packed groups. Leading axes may be [B] or [accumulation, B]; all but floats are int32 or bool.

    S is the number of branch slots a row, P of pairs a row, M of target tokens a row.

    Attributes:
      tokens, positions, group_ids, branch_ids: [B, T], as drawn above.
      source: [B, M] row position whose hidden state predicts the target. target: [B, M] token id.
      target_slot: [B, M] branch slot the target belongs to. target_mask: [B, M] bool.
      slot_end: [B, S] row position of the branch's last token. slot_mask: [B, S] bool.
      slot_values: [B, S, K] float32, the K named numbers (see `RowShape`) of each branch; NaN where it lacks one.
      pair_slots: [B, P, 2] (chosen, rejected). pair_mask: [B, P] bool. pair_margin: [B, P] float32.
      reference_logps: [B, M] float32 log-probability of each target under the reference, 0 where there is none.
    """

    tokens: Any
    positions: Any
    group_ids: Any
    branch_ids: Any
    source: Any
    target: Any
    target_slot: Any
    target_mask: Any
    slot_end: Any
    slot_mask: Any
    slot_values: Any
    pair_slots: Any
    pair_mask: Any
    pair_margin: Any
    reference_logps: Any

    def checked(self) -> PackedBatch:
        """The batch, if its fields are as told above, in [B]: an array of [B, 1] would otherwise be broadcast.

        Raises:
          ValueError: names the first field that is not.
        """
        sizes = {"2": 2}
        for name, (axes, kinds) in _FIELDS.items():
            field = getattr(self, name)
            wanted = [sizes.setdefault(axis, size) for axis, size in zip(axes, field.shape, strict=False)]
            if len(field.shape) != len(axes) or list(field.shape) != wanted or field.dtype.kind not in kinds:
                known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes and axis != "2")
                raise ValueError(f"PackedBatch.{name} is {field.dtype} of shape {list(field.shape)}; it is "
                                 f"{_KINDS[kinds]} of [{', '.join(axes)}], here with {known or 'none of these'}; "
                                 "`pack` here and `data.loader.BatchPlan` make batches of groups")
        return self


_KINDS = {"i": "int32", "b": "bool", "f": "float32"}
_FIELDS = {
    **dict.fromkeys(("tokens", "positions", "group_ids", "branch_ids"), ("BT", "i")),
    **dict.fromkeys(("source", "target", "target_slot"), ("BM", "i")), "target_mask": ("BM", "b"),
    "slot_end": ("BS", "i"), "slot_mask": ("BS", "b"), "slot_values": ("BSK", "f"), "pair_slots": ("BP2", "i"),
    "pair_mask": ("BP", "b"), "pair_margin": ("BP", "f"), "reference_logps": ("BM", "f"),
}
"""Field of a `PackedBatch` -> its axes and the kind of its numbers."""


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Capacity of one row: tokens T, targets M, branch slots S, pairs P; names of the K numbers per branch."""

    tokens: int
    targets: int
    slots: int
    pairs: int
    values: tuple[str, ...] = ()


def group_length(group: PromptGroup) -> int:
    """Tokens a group takes in a row: its prompt once and every response."""
    return len(group.prompt_ids) + sum(len(r.ids) for r in group.responses)


class GroupSizes(NamedTuple):
    """What N groups take of a row, each [N] int32: tokens, targets, branch slots, pairs."""

    tokens: np.ndarray
    targets: np.ndarray
    slots: np.ndarray
    pairs: np.ndarray


def group_sizes(groups: Iterable[PromptGroup]) -> GroupSizes:
    """The sizes of groups that are looked at once: 16 bytes of each are kept."""
    found = np.fromiter(((group_length(group), _targets(group), len(group.responses), len(group.pairs))
                         for group in groups), np.dtype((np.int32, 4)))
    return GroupSizes(*np.ascontiguousarray(found.reshape(-1, 4).T))


def power_of_two(n: int) -> int:
    """The smallest that is no less: sizes are rounded up to it so that few occur."""
    return 1 << (n - 1).bit_length()


def row_length_for(tokens: int) -> int:
    """The smallest row that holds so many tokens: a multiple of 128, so that few sizes occur and blocks fit."""
    return -(-tokens // 128) * 128


def default_row_length(groups: Sequence[PromptGroup]) -> int:
    """The smallest row that holds the longest group; attention over whole rows costs the square of it."""
    return row_length_for(max((group_length(g) for g in groups), default=1))


def split_group(group: PromptGroup, limit: int) -> list[PromptGroup]:
    """The group's responses, in order, over as few groups of at most `limit` tokens as that order allows.

    Sharing a prompt saves its forward pass, but attention costs the square of the row: many long answers to a short
    prompt are cheaper in several rows. A response that exceeds the limit alone still gets a group; pairs are dropped.
    """
    pieces: list[list[Response]] = []
    room = 0
    for response in group.responses:
        if len(response.ids) > room:
            pieces.append([])
            room = limit - len(group.prompt_ids)
        pieces[-1].append(response)
        room -= len(response.ids)
    return [dataclasses.replace(group, responses=tuple(piece), pairs=(), margins=()) for piece in pieces]


def _targets(group: PromptGroup) -> int:
    return sum(int(r.loss_mask.sum()) for r in group.responses)


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing, in O(n log n): which items share a row.

    Deterministic: equal lengths keep their order, and of rows with equal room the oldest is taken. Rows come back in
    order of their first item.

    Raises:
      ValueError: if an item is longer than a row.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []  # every room that some row has left, ascending; at most one a token of the capacity
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # room -> heap of the rows that have it
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        if length > capacity:
            raise ValueError(f"a prompt group has {length} tokens (prompt once plus all responses) and a row "
                             f"holds {capacity}; raise row_length or lower max_length")
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = heapq.heappop(with_room[room])
            if not with_room[room]:
                del rooms[at]
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        left = room - length
        if not with_room[left]:
            bisect.insort(rooms, left)
        heapq.heappush(with_room[left], row)
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def row_shape(groups: Sequence[PromptGroup], rows: Sequence[Sequence[int]], tokens: int,
              values: tuple[str, ...] = ()) -> RowShape:
    """The smallest capacities (targets rounded up to 64, slots and pairs to powers of two) that hold all rows."""
    return shape_of_rows(group_sizes(groups), rows, tokens, values)


def shape_of_rows(sizes: GroupSizes, rows: Iterable[Sequence[int]], tokens: int, values: tuple[str, ...] = ()
                  ) -> RowShape:
    """As `row_shape`, from sizes alone; rows may come one by one."""
    table = np.stack([sizes.targets, sizes.slots, sizes.pairs])
    most = np.ones(3, np.int64)
    for row in rows:
        most = np.maximum(most, table[:, list(row)].sum(axis=1))
    targets, slots, pairs = most.tolist()
    return RowShape(tokens, min(-(-targets // 64) * 64, max(tokens, targets)), power_of_two(slots),
                    power_of_two(pairs), values)


def empty_rows(count: int, shape: RowShape) -> PackedBatch:
    """`count` rows of padding, as numpy arrays to be filled."""

    def zeros(*size: int, dtype: Any = np.int32) -> np.ndarray:
        return np.zeros((count, *size), dtype)

    t, m, s, p = shape.tokens, shape.targets, shape.slots, shape.pairs
    return PackedBatch(
        tokens=zeros(t), positions=zeros(t), group_ids=zeros(t), branch_ids=zeros(t),
        source=zeros(m), target=zeros(m), target_slot=zeros(m), target_mask=zeros(m, dtype=bool),
        slot_end=zeros(s), slot_mask=zeros(s, dtype=bool),
        slot_values=np.full((count, s, len(shape.values)), np.nan, np.float32),
        pair_slots=zeros(p, 2), pair_mask=zeros(p, dtype=bool), pair_margin=zeros(p, dtype=np.float32),
        reference_logps=zeros(m, dtype=np.float32),
    )


class _Cursor:
    """How far a row is filled."""

    def __init__(self) -> None:
        self.token = self.target = self.slot = self.pair = self.group = 0


def _write_response(out: PackedBatch, row: int, at: _Cursor, group: PromptGroup, branch: int,
                    prompt_end: int, values: tuple[str, ...], reference: np.ndarray | None) -> None:
    response = group.responses[branch]
    start, size = at.token, len(response.ids)
    span = slice(start, start + size)
    out.tokens[row, span] = response.ids
    out.positions[row, span] = len(group.prompt_ids) + np.arange(size)
    out.group_ids[row, span] = at.group
    out.branch_ids[row, span] = branch + 1
    source = np.arange(start - 1, start + size - 1)
    source[0] = prompt_end
    trained = np.flatnonzero(response.loss_mask)
    goal = slice(at.target, at.target + len(trained))
    out.source[row, goal] = source[trained]
    out.target[row, goal] = response.ids[trained]
    out.target_slot[row, goal] = at.slot
    out.target_mask[row, goal] = True
    if reference is not None:
        out.reference_logps[row, goal] = reference
    out.slot_end[row, at.slot] = start + size - 1
    out.slot_mask[row, at.slot] = True
    out.slot_values[row, at.slot] = [response.scores.get(name, np.nan) for name in values]
    at.token, at.target, at.slot = start + size, goal.stop, at.slot + 1


def _write_group(out: PackedBatch, row: int, at: _Cursor, group: PromptGroup, values: tuple[str, ...],
                 reference: Sequence[np.ndarray] | None) -> None:
    at.group += 1
    start, size = at.token, len(group.prompt_ids)
    out.tokens[row, start : start + size] = group.prompt_ids
    out.positions[row, start : start + size] = np.arange(size)
    out.group_ids[row, start : start + size] = at.group
    at.token += size
    first_slot = at.slot
    for branch in range(len(group.responses)):
        _write_response(out, row, at, group, branch, start + size - 1, values,
                        None if reference is None else reference[branch])
    margins = group.margins or (0.0,) * len(group.pairs)
    for (chosen, rejected), margin in zip(group.pairs, margins, strict=True):
        out.pair_slots[row, at.pair] = first_slot + chosen, first_slot + rejected
        out.pair_mask[row, at.pair] = True
        out.pair_margin[row, at.pair] = margin
        at.pair += 1


def pack(groups: Sequence[PromptGroup], rows: Sequence[Sequence[int]], shape: RowShape, count: int,
         reference: Sequence[Sequence[np.ndarray]] | None = None) -> PackedBatch:
    """Writes the groups into `count` rows ([count, ...] numpy arrays; those beyond `rows` stay padding).

    Args:
      groups: what to pack; every prompt has at least one token (BOS), every response at least one.
      rows: which groups share a row, from `pack_rows`.
      reference: per group, per response, the reference log-probs of the trained tokens.
    """
    out = empty_rows(count, shape)
    for row, members in enumerate(rows):
        at = _Cursor()
        for index in members:
            _write_group(out, row, at, groups[index], shape.values,
                         reference[index] if reference is not None else None)
    return out


def unpack_targets(values: np.ndarray, groups: Sequence[PromptGroup], rows: Sequence[Sequence[int]]
                   ) -> dict[int, list[np.ndarray]]:
    """Cuts per-target results [count, M] back: group index -> one array a response (its trained tokens, in order)."""
    out: dict[int, list[np.ndarray]] = {}
    for row, members in enumerate(rows):
        at = 0
        for index in members:
            sizes = [int(r.loss_mask.sum()) for r in groups[index].responses]
            edges = np.cumsum([at, *sizes])
            out[index] = [values[row, a:b] for a, b in itertools.pairwise(edges)]
            at = int(edges[-1])
    return out


def unpack_slots(values: np.ndarray, groups: Sequence[PromptGroup], rows: Sequence[Sequence[int]]
                 ) -> dict[int, np.ndarray]:
    """Cuts per-branch results [count, S, ...] back: group index -> [responses, ...]."""
    out: dict[int, np.ndarray] = {}
    for row, members in enumerate(rows):
        at = 0
        for index in members:
            size = len(groups[index].responses)
            out[index] = values[row, at : at + size]
            at += size
    return out
