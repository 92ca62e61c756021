"""The verbs that only read: `inspect` and `doctor` print what they found as tables."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlhf_jax.config.commands import DoctorCommand, InspectCommand
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import find_model
from rlhf_jax.parallel import Room, choose_mesh, initialize, make_mesh
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import RenderedRows
from rlhf_jax.workflow.doctor import examine
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.meshes import need_of, resolved

_COLOURS = {"ok": "green", "note": "yellow", "fail": "red"}


def _console() -> Console:
    """As wide as the terminal; wide enough for whole sentences where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=bool(any(columns)))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def inspect(verb: str, command: InspectCommand) -> None:
    """Prints what a checkpoint is; exits with 1 if it would be refused."""
    del verb
    folder, mesh = find_model(command.model_name_or_path), command.mesh
    if not isinstance(mesh, MeshConfig):
        mesh = choose_mesh(Room(command.devices, command.devices), need_of(command)).mesh
    found = inspect_model(folder, mesh, command.devices)
    console, facts, memory = _console(), _table("", ""), _table("", "")
    for name, value in found.facts.items():
        facts.add_row(name, value)
    for name, value in found.memory.items():
        memory.add_row(name, f"{value / 1e9:,.3f} GB")
    console.print(facts)
    console.print("\non one device, whatever the batch:")
    console.print(memory)
    for what, names in (("missing", found.missing), ("unexpected", found.unexpected), ("passed over", found.ignored),
                        ("wrong", found.wrong)):
        if names:
            console.print(f"\n{len(names)} tensors {what}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}")
    if not found.loads:
        raise ValueError("these files are not the model that config.json describes; training and sampling refuse them")


def doctor(verb: str, command: DoctorCommand) -> None:
    """Prints every check; exits with 1 if one failed."""
    del verb
    initialize()
    data = command.data
    checkpoint = Checkpoint.find(command.model_name_or_path, data.render.chat_template_path)
    groups: Sequence[PromptGroup] = ()
    if data.rows.sources:
        rows = dataclasses.replace(data.rows, max_samples=data.rows.max_samples or 64)
        groups = RenderedRows(checkpoint=checkpoint, kind=command.kind, rows=rows, render=data.render,
                              graded=data.graded, benchmarks=data.benchmarks, announce=print).read()
    findings = examine(checkpoint, make_mesh(resolved(command.mesh, command).mesh), groups)
    table = _table("check", "", "seen", "advice")
    for one in findings:
        table.add_row(one.check, f"[{_COLOURS[one.verdict]}]{one.verdict}[/]", one.seen, one.advice)
    _console().print(table)
    failed = [one.check for one in findings if one.verdict == "fail"]
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}")
