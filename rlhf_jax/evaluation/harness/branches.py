"""Log-likelihoods of continuations: those of one context are branches of one prompt group, whose context runs once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.packing import PackedBatch, RowShape, group_length, unpack_slots
from rlhf_jax.evaluation.harness.kept import Kept
from rlhf_jax.models import Params
from rlhf_jax.parallel import map_over_processes
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute, slot_sums

SHARD = 1024
"""Contexts whose answers are kept together; what a killed command does again at most."""
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


def questions(asked: Sequence[Asked]) -> Questions:
    """What is to be computed: every context once, with each of its continuations once."""
    continuations: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for context, continuation in asked:
        continuations.setdefault(context, {})[continuation] = None
    groups = []
    for context, several in continuations.items():
        ids = [np.asarray(one, np.int32) for one in sorted(several)]
        groups.append(PromptGroup("", np.asarray(context, np.int32),
                                  tuple(Response(one, np.ones(len(one), bool)) for one in ids)))
    groups.sort(key=lambda group: (-group_length(group), group.prompt_ids.tolist()))
    place = {(tuple(group.prompt_ids.tolist()), tuple(response.ids.tolist())): (number, branch)
             for number, group in enumerate(groups) for branch, response in enumerate(group.responses)}
    return Questions(groups, [place[one] for one in asked])


def likelihood_map(compute: Compute, mesh: Mesh) -> PackedMap:
    """params, groups -> per group [responses, 2]: sum of the log-probs, number of tokens that greedy would not give."""

    def fn(params: Params, batch: PackedBatch) -> jax.Array:
        logps, stats = compute.target_logps(params, batch)
        return jnp.stack([slot_sums(logps, batch), slot_sums(1.0 - stats.greedy, batch)], axis=-1)

    return PackedMap(fn, mesh, unpack_slots)


def likelihoods(program: PackedMap, params: Params, asked: Sequence[Asked], kept: Kept) -> list[Likelihood]:
    """Of each continuation, all processes doing their share; one program is compiled for each length of rows."""
    groups, places = questions(asked)
    shards = [groups[start : start + SHARD] for start in range(0, len(groups), SHARD)]
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
                                                    slots=max(shape.slots, other.slots))
    return [largest[shape.tokens] for shape in shapes]


def _name(groups: Iterable[PromptGroup]) -> str:
    """Stands for what is asked."""
    digest = hashlib.sha256()
    for group in groups:
        for ids in (group.prompt_ids, *(response.ids for response in group.responses)):
            digest.update(len(ids).to_bytes(4, "big") + ids.tobytes())
    return f"likelihoods-{digest.hexdigest()[:32]}"
