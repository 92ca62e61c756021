"""The fit loop: a plan of batches, one compiled step, metrics one step late, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.packing import default_row_length
from rlhf_jax.models import DecoderConfig, Params, cast
from rlhf_jax.parallel import (
    Preempted,
    batch_sharding,
    batch_ways,
    gather,
    place,
    replicated,
    rows_here,
    shaped,
    spec_shardings,
    vote,
)
from rlhf_jax.parallel.accelerators import chip_of, memory_of
from rlhf_jax.parallel.micro_batches import StepNeed, divide_step, pass_rows
from rlhf_jax.training.attention import WHOLE_ROWS, row_attention
from rlhf_jax.training.checkpoints import Checkpoints
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.training.evaluate import make_evaluator
from rlhf_jax.training.mfu import FlopsOf, utilisation
from rlhf_jax.training.objectives import Objective
from rlhf_jax.training.optimizer import make_optimizer, make_schedule
from rlhf_jax.training.step import (
    Assemble,
    Drop,
    TrainState,
    fresh_state,
    init_state,
    make_train_step,
    state_shardings,
    whole,
)

Reporter = Callable[[int, int, dict[str, float]], None]
"""(step, steps, metrics) -> None: shows progress; called once per step with the newest metrics known."""
OnRow = Callable[[dict[str, Any]], None]
"""Gets each row of `FitResult.log_history`, in its order."""


OnResume = Callable[[int, int], None]
"""(step, steps) -> None: training goes on after a step that an earlier command saved."""


def _silent(step: int, steps: int, metrics: dict[str, float]) -> None:
    del step, steps, metrics


def _unheard(row: dict[str, Any]) -> None:
    del row


def _unresumed(step: int, steps: int) -> None:
    del step, steps


class NonFiniteLoss(RuntimeError):
    """Training produced a NaN or an infinity; the last checkpoint before it is kept."""


@dataclasses.dataclass(frozen=True)
class FitResult:
    """params: the trained tree, float32. log_history: one dict a logging step, in Hugging Face's layout."""

    params: Params
    log_history: list[dict[str, Any]]
    steps: int
    compiles: int
    efficiency: float


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights as a fit sees them: what is trained, what is frozen, and how the two make a parameter tree.

    drop: makes of that tree one with dropout, in training alone.
    """

    trained: Params
    specs: Any
    frozen: Params = dataclasses.field(default_factory=dict)
    frozen_specs: Any = dataclasses.field(default_factory=dict)
    assemble: Assemble = whole
    drop: Drop | None = None


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A compiled-on-demand training step and where its arguments lie; built from shapes, so no weight is needed.

    run: (state, frozen, batch [accumulation, rows, ...], micro-batches, learning rate) -> (state, metrics).
    """

    run: Any
    optimizer: Any
    shardings: TrainState
    frozen_shardings: Any


def step_program(model: Model, objective: Objective, config: TrainConfig, mesh: Mesh, shape: Hashable = None
                 ) -> StepProgram:
    """The step of a fit; `model` may hold arrays or their shapes. shape: of the batches, see `make_train_step`."""
    optimizer = make_optimizer(config, model.specs)
    shardings = state_shardings(optimizer, model.trained, spec_shardings(model.specs, mesh), mesh)
    frozen_shardings = spec_shardings(model.frozen_specs, mesh) if model.frozen else replicated(mesh)
    step = make_train_step(objective, optimizer, mesh, shardings, assemble=model.assemble, drop=model.drop,
                           seed=config.seed, frozen_shardings=frozen_shardings, dtype=config.dtype, shape=shape)
    return StepProgram(step, optimizer, shardings, frozen_shardings)


def make_plan(groups: Sequence[PromptGroup], config: TrainConfig, mesh: Mesh, *,
              reference: Sequence[Sequence[np.ndarray]] | None = None, objective: Objective | None = None) -> BatchPlan:
    """The batches of a fit on this mesh; the global batch is the same on any mesh.

    objective: whose numbers are packed; one that needs a batch in one micro-batch gets no more rows than that has.
    With `micro_rows: auto` as many rows as a pass takes, until `settled` has looked at the memory.
    """
    plan = BatchPlan(groups, config.train_batch_size, config.row_length or default_row_length(groups), 1,
                     config.num_train_epochs, config.seed, max_steps=config.max_steps, reference=reference,
                     values=objective.reads if objective else ())
    return _divided(plan, config, mesh, objective is not None and objective.whole_batch)


def _divided(plan: BatchPlan, config: TrainConfig, mesh: Mesh, together: bool) -> BatchPlan:
    ways = batch_ways(mesh)
    rows = ways * pass_rows(config)
    if together:
        most = -(-plan.largest_step // ways) * ways
        rows = most if config.micro_rows == "auto" else min(rows, most)
    return plan.divided(rows, rows_here(batch_sharding(mesh), rows))


def settled(plan: BatchPlan, config: TrainConfig, model: DecoderConfig, mesh: Mesh, *, frozen: bool = False,
            together: bool = False) -> tuple[BatchPlan, TrainConfig, str]:
    """`micro_rows` and `remat` in numbers and words where they are `auto`, by the memory of the mesh's devices.

    Args:
      frozen: an adapter is trained. together: the loss looks across a batch.

    Returns:
      The plan in such micro-batches, the options, and why ("" where nothing was open).
    """
    if "auto" not in (config.micro_rows, config.remat):
        return plan, config, ""
    scores = row_attention(config.attn_implementation, model, mesh, plan.row_length) is WHOLE_ROWS
    need = StepNeed(model, config, frozen, plan.row_length, plan.largest_step, together, scores)
    limits = gather(memory_of(jax.local_devices()[0]))  # every process must divide alike
    memory = None if None in limits else min(limits)
    micro_rows, remat, why = divide_step(need, mesh.shape, chip_of(mesh.devices.flat[0]), memory)
    config = dataclasses.replace(config, micro_rows=micro_rows, remat=remat)
    return _divided(plan, config, mesh, together), config, why


def fit(
    model: Model,
    objective: Objective,
    plan: BatchPlan,
    config: TrainConfig,
    mesh: Mesh,
    *,
    folder: Path | None = None,
    eval_groups: Sequence[PromptGroup] | None = None,
    eval_reference: Sequence[Sequence[np.ndarray]] | None = None,
    report: Reporter = _silent,
    on_row: OnRow = _unheard,
    on_resume: OnResume = _unresumed,
    flops: FlopsOf | None = None,
    consume: bool = False,
) -> FitResult:
    """Trains to the end of the plan, from the last checkpoint in `folder` if there is one.

    Args:
      on_row: gets the rows of the log as they are made; after a restart those of the checkpoint come first, again.
      on_resume: is told the step of the checkpoint that is gone on from, and the number of steps.
      flops: what training on some groups takes; metric lines then say how much of it a device does per second.
      consume: if true, `fit` takes ownership of `model.trained` and deletes its device arrays; otherwise it keeps a
        copy, at 4 extra bytes per weight. Leaves may lie on the host (numpy), as a fresh head does.

    Raises:
      NonFiniteLoss: at the first step whose loss is not a finite number.
      Preempted: if the platform wants the machine back; a checkpoint of the last step is in `folder` then.
    """
    program = step_program(model, objective, config, mesh, (plan.accumulation, plan.micro_rows, plan.shape))
    dtype = jnp.dtype(config.dtype)
    frozen = jax.device_put(cast(model.frozen, dtype), program.frozen_shardings) if model.frozen else {}
    log: list[dict[str, Any]] = []
    unlogged: list[dict[str, float]] = []
    evaluate = None
    if eval_groups:
        evaluator = make_evaluator(objective, eval_groups, plan, mesh, reference=eval_reference,
                                   assemble=model.assemble, dtype=dtype)

        def evaluate(state: TrainState) -> dict[str, float]:
            return {f"eval_{name}": value for name, value in evaluator(state.params, frozen).items()}

    with count_compiles() as compiles:
        checkpoints = Checkpoints(folder, config.save_total_limit) if folder else None
        try:
            if checkpoints and (last := checkpoints.latest()) is not None:
                like = shaped(jax.eval_shape(partial(fresh_state, program.optimizer), model.trained), program.shardings)
                if consume:  # the start and what is read back need not both fit
                    for array in jax.tree.leaves(model.trained):
                        if isinstance(array, jax.Array):  # a fresh head or adapter is made on the host
                            array.delete()
                state, log, unlogged = checkpoints.restore(last, like)
                on_resume(last, plan.steps)
            else:
                state = init_state(program.optimizer, model.trained, program.shardings, donate=consume)
            for row in log:
                on_row(row)
            loop = _Loop(plan, config, mesh, checkpoints, report, on_row, flops, log, unlogged)
            state = loop.run(program.run, state, frozen, evaluate)
        finally:  # a save under way is finished, whatever stopped the run
            if checkpoints:
                checkpoints.close()
    return FitResult(state.params, loop.log, plan.steps, compiles.programs, plan.efficiency)


class _Loop:
    """Walks the plan; keeps what is not yet logged."""

    def __init__(self, plan: BatchPlan, config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints | None,
                 report: Reporter, on_row: OnRow, flops: FlopsOf | None, log: list[dict[str, Any]],
                 unlogged: list[dict[str, float]]):
        self.plan, self.config, self.checkpoints, self.report, self.log = plan, config, checkpoints, report, log
        self._on_row = on_row
        self._mesh, self._flops, self._timed_from = mesh, flops, 0
        self._rows = batch_sharding(mesh, axis=1)
        self._learning_rate = make_schedule(config, plan.steps)
        self._window = unlogged
        self._clock = time.perf_counter()

    def run(self, step_fn: Any, state: TrainState, frozen: Params, evaluate: Any) -> TrainState:
        start, steps = int(state.step), self.plan.steps
        self._timed_from = start
        waiting: tuple[int, Any] | None = None
        leaving: Any = False
        if evaluate is not None and start and self._evaluates(start) and not self._evaluated(start):
            self._keep(start, evaluate(state))  # the run ended between the checkpoint and this
        for step, local, micro_batches in self.plan.iterate(start):
            batch = place(local, self._rows, self.plan.micro_rows, axis=1)
            rate = np.float32(self._learning_rate(step))
            state, metrics = step_fn(state, frozen, batch, np.int32(micro_batches), rate)
            if waiting is not None:
                self._record(*waiting)  # one step late: the device is already at work on the next one
            waiting = (step + 1, metrics)
            last, leave = step + 1 == steps, bool(leaving)  # as was voted one step ago
            leaving = vote()
            evaluating = self._evaluates(step + 1)
            saving = last or leave or _due(step + 1, self.config.save_steps)
            if evaluating or saving:
                self._record(*waiting)
                waiting = None
            paused = time.perf_counter()
            if self.checkpoints and saving:  # before evaluating: whatever comes of that, the step is not lost
                self.checkpoints.save(step + 1, state, self.log, self._window)
            if leave and not last:
                raise Preempted(f"step {step + 1} of {steps} is {'saved' if self.checkpoints else 'not to be saved'}")
            if evaluate is not None and evaluating:
                self._keep(step + 1, evaluate(state))
            self._clock += time.perf_counter() - paused  # what is measured is training
        return state

    def _evaluates(self, step: int) -> bool:
        return step == self.plan.steps or _due(step, self.config.eval_steps)

    def _evaluated(self, step: int) -> bool:
        return any(row["step"] == step and "eval_loss" in row for row in self.log)

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        self.log.append({"step": step, "epoch": round(step / self.plan.steps_per_epoch, 4), **metrics})
        self._on_row(self.log[-1])

    def _record(self, step: int, metrics: Any) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            raise NonFiniteLoss(
                f"step {step}: loss = {values['loss']}, grad_norm = {values['grad_norm']}. Lower learning_rate, check "
                "the data for extreme margins or scores, or try dtype float32; the last checkpoint is untouched")
        self._window.append(values)
        self.report(step, self.plan.steps, values)
        if step % self.config.logging_steps == 0 or step == self.plan.steps:
            seconds = time.perf_counter() - self._clock
            row = {name: float(np.nanmean([w[name] for w in self._window])) if not all(
                math.isnan(w[name]) for w in self._window) else float("nan") for name in values}
            timed = range(self._timed_from, step)  # fewer than the window's steps after a restart
            tokens = sum(w["num_tokens"] for w in self._window[-len(timed):])
            row |= {"learning_rate": values["learning_rate"], "tokens_per_second": tokens / max(seconds, 1e-9)}
            if self._flops is not None:
                groups = [self.plan.groups[i] for number in timed for i in self.plan.members(number)]
                row |= utilisation(self._flops(groups), seconds, self._mesh)
            self._keep(step, row)
            self._window, self._clock, self._timed_from = [], time.perf_counter(), step


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def write_trainer_state(folder: Path, result: FitResult, plan: BatchPlan) -> None:
    """trainer_state.json with `log_history`, as existing plotting scripts read it."""
    state = {"global_step": result.steps, "max_steps": plan.steps, "epoch": result.steps / plan.steps_per_epoch,
             "packing_efficiency": result.efficiency, "compiled_programs": result.compiles,
             "log_history": result.log_history}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=1) + "\n")
