"""`mesh: auto`: sizes of the mesh axes from what there is and what is asked of it, with the reason in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.parallel.accelerators import Accelerator, memory_of

STATE_BYTES = 18
"""Bytes a trained weight takes: float32 master, two moments and gradient, and a bfloat16 working copy."""
STATE_SHARE = 0.6
"""Of a device's memory, what the training state may take; activations and logits need the rest."""


class Room(NamedTuple):
    """What there is. slices: groups joined by a slow network. per_host: devices of one host. hbm_bytes: of a device."""

    devices: int
    per_host: int
    slices: int = 1
    hbm_bytes: float | None = None


class Need(NamedTuple):
    """What is asked. params: weights. rows: rows of the smallest global batch, None if unknown. heads: of attention."""

    params: int
    rows: int | None = None
    heads: int = 1


class Choice(NamedTuple):
    """A mesh and why."""

    mesh: MeshConfig
    why: str


def room_of(accelerator: Accelerator) -> Room:
    return Room(accelerator.devices, accelerator.per_host, accelerator.slices, accelerator.chip.hbm_bytes)


def room_here(devices: Sequence[Any]) -> Room:
    """The same of devices that are present; GPUs count their hosts as slices.

    A TPU's or CPU's host is a process. Of GPUs, of which a process may have one or all of a host, JAX tells which share
    a host (as `slice_index`), so that the number of processes changes nothing.
    """
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    hosts = slices if devices[0].platform == "gpu" else Counter(device.process_index for device in devices)
    return Room(len(devices), max(hosts.values()), len(slices), memory_of(devices[0]))


def choose_mesh(room: Room, need: Need) -> Choice:
    """Picks the mesh: fsdp alone while the batch has rows for all devices; tensor only for want of rows, and over no
    more devices than a host has; data across slices as long as one slice holds the training state."""
    inner = room.devices // room.slices
    state = STATE_BYTES * need.params
    data, reasons = 1, []
    if room.slices > 1:
        holds = room.hbm_bytes is None or state / inner <= STATE_SHARE * room.hbm_bytes
        data = room.slices if holds else 1
        reasons.append(f"data {room.slices} across the slices, each of which holds the training state" if holds else
                       f"fsdp across the {room.slices} slices, since the training state ({state / 2**30:.0f} GiB) is "
                       "too much for one")
    rest, tensor = room.devices // data, 1
    while need.rows is not None and data * rest // tensor > need.rows and _divides(2 * tensor, room, need, rest):
        tensor *= 2
    fsdp = rest // tensor
    if tensor > 1:
        reasons.append(f"tensor {tensor}, since a batch of {need.rows} rows does not feed {room.devices} devices")
    if need.rows is not None and data * fsdp > need.rows:
        reasons.append(f"some devices idle: {need.rows} rows for {data * fsdp} ways")
    if room.devices == 1:
        reasons.append("one device")
    elif fsdp > 1:
        reasons.insert(0, f"fsdp {fsdp}: {state / fsdp / tensor / 2**30:.1f} GiB of training state per device")
    return Choice(MeshConfig(data, fsdp, 1, tensor), "; ".join(reasons))


def _divides(tensor: int, room: Room, need: Need, rest: int) -> bool:
    return tensor <= room.per_host and need.heads % tensor == 0 and rest % tensor == 0
