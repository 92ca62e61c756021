"""Log-likelihoods of continuations: what contexts have in common is the prompt of a group, the rest are its branches.

A question's context runs once for all of its choices; examples that stand before many questions run once for as many
of them as share a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.packing import PackedBatch, RowShape, group_length, power_of_two, unpack_slots
from rlhf_jax.evaluation.harness.kept import Kept
from rlhf_jax.models import Params
from rlhf_jax.parallel import bound, map_over_processes
from rlhf_jax.training.evaluate import LONG_ROW, PackedMap
from rlhf_jax.training.objectives import Compute, slot_sums

SHARD = 2048
"""Continuations whose answers are kept together; what a killed command does again at most."""
_WORTH = 7 / 8
"""Contexts that begin alike share a prompt if that leaves at most this share of their tokens."""
_LONGEST = 8192
"""No row is made longer than this many tokens for the branches of a long beginning, unless to hold one at all."""
Likelihood = tuple[float, bool]
"""log p(continuation | context) in nats, and whether greedy decoding would give the continuation."""


class Asked(NamedTuple):
    """A context and a continuation of it, in token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def within(self, longest: int) -> Asked:
        """What a model of `longest` positions can read of it: the context loses its beginning.

        Raises ValueError for a continuation that leaves it nothing.
        """
        room = longest + 1 - len(self.continuation)  # the last token is predicted and not read
        if room < 1:
            raise ValueError(f"a continuation has {len(self.continuation):,} tokens and the model {longest:,} "
                             "positions; leave the task out, or give a model with a longer context")
        return self if len(self.context) <= room else Asked(self.context[-room:], self.continuation)


class Questions(NamedTuple):
    """Groups, the longest first, in an order that does not depend on who asked; places: (group, response) of each."""

    groups: list[PromptGroup]
    places: list[tuple[int, int]]


def questions(asked: Sequence[Asked], share: bool = True) -> Questions:
    """What is to be computed: every context with each of its continuations once, in as few tokens as groups allow.

    share: contexts that begin alike may be in one group, see `shared_beginnings`.
    """
    continuations: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for context, continuation in asked:
        continuations.setdefault(context, {})[continuation] = None
    contexts = sorted(continuations)
    several = [sorted(continuations[context]) for context in contexts]
    sizes = [(context, list(map(len, ends))) for context, ends in zip(contexts, several, strict=True)]
    made = []
    for some in shared_beginnings(sizes) if share else [_alone(i, context) for i, context in enumerate(contexts)]:
        of = [Asked(contexts[i], end) for i in some.members for end in several[i]]
        prompt = np.asarray(of[0].context[: some.length], np.int32)
        made.append((PromptGroup("", prompt, tuple(_branch(one, some.length) for one in of)), of))
    made.sort(key=lambda pair: (-group_length(pair[0]), pair[1]))
    place = {one: (number, branch) for number, (_, of) in enumerate(made) for branch, one in enumerate(of)}
    return Questions([group for group, _ in made], [place[one] for one in asked])


def _branch(one: Asked, shared: int) -> Response:
    """What follows the shared beginning; the rest of the context is read and not asked for."""
    rest = one.context[shared:]
    counted = np.arange(len(rest) + len(one.continuation)) >= len(rest)
    return Response(np.asarray(rest + one.continuation, np.int32), counted)


class Shared(NamedTuple):
    """Contexts of one group. length: tokens that all of them begin with. members: their numbers."""

    length: int
    members: list[int]


def _alone(number: int, context: tuple[int, ...]) -> Shared:
    return Shared(len(context), [number])


@dataclasses.dataclass
class _Node:
    """Consecutive contexts with their first `length` tokens in common.

    members: their numbers. cost: tokens that `plan`, the best found so far, takes.
    """

    length: int
    members: list[int] = dataclasses.field(default_factory=list)
    cost: int = 0
    plan: list[Shared] = dataclasses.field(default_factory=list)

    def take(self, other: _Node) -> None:
        """Adds what lies below, apart from what is here."""
        self.members.extend(other.members)
        self.plan.extend(other.plan)
        self.cost += other.cost


def shared_beginnings(contexts: Sequence[tuple[tuple[int, ...], Sequence[int]]]) -> list[Shared]:
    """Which contexts share a group, so that few tokens are read.

    The contexts' tree of beginnings is gone through from its leaves up: at each node either its children stay apart, or
    all below it become branches of what they have in common, over as many groups as their tokens fill.

    Args:
      contexts: different ones in rising order, each with the lengths of its continuations.
    """
    path, before = [_Node(0)], tuple[int, ...]()

    def close(length: int) -> None:
        """Ends the nodes that have more than `length` tokens in common."""
        while path[-1].length > length:
            done = path.pop()
            _decide(done, contexts)
            if path[-1].length < length:
                path.append(_Node(length))
            path[-1].take(done)

    for number, (context, ends) in enumerate(contexts):
        close(_common(before, context))
        path.append(_Node(len(context), [number], len(context) + sum(ends), [_alone(number, context)]))
        before = context
    close(0)
    return path[0].plan


def _decide(node: _Node, contexts: Sequence[tuple[tuple[int, ...], Sequence[int]]]) -> None:
    """Makes all below the node branches of its beginning, over rows as long as pays, if that is worth it."""
    row = max(LONG_ROW, min(power_of_two(3 * node.length), _LONGEST), power_of_two(node.length + 1))
    plan, cost, filled = list[Shared](), 0, row
    for member in node.members:
        context, ends = contexts[member]
        size = len(ends) * (len(context) - node.length) + sum(ends)
        if filled + size > row:
            plan.append(Shared(node.length, []))
            filled = node.length
            cost += node.length
        plan[-1].members.append(member)
        filled, cost = filled + size, cost + size
    for place, some in enumerate(plan):
        if len(some.members) == 1:
            context, ends = contexts[some.members[0]]
            plan[place], cost = _alone(some.members[0], context), cost - (len(ends) - 1) * (len(context) - node.length)
    if cost <= node.cost * _WORTH:
        node.cost, node.plan = cost, plan


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens that both begin with."""
    short = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:short]) != np.asarray(b[:short]))
    return int(differ[0]) if len(differ) else short


def likelihood_map(compute: Compute, mesh: Mesh) -> PackedMap:
    """params, groups -> per group [responses, 2]: sum of the log-probs, number of tokens that greedy would not give."""
    return PackedMap(bound(_likelihoods, compute), mesh, unpack_slots)


def _likelihoods(compute: Compute, params: Params, batch: PackedBatch) -> jax.Array:
    logps, stats = compute.target_logps(params, batch)
    return jnp.stack([slot_sums(logps, batch), slot_sums(1.0 - stats.greedy, batch)], axis=-1)


def likelihoods(program: PackedMap, params: Params, asked: Sequence[Asked], kept: Kept) -> list[Likelihood]:
    """Of each continuation, all processes doing their share; one program is compiled for each length of rows."""
    groups, places = questions(asked, share=program.limit is None)  # long rows must be cheap
    ends = itertools.accumulate(len(group.responses) for group in groups)
    numbered = zip(((end - 1) // SHARD for end in ends), groups, strict=True)
    shards = [[group for _, group in some] for _, some in itertools.groupby(numbered, key=lambda pair: pair[0])]
    here, count = jax.process_index(), jax.process_count()
    shapes = _few([program.shape(shard[here::count]) for shard in shards])
    found: list[Any] = []
    for shard, shape in zip(shards, shapes, strict=True):
        found += kept(_name(shard), partial(map_over_processes, shard, partial(_sums, program, params, shape)))
        kept.progress(len(found), len(groups))
    return [(total, missed == 0) for total, missed in (found[group][branch] for group, branch in places)]


def _sums(program: PackedMap, params: Params, shape: RowShape, groups: Sequence[PromptGroup]) -> list[Any]:
    return [np.asarray(one, np.float64).tolist() for one in program(params, groups, shape=shape)]


def _few(shapes: Sequence[RowShape]) -> list[RowShape]:
    """Shapes that hold what these hold, and of which there is one for each number of tokens."""
    largest: dict[int, RowShape] = {}
    for shape in shapes:
        other = largest.setdefault(shape.tokens, shape)
        largest[shape.tokens] = dataclasses.replace(shape, targets=max(shape.targets, other.targets),
                                                    slots=max(shape.slots, other.slots),
                                                    pairs=max(shape.pairs, other.pairs))
    return [largest[shape.tokens] for shape in shapes]


def _name(groups: Iterable[PromptGroup]) -> str:
    """Stands for what is asked."""
    digest = hashlib.sha256()
    for group in groups:
        for ids, asked in ((group.prompt_ids, 0), *((one.ids, int(one.loss_mask.sum())) for one in group.responses)):
            digest.update(len(ids).to_bytes(4, "big") + asked.to_bytes(4, "big") + ids.tobytes())
    return f"likelihoods-{digest.hexdigest()[:32]}"
