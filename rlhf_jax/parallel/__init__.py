"""Parallelism: the mesh, logical-axis rules, data-parallel evaluation and multi-host start-up."""

from rlhf_jax.parallel.auto import Choice, Need, Room, choose_mesh, room_here
from rlhf_jax.parallel.data_parallel import data_parallel, over_rows
from rlhf_jax.parallel.distributed import divided, gather, gather_counts, initialize, is_main_process, on_main
from rlhf_jax.parallel.mesh import (
    PRESETS,
    Rules,
    auto_inside,
    batch_sharding,
    batch_ways,
    constrainer,
    make_mesh,
    param_shardings,
    replicated,
    spec_shardings,
)
from rlhf_jax.parallel.placement import (
    HandOver,
    hand_over,
    local_mesh,
    place,
    rows_here,
    sampling_mesh,
    shaped,
    tensor_ways,
)
from rlhf_jax.parallel.preemption import EXIT_PREEMPTED, Notice, Preempted, vote, watch_for_preemption

__all__ = [
    "EXIT_PREEMPTED",
    "PRESETS",
    "Choice",
    "HandOver",
    "Need",
    "Notice",
    "Preempted",
    "Room",
    "Rules",
    "auto_inside",
    "batch_sharding",
    "batch_ways",
    "choose_mesh",
    "constrainer",
    "data_parallel",
    "divided",
    "gather",
    "gather_counts",
    "hand_over",
    "initialize",
    "is_main_process",
    "local_mesh",
    "make_mesh",
    "on_main",
    "over_rows",
    "param_shardings",
    "place",
    "replicated",
    "room_here",
    "rows_here",
    "sampling_mesh",
    "shaped",
    "spec_shardings",
    "tensor_ways",
    "vote",
    "watch_for_preemption",
]
