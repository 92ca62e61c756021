"""For a stage that does not fit: the smallest change that makes it fit, found by compiling the cheapest ones first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.parallel.accelerators import Accelerator
from rlhf_jax.plan.programs import looks_across
from rlhf_jax.plan.shapes import PassShape, SampleShape, Shape, TrainShape

LEAST_CHUNK = 128
"""Fewer positions of logits at a time save no memory worth their loop."""
Result = TypeVar("Result")


class Change(NamedTuple):
    """A stage and a mesh that differ from what was asked for, and how."""

    stage: Shape
    mesh: MeshConfig
    words: tuple[str, ...] = ()


Step = Callable[[Change, Accelerator], Change | None]
"""One change more, or None where it would change nothing."""


def _on_whole_mesh(stage: Shape) -> bool:
    return not isinstance(stage, SampleShape) and stage.name != "score"


def _said(change: Change, words: str) -> tuple[str, ...]:
    """What was said of a change, and now this; a second word on the same thing replaces the first."""
    thing = words.split()[0]
    return (*(earlier for earlier in change.words if earlier.split()[0] != thing), words)


def _options(change: Change, words: str, **fields: Any) -> Change:
    assert isinstance(change.stage, TrainShape)
    return Change(change.stage.trained_with(**fields), change.mesh, _said(change, words))


def _smaller_chunk(change: Change, accelerator: Accelerator) -> Change | None:
    del accelerator
    stage = change.stage
    if not isinstance(stage, TrainShape) or stage.config.is_classifier:
        return None
    if stage.options.train.logits_chunk <= LEAST_CHUNK:
        return None
    return _options(change, f"logits_chunk {LEAST_CHUNK}", logits_chunk=LEAST_CHUNK)


def _one_row(change: Change, accelerator: Accelerator) -> Change | None:
    del accelerator
    stage = change.stage
    if isinstance(stage, PassShape) and stage.rows > 1:
        return Change(dataclasses.replace(stage, rows=1), change.mesh, _said(change, "rows_per_batch 1"))
    if not isinstance(stage, TrainShape) or stage.options.train.micro_rows == 1 or looks_across(stage):
        return None
    return _options(change, "micro_rows 1", micro_rows=1)


def _full_remat(change: Change, accelerator: Accelerator) -> Change | None:
    del accelerator
    if not isinstance(change.stage, TrainShape) or change.stage.options.train.remat == "full":
        return None
    return _options(change, "remat full", remat="full")


def _fewer_slots(change: Change, accelerator: Accelerator) -> Change | None:
    stage = change.stage
    if not isinstance(stage, SampleShape):
        return None
    ways, s = accelerator.per_host, stage.sampling  # sampling runs on each host by itself
    slots = max(ways, s.slots // 2 // ways * ways)
    lanes = s.lanes_each
    if slots < s.slots:
        sampling, words = dataclasses.replace(s, slots=slots), f"slots {slots}"
    elif lanes > 1:
        sampling, words = dataclasses.replace(s, lanes=lanes // 2), f"lanes {lanes // 2}"
    else:
        return None
    return Change(dataclasses.replace(stage, sampling=sampling), change.mesh, _said(change, words))


def _on(stage: Shape, ways: int) -> Shape:
    """The stage on another mesh: a batch that must be one micro-batch stays one."""
    if not isinstance(stage, TrainShape) or not looks_across(stage):
        return stage
    return stage.trained_with(micro_rows=math.ceil(stage.rows() / ways))


def _all_fsdp(change: Change, accelerator: Accelerator) -> Change | None:
    data, fsdp, context, tensor = change.mesh.shape(accelerator.devices)
    if data == 1 or not _on_whole_mesh(change.stage):
        return None
    mesh = MeshConfig(1, data * fsdp, context, tensor)
    return Change(_on(change.stage, data * fsdp), mesh, _said(change, f"mesh fsdp {data * fsdp}"))


def _more_tensor(change: Change, accelerator: Accelerator) -> Change | None:
    data, fsdp, context, tensor = change.mesh.shape(accelerator.devices)
    fits_host = 2 * tensor <= accelerator.per_host and change.stage.config.kv_heads % (2 * tensor) == 0
    if not _on_whole_mesh(change.stage) or fsdp % 2 or not fits_host:
        return None
    mesh = MeshConfig(data, fsdp // 2, context, 2 * tensor)
    words = f"mesh fsdp {fsdp // 2} x tensor {2 * tensor}"
    return Change(_on(change.stage, data * fsdp // 2), mesh, _said(change, words))


STEPS: tuple[Step, ...] = (_smaller_chunk, _one_row, _full_remat, _fewer_slots, _all_fsdp, _more_tensor)
"""Cheapest first: what costs no arithmetic, then smaller batches, recomputation, less in flight, more traffic."""


def changes(stage: Shape, mesh: MeshConfig, accelerator: Accelerator) -> Iterator[Change]:
    """Single changes, cheapest first; then those together, one more each time; then the last ones again."""
    start = Change(stage, mesh)
    singles = [change for step in STEPS if (change := step(start, accelerator)) is not None]
    yield from singles
    together, seen = start, {change.words for change in singles}
    for step in (*STEPS, _fewer_slots, _fewer_slots, _more_tensor):
        further = step(together, accelerator)
        if further is None:
            continue
        together = further
        if together.words not in seen:
            yield together


def smallest_change(stage: Shape, mesh: MeshConfig, accelerator: Accelerator, tries: int,
                    attempt: Callable[[Change], Result], fits: Callable[[Result], bool]
                    ) -> tuple[Change, Result] | None:
    """The first of `changes` that fits, within so many compilations; None if none of them does."""
    for number, change in enumerate(changes(stage, mesh, accelerator)):
        if number >= tries:
            return None
        result = attempt(change)
        if fits(result):
            return change, result
    return None
