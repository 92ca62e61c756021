"""`rlhf-jax plan --prove_layout`: whether training is the same on every layout of the devices that are here."""

from __future__ import annotations

import sys
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.parallel import initialize, is_main_process, room_here
from rlhf_jax.plan.prove import prove
from rlhf_jax.plan.recipe import stages_named, tasks_of
from rlhf_jax.plan.reports import chosen_mesh
from rlhf_jax.plan.shapes import TrainShape


def prove_layout(options: PlanOptions, command: Any, model: str) -> None:
    """Prints how the first step of each training differs from one device's, layout by layout.

    Raises:
      ValueError: where one differs by more than rounding, naming it; or the config trains nothing.
    """
    initialize()
    tasks = stages_named(tasks_of(command, model, options.assume, options.examples), options.stage_names)
    stages = [task.stage for task in tasks if isinstance(task.stage, TrainShape)]
    if not stages:
        raise ValueError("prove_layout compares training steps, and nothing is trained here; there are "
                         + ", ".join(task.stage.name for task in tasks))
    devices = jax.devices()
    mesh = chosen_mesh(getattr(command, "mesh", MeshConfig()), tasks, room_here(devices)).mesh
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "layout", "largest difference", "of", "signs that agree", "same"):
        table.add_column(name, overflow="fold")
    refused = []
    for one in prove(stages, mesh, devices):
        refused += [one.words()] if one.refused else []
        table.add_row(one.stage, one.layout, f"{one.gap:.1e}", one.where, f"{one.signs:.2%}",
                      "[red]NO[/]" if one.refused else "yes")
        if is_main_process():
            print(f"{one.stage} on {one.layout}: done", file=sys.stderr)
    if is_main_process():
        print(f"{len(devices)} devices in {jax.process_count()} process(es)")
        Console(highlight=False, width=None if sys.stdout.isatty() else 180).print(table)
    if refused:
        raise ValueError("training depends on where it runs: " + "; ".join(refused))
