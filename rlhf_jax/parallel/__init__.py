"""Parallelism: the mesh, logical-axis rules, data-parallel evaluation and multi-host start-up."""

from rlhf_jax.parallel.auto import Choice, Need, Room, choose_mesh, room_here
from rlhf_jax.parallel.bound import Bound, bound
from rlhf_jax.parallel.data_parallel import data_parallel, over_rows
from rlhf_jax.parallel.distributed import (
    check_shared,
    gather,
    gather_counts,
    initialize,
    is_main_process,
    map_over_processes,
    on_main,
)
from rlhf_jax.parallel.mesh import (
    PRESETS,
    AxisRules,
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
    SamplingLayout,
    local_mesh,
    place,
    reshard_for_sampling,
    rows_here,
    sampling_layout,
    shaped,
)
from rlhf_jax.parallel.preemption import EXIT_PREEMPTED, Notice, Preempted, vote, watch_for_preemption

__all__ = [
    "EXIT_PREEMPTED",
    "PRESETS",
    "AxisRules",
    "Bound",
    "Choice",
    "HandOver",
    "Need",
    "Notice",
    "Preempted",
    "Room",
    "SamplingLayout",
    "auto_inside",
    "batch_sharding",
    "batch_ways",
    "bound",
    "check_shared",
    "choose_mesh",
    "constrainer",
    "data_parallel",
    "gather",
    "gather_counts",
    "initialize",
    "is_main_process",
    "local_mesh",
    "make_mesh",
    "map_over_processes",
    "on_main",
    "over_rows",
    "param_shardings",
    "place",
    "replicated",
    "reshard_for_sampling",
    "room_here",
    "rows_here",
    "sampling_layout",
    "shaped",
    "spec_shardings",
    "vote",
    "watch_for_preemption",
]
