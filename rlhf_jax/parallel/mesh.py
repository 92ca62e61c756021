"""The device mesh: axes `data` (replicas), `fsdp`, `context`, `tensor`, and which array axis goes where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.params import map_specs, param_specs

_Place = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """Logical axis -> mesh axes. `None` replicates."""

    batch: _Place = ("data", "fsdp")
    seq: _Place = "context"
    embed: _Place = ("fsdp", "context")
    heads: _Place = "tensor"
    kv_heads: _Place = "tensor"
    head_dim: _Place = None
    mlp: _Place = "tensor"
    vocab: _Place = ("tensor", "fsdp", "context")
    layers: _Place = None
    labels: _Place = None
    gate: _Place = None
    rank: _Place = None
    experts: _Place = None
    router: _Place = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The `PartitionSpec` of an array with these logical axes; the first axis that asks for a mesh axis gets it."""
        used: set[str] = set()
        places: list[_Place] = []
        for axis in axes:
            place = None if axis is None else getattr(self, axis)
            names = () if place is None else (place,) if isinstance(place, str) else place
            free = tuple(name for name in names if name not in used)
            used.update(free)
            places.append(None if not free else free[0] if len(free) == 1 else free)
        return PartitionSpec(*places)


PRESETS = {
    "fsdp": AxisRules(),
    "sampling": AxisRules(embed=None, vocab="tensor"),
}
"""`fsdp` also serves tensor parallelism: the `tensor` axis is in it and costs nothing at size 1. Whole weights on every
device (what PyTorch calls DDP) are the same rules on a mesh of `data` alone."""


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the four axes over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else devices
    shape = (config or MeshConfig()).shape(len(devices))
    types = AxisType.Explicit if config and config.axis_types == "explicit" else AxisType.Auto
    return Mesh(_arranged(shape, devices), AXES, axis_types=(types,) * len(AXES))


def is_explicit(mesh: Mesh | AbstractMesh) -> bool:
    """Whether shardings are part of types on this mesh."""
    return AxisType.Explicit in mesh.axis_types


def auto_inside(fn: Callable[..., Any], mesh: Mesh, out: Any) -> Callable[..., Any]:
    """`fn` with shardings left to XLA inside, whatever the mesh's axis types, and its results placed as `out` says.

    out: `NamedSharding`s, a tree of them or a prefix of it. They become types where the mesh has Explicit axes, else
      constraints.
    """
    if not is_explicit(mesh):
        return lambda *arguments: jax.lax.with_sharding_constraint(fn(*arguments), out)
    specs = jax.tree.map(lambda sharding: sharding.spec, out)

    def inside(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.sharding.auto_axes(fn, out_sharding=specs)(*arguments)

    return inside


def _arranged(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the mesh's shape, ordered so that devices adjacent in the mesh are adjacent in the network.

    Slices of TPUs are joined by a slow network, so `data` lies across them, and `fsdp` where `data` is too small.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    outer = [1] * len(shape)
    left = slices
    for axis in range(2):  # data, then fsdp
        outer[axis] = math.gcd(shape[axis], left)
        left //= outer[axis]
    if left > 1:
        raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))} cannot be laid over {slices} slices: data x fsdp "
                         f"must be a multiple of {slices}, since tensor and context stay inside a slice")
    inner = [size // out for size, out in zip(shape, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def _divides(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Drops mesh axes of one device, and those that do not divide a dimension (a scalar head, few key heads), which
    stays whole."""
    places: list[_Place] = []
    for place, size in zip(spec, shape, strict=True):
        asked = () if place is None else (place,) if isinstance(place, str) else tuple(place)
        names = tuple(name for name in asked if mesh.shape[name] > 1)
        fits = size % math.prod(mesh.shape[name] for name in names) == 0
        places.append(None if not names or not fits else names[0] if len(names) == 1 else names)
    return PartitionSpec(*places)


def param_shardings(config: DecoderConfig, mesh: Mesh | AbstractMesh, rules: AxisRules | None = None) -> Any:
    """Tree of `NamedSharding`s, the keys of `param_specs(config)`."""
    return spec_shardings(param_specs(config), mesh, rules)


def spec_shardings(specs: Any, mesh: Mesh | AbstractMesh, rules: AxisRules | None = None) -> Any:
    """`NamedSharding` for each `ParamSpec` of a tree."""
    rules = rules or PRESETS["fsdp"]
    return map_specs(lambda s: NamedSharding(mesh, _divides(rules.spec(s.axes), s.shape, mesh)), specs)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Rows (dimension `axis`) over `data` and `fsdp`, everything else replicated."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """Into how many pieces the batch axis is cut; row counts must be multiples of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def constrainer(mesh: Mesh, rules: AxisRules | None = None) -> Any:
    """The `constrain` argument of `models.forward`: pins activations by their logical axes."""
    activations = dataclasses.replace(rules or PRESETS["fsdp"], embed=None)

    def constrain(x: Array, axes: tuple[str | None, ...]) -> Array:
        spec = _divides(activations.spec(axes), x.shape, mesh)
        return jax.lax.with_sharding_constraint(x, spec if is_explicit(mesh) else NamedSharding(mesh, spec))

    return constrain
