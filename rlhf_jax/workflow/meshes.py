"""The mesh of a command: as its config says, or chosen for the devices, the model and the batch (`mesh: auto`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.models import count_params
from rlhf_jax.parallel import Choice, Need, choose_mesh, room_here
from rlhf_jax.workflow.checkpoint import Checkpoint


def resolved(mesh: MeshChoice | None, command: Any) -> Choice:
    """The sizes a command's mesh has on the devices that are here, and why if they were chosen."""
    if isinstance(mesh, MeshConfig) or mesh is None:
        return Choice(mesh or MeshConfig(), "")
    return choose_mesh(room_here(jax.devices()), need_of(command))


def need_of(command: Any) -> Need:
    """What a command's model and batches ask of a mesh."""
    scorer = getattr(getattr(command, "scorer", None), "model", None)
    name = getattr(command, "model_name_or_path", None) or getattr(scorer, "model_name_or_path", None)
    rows = min(_batches(command), default=None)
    if name is None:  # fresh weights are small
        return Need(0, rows)
    config = Checkpoint.find(name).config
    return Need(count_params(config), rows, config.heads)


def _batches(options: Any) -> Iterator[int]:
    """Every batch size in a config, at any depth."""
    if not dataclasses.is_dataclass(options):
        return
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "train_batch_size":
            yield value
        else:
            yield from _batches(value)
