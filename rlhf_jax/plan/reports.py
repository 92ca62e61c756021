"""From a parsed config and an accelerator's name to reports: `rlhf-jax plan` and the tables of docs/ show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.models import count_params
from rlhf_jax.parallel.accelerators import Accelerator, find_accelerator
from rlhf_jax.parallel.auto import Choice, Need, Room, choose_mesh, room_of
from rlhf_jax.plan.measure import StagePlan, meshes_to_try, plan_all, runs_apart
from rlhf_jax.plan.optimise import Optimised, optimise
from rlhf_jax.plan.recipe import Task, scope_of, smallest_batch, stages_named, tasks_of
from rlhf_jax.plan.report import Report, mesh_words
from rlhf_jax.plan.shapes import Assumptions, PassShape, SampleShape, Shape, TrainShape


def make_reports(command: Any, model: str, accelerator: str, names: tuple[str, ...], *, assume: Assumptions,
                 examples: int, tries: int, sweep: bool) -> list[Report]:
    """One report for the config's mesh; or one for each sensible mesh."""
    every, found = tasks_of(command, model, assume, examples), find_accelerator(accelerator)
    chosen = chosen_mesh(getattr(command, "mesh", MeshConfig()), every, room_of(found))  # for all, as the run has it
    tasks = stages_named(every, names)
    meshes = meshes_to_try([task.stage for task in tasks], found) if sweep else [chosen.mesh]
    reports: list[Report] = []
    for mesh in meshes:
        known = [(task.stage, plan) for report in reports[:1] for task, plan in zip(tasks, report.stages, strict=True)
                 if runs_apart(plan.stage, found)]
        reports.append(report_of(tasks, mesh, found, model, chosen.why if mesh == chosen.mesh else "", assume, tries,
                                 known=known, scope=scope_of(command)))
    return reports


def make_optimised(command: Any, model: str, accelerator: str, names: tuple[str, ...], *, assume: Assumptions,
                   examples: int, tries: int) -> tuple[Optimised, Report]:
    """What was compiled for each stage and which of it was chosen, and the report of the chosen stages."""
    every, found = tasks_of(command, model, assume, examples), find_accelerator(accelerator)
    asked = chosen_mesh(getattr(command, "mesh", MeshConfig()), every, room_of(found)).mesh
    tasks = stages_named(every, names)
    best = optimise(tasks, asked, found, tries, assume.efficiency)
    return best, report_of([one.candidate.task for one in best.chosen], best.mesh, found, model, "", assume, tries,
                           plan=lambda *_: [one.plan for one in best.chosen], scope=scope_of(command))


def chosen_mesh(mesh: MeshConfig | str, tasks: Sequence[Task], room: Room) -> Choice:
    """The config's own mesh, or what `auto` makes of the room."""
    if isinstance(mesh, MeshConfig):
        return Choice(mesh, "")
    config = tasks[0].stage.config
    return choose_mesh(room, Need(count_params(config), smallest_batch(list(tasks)), config.heads))


def report_of(tasks: Sequence[Task], mesh: MeshConfig, accelerator: Accelerator, model: str, why: str,
              assume: Assumptions, tries: int, known: Sequence[tuple[Shape, StagePlan]] = (),
              plan: Callable[..., list[StagePlan]] = plan_all, scope: Sequence[str] = ()) -> Report:
    """All stages on one mesh. known: of those that do not depend on it, what came out before. scope: what of the run
    is counted."""
    stages = plan([task.stage for task in tasks], mesh, accelerator, tries, known)
    config = tasks[0].stage.config
    calls = dict[str, list[int]]()
    for task, found in zip(tasks, stages, strict=True):
        calls.setdefault(task.stage.name, []).append(task.calls(found.mesh["data"] * found.mesh["fsdp"], found.hosts))
    title = f"{config.family}, {count_params(config):,} parameters ({model})"
    sizes = dict(zip(AXES, mesh.shape(accelerator.devices), strict=True))
    return Report(title, f"{accelerator.name}: {accelerator.describe()}", why or mesh_words(sizes),
                  (*assumed(tasks, stages, accelerator, assume), *scope), tuple(stages), calls, assume.efficiency)


def assumed(tasks: Sequence[Task], stages: Sequence[StagePlan], accelerator: Accelerator, assume: Assumptions
            ) -> list[str]:
    """What the numbers stand on, in sentences. stages: what came out for each task."""
    out = [f"an average prompt of {assume.prompt_tokens} tokens and response of {assume.response_tokens}",
           f"hours at {assume.efficiency:.0%} of the roofline's speed, all devices busy"]
    if accelerator.chip.kind == "gpu":
        out.append("XLA_PYTHON_CLIENT_MEM_FRACTION=0.94; without it JAX takes 0.75 of a GPU's memory")
    for task, found in zip(tasks, stages, strict=True):
        stage, shape = task.stage, None
        if isinstance(stage, TrainShape | PassShape):
            shape = stage.shape()
            out.append(f"{stage.name}: rows of {shape.tokens} tokens, {shape.targets} of them targets, "
                       f"{stage.groups_per_row:g} group(s) per row; {task.groups:,.0f} groups in all, epochs included")
        if isinstance(stage, SampleShape) and stage.name == "decode":
            read = "of responses read as far as lanes have come" if found.kernels else "looked at to their full depth"
            out.append(f"decode: {stage.sampling.slots} slots per host of {stage.prompt_length} prompt tokens, caches "
                       f"{read}; {task.groups:,.0f} prompts in all")
    return out
