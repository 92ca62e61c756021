"""The verbs that only read: `inspect` and `doctor` print what they found as tables, `report` draws a run again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_jax.cli.run import ReportCommand, report
from rlhf_jax.data.chat import render_all
from rlhf_jax.models import find_model
from rlhf_jax.parallel import MeshConfig, Room, choose_mesh, initialize, make_mesh
from rlhf_jax.workflow.commands import DoctorCommand, InspectCommand
from rlhf_jax.workflow.doctor import examine
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.meshes import need_of, resolved
from rlhf_jax.workflow.options import DataOptions, part
from rlhf_jax.workflow.policy import Checkpoint, read_data

_COLOURS = {"ok": "green", "note": "yellow", "fail": "red"}


def _console() -> Console:
    """As wide as the terminal; wide enough for whole sentences where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=bool(any(columns)))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def inspect(command: InspectCommand) -> None:
    """Prints what a checkpoint is; exits with 1 if it would be refused."""
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


def doctor(command: DoctorCommand) -> None:
    """Prints every check; exits with 1 if one failed."""
    initialize()
    data: DataOptions = part(command, DataOptions)
    checkpoint = Checkpoint.find(command.model_name_or_path, data.chat_template_path)
    groups = []
    if data.sources:
        examples, funnel = read_data(dataclasses.replace(data, max_samples=data.max_samples or 64), command.kind)
        groups = render_all(examples, checkpoint.renderer(data), funnel)
    findings = examine(checkpoint, make_mesh(resolved(command.mesh, command).mesh), groups)
    table = _table("check", "", "seen", "advice")
    for one in findings:
        table.add_row(one.check, f"[{_COLOURS[one.verdict]}]{one.verdict}[/]", one.seen, one.advice)
    _console().print(table)
    failed = [one.check for one in findings if one.verdict == "fail"]
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}")


READERS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "inspect": (InspectCommand, inspect), "doctor": (DoctorCommand, doctor), "report": (ReportCommand, report)}
"""Verb -> (its config, what it does)."""
