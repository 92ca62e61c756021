"""Parallelism: the mesh, logical-axis rules, data-parallel evaluation and multi-host start-up."""

from rlhf_jax.parallel.auto import Choice, Need, Room, choose_mesh, room_here
from rlhf_jax.parallel.data_parallel import data_parallel
from rlhf_jax.parallel.distributed import initialize, is_main_process
from rlhf_jax.parallel.mesh import (
    AXES,
    PRESETS,
    MeshChoice,
    MeshConfig,
    Rules,
    batch_sharding,
    batch_ways,
    constrainer,
    make_mesh,
    param_shardings,
    replicated,
    spec_shardings,
)

__all__ = [
    "AXES",
    "PRESETS",
    "Choice",
    "MeshChoice",
    "MeshConfig",
    "Need",
    "Room",
    "Rules",
    "batch_sharding",
    "batch_ways",
    "choose_mesh",
    "constrainer",
    "data_parallel",
    "initialize",
    "is_main_process",
    "make_mesh",
    "param_shardings",
    "replicated",
    "room_here",
    "spec_shardings",
]
