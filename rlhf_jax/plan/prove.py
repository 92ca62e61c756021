"""The topology gate: the first step of a training, on every mesh and order of the devices here, against one device.

A wrong sharding gives no error: it gives another gradient. So a small model of the config's family takes the config's
own step (objective, optimizer, adapter, remat, accumulation) in float32 with products at full precision, on the same
groups everywhere. What comes out must not depend on where it was computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from rlhf_jax.config.lora import adapter_of
from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.models import init_params
from rlhf_jax.parallel import batch_sharding, batch_ways, gather, make_mesh, place, replicated
from rlhf_jax.parallel.micro_batches import REMAT
from rlhf_jax.plan.programs import objective_of
from rlhf_jax.plan.report import mesh_words
from rlhf_jax.plan.shapes import TrainShape
from rlhf_jax.training.fit import Model, make_plan, step_program
from rlhf_jax.training.objectives import Compute
from rlhf_jax.training.optimizer import make_schedule
from rlhf_jax.training.step import init_state
from rlhf_jax.workflow.stages.train import compute_of, trainable

LARGEST_GAP = 1e-3
"""What a gradient, its norm or a loss may differ by, relative to its own size. Float32 sums in another order were seen
to make 1e-4 of the loss after the update, and 1e-5 of the rest."""
LEAST_SIGNS = 0.99
"""Share of the first update's signs that must agree. Those of gradients that are rounding alone need not."""
_ROW, _VOCAB, _HEADS = 128, 512, 8
_SMALLEST = 1e-3
"""A weight whose gradients are smaller than this share of the largest is compared with that share."""


class Layout(NamedTuple):
    """A mesh and what to call it."""

    name: str
    mesh: Mesh


class Outcome(NamedTuple):
    """Of one step: gradients and updates by weight, as the optimizer had and made them; gradient norm and loss of the
    step, and the loss of the next one on the same groups."""

    gradient: dict[str, np.ndarray]
    update: dict[str, np.ndarray]
    norm: float
    loss: float
    next_loss: float


class Difference(NamedTuple):
    """How a layout's outcome differs from that of one device.

    gap: the largest difference, relative. where: what differs by it. signs: share of the updates' signs that agree.
    """

    stage: str
    layout: str
    gap: float
    where: str
    signs: float

    @property
    def refused(self) -> bool:
        return not (self.gap <= LARGEST_GAP and self.signs >= LEAST_SIGNS)

    def words(self) -> str:
        """What is wrong, for an error."""
        return (f"{self.stage} on {self.layout}: {self.where} differs by {self.gap:.1e} of its size (allowed "
                f"{LARGEST_GAP:.0e}), {self.signs:.1%} of the first update's signs agree (at least {LEAST_SIGNS:.0%})")


def layouts(chosen: MeshConfig, devices: Sequence[Any]) -> list[Layout]:
    """The config's mesh, each axis alone, several together; the config's and the last with devices in other orders; and
    where there are several processes, each by itself.

    tensor and context stay inside a process, as they should in a run.
    """
    total, mine = len(devices), [device for device in devices if device.process_index == jax.process_index()]
    inside = min(_HEADS, len(mine) & -len(mine))  # a power of two
    two = min(2, inside)
    shapes = [chosen.shape(total), (1, total, 1, 1), (total, 1, 1, 1), (1, total // inside, 1, inside),
              (1, total // inside, inside, 1)]
    if total % (two * two) == 0:
        shapes.append((1, total // two**2, two, two))
    if total % (2 * two) == 0:
        shapes.append((2, total // (2 * two), 1, two))
    found = [_layout(MeshConfig(*shape, chosen.axis_types), devices) for shape in dict.fromkeys(shapes)]
    shuffled = np.random.default_rng(0).permutation(total)
    for shape in dict.fromkeys((shapes[0], shapes[-1])):
        for name, order in (("reversed", range(total)[::-1]), ("shuffled", shuffled)):
            mesh = _in_order(MeshConfig(*shape, chosen.axis_types), [devices[i] for i in order])
            found.append(Layout(f"{_words(mesh)}, devices {name}", mesh))
    if jax.process_count() > 1:
        alone = make_mesh(MeshConfig(axis_types=chosen.axis_types), mine)
        found.append(Layout(f"{_words(alone)} in each process by itself", alone))
    return found


def _words(mesh: Mesh) -> str:
    return mesh_words({axis: mesh.shape[axis] for axis in AXES})


def _layout(config: MeshConfig, devices: Sequence[Any]) -> Layout:
    mesh = make_mesh(config, devices)
    return Layout(_words(mesh), mesh)


def _in_order(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """The devices as they are given: `make_mesh` would put neighbours of the network together again."""
    kind = AxisType.Explicit if config.axis_types == "explicit" else AxisType.Auto
    return Mesh(np.asarray(devices).reshape(config.shape(len(devices))), AXES, axis_types=(kind,) * len(AXES))


def small(stage: TrainShape, rows: int) -> TrainShape:
    """The stage with a small model of the same family, a batch of about so many rows, float32, and a first step that
    moves the weights."""
    c, options = stage.config, stage.options
    config = dataclasses.replace(
        c, vocab_size=min(c.vocab_size, _VOCAB), embed=64, layers=2, heads=_HEADS * min(2, c.heads // c.kv_heads),
        kv_heads=_HEADS, mlp=128, max_position=max(c.max_position, _ROW), window=c.window and min(c.window, 32),
        full_layers=tuple(layer for layer in c.full_layers if layer < 2), experts=min(c.experts, _HEADS),
        experts_per_token=min(c.experts_per_token, 2), initializer_range=0.1)
    train = dataclasses.replace(
        options.train, train_batch_size=rows, micro_rows=1, row_length=_ROW, num_train_epochs=2.0, max_steps=2,
        learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, dtype="float32", mu_dtype="float32",
        remat=REMAT if options.train.remat == "auto" else options.train.remat, logits_chunk=32)
    return dataclasses.replace(stage, config=config, options=dataclasses.replace(options, train=train), row_length=_ROW)


def made_up(stage: TrainShape, count: int, reads: Sequence[str]) -> list[PromptGroup]:
    """So many groups as the stage trains on: random tokens, all numbers that its loss reads."""
    rng = np.random.default_rng(0)
    longest = (_ROW - 24) // stage.responses

    def response() -> Response:
        ids = rng.integers(3, stage.config.vocab_size, rng.integers(longest // 2, longest)).astype(np.int32)
        return Response(ids, np.ones(len(ids), bool), scores={name: float(rng.integers(2)) for name in reads})

    def group(number: int) -> PromptGroup:
        ids = rng.integers(3, stage.config.vocab_size, rng.integers(12, 24)).astype(np.int32)
        pairs = tuple((i, i + 1) for i in range(0, stage.responses - 1, 2))
        return PromptGroup(f"p{number}", ids, tuple(response() for _ in range(stage.responses)), pairs=pairs,
                           margins=tuple(rng.normal(size=len(pairs)).tolist()))

    return [group(number) for number in range(count)]


@dataclasses.dataclass(frozen=True)
class Case:
    """What every layout computes. stage: as `small` gives it. model: on the host. reference: of the groups, if read."""

    stage: TrainShape
    model: Model
    groups: list[PromptGroup]
    reference: list[list[np.ndarray]] | None


def case_of(stage: TrainShape, count: int) -> Case:
    """Random weights and so many random groups for the stage's step."""
    stage = small(stage, count)
    train = stage.options.train
    params = jax.device_get(init_params(jax.random.key(1), stage.config))
    model = trainable(params, stage.config, adapter_of(stage.options.lora), train.seed)
    objective = objective_of(stage.options)(Compute(stage.config))
    groups, rng = made_up(stage, count, objective.reads), np.random.default_rng(1)
    reference = None if not objective.needs_reference else [
        [-rng.gamma(2.0, 1.0, len(r.ids)).astype(np.float32) for r in group.responses] for group in groups]
    return Case(stage, model, groups, reference)


def first_step(case: Case, mesh: Mesh) -> Outcome:
    """The case's step on this mesh, and the loss after it."""
    model, train = case.model, case.stage.options.train
    if mesh.shape["context"] > 1:  # some kernels see whole rows alone
        train = dataclasses.replace(train, attn_implementation="auto")
    objective = objective_of(case.stage.options)(compute_of(case.stage.config, train, mesh))
    if objective.whole_batch:
        train = dataclasses.replace(train, micro_rows=len(case.groups))
    plan = make_plan(case.groups, train, mesh, reference=case.reference, objective=objective)
    program = step_program(model, objective, train, mesh)
    frozen = jax.device_put(model.frozen, program.frozen_shardings) if model.frozen else {}
    local, micro_batches = plan.batch(0)
    batch = place(local, batch_sharding(mesh, axis=1), plan.micro_rows, axis=1)
    rest = np.int32(micro_batches), np.float32(make_schedule(train, plan.steps)(0))
    with jax.default_matmul_precision("highest"):
        state = init_state(program.optimizer, model.trained, program.shardings)
        state, metrics = program.run(state, frozen, batch, *rest)
        everywhere = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
        moments, masters = jax.device_get(everywhere((_first_moment(state.opt_state), state.params)))
        _, after = program.run(state, frozen, batch, *rest)
    gradient = {name: value / (1 - train.adam_beta1) for name, value in _named(moments).items()}
    before = _named(model.trained)
    update = {name: value - before[name] for name, value in _named(masters).items()}
    return Outcome(gradient, update, float(metrics["grad_norm"]), float(metrics["loss"]), float(after["loss"]))


def _first_moment(opt_state: Any) -> Any:
    """Adam's, which after one step is the gradient times 1 - beta1."""
    (found,) = (s.mu for s in jax.tree.leaves(opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    return found


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def compared(stage: str, layout: str, found: Outcome, one: Outcome) -> Difference:
    """`found` against what one device gave."""
    largest = max(float(np.abs(x).max()) for x in one.gradient.values())
    gaps = {"the gradient of " + name: float(np.abs(found.gradient[name] - x).max())
            / (max(float(np.abs(x).max()), _SMALLEST * largest) or 1.0) for name, x in one.gradient.items()}
    for name, ours, theirs, size in (("the gradient's norm", found.norm, one.norm, one.norm),
                                     ("the loss", found.loss, one.loss, one.loss),
                                     ("the loss after the update", found.next_loss, one.next_loss, one.loss)):
        gaps[name] = abs(ours - theirs) / (abs(size) or 1.0)
    where = max(gaps, key=lambda name: gaps[name] if np.isfinite(gaps[name]) else np.inf)
    agree = sum(int(np.sum(np.sign(found.update[name]) == np.sign(x))) for name, x in one.update.items())
    return Difference(stage, layout, gaps[where], where, agree / sum(x.size for x in one.update.values()))


def prove(stages: Sequence[TrainShape], chosen: MeshConfig, devices: Sequence[Any]) -> Iterator[Difference]:
    """Every stage on every layout, the worst that any process saw. All processes call it.

    Raises:
      ValueError: a stage's first step moves nothing, so that there is nothing to compare.
    """
    meshes = layouts(chosen, devices)
    rows = 2 * max(batch_ways(layout.mesh) for layout in meshes)
    for stage in stages:
        case = case_of(stage, rows)
        one = first_step(case, make_mesh(MeshConfig(), jax.local_devices()[:1]))
        if not one.norm > 0:
            raise ValueError(f"{stage.name}: the first step on one device has no gradient, so that nothing would be "
                             "learned on any")
        for layout in meshes:
            found = compared(stage.name, layout.name, first_step(case, layout.mesh), one)
            yield max((Difference(*seen) for seen in gather(list(found))),
                      key=lambda seen: (seen.refused, seen.gap))
