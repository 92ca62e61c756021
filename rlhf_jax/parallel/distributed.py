"""Start-up on one machine or many, by JAX's own cluster detection, and what processes tell each other as JSON.

All processes run the same program on the same files (a run folder lies on storage that all of them see). Whatever only
one may do (writing a record, renaming a folder) is done by the main process inside `on_main`, which is a barrier too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CLUSTER_MARKS = ("SLURM_JOB_ID", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES",
                  "OMPI_COMM_WORLD_SIZE", "RLHF_JAX_CLUSTER")


def initialize() -> None:
    """Joins the cluster this process was started in; does nothing on a lone machine.

    GKE and SLURM are recognised by JAX from their environment, and TPU VMs from the machine's metadata, for which
    RLHF_JAX_CLUSTER must be set; any other launcher sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    """
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    marks = [mark for mark in _CLUSTER_MARKS if mark in os.environ]
    alone = marks == ["TPU_WORKER_HOSTNAMES"] and "," not in hosts
    single_task = marks == ["SLURM_JOB_ID"] and os.environ.get("SLURM_NTASKS", "1") == "1"
    if not marks or alone or single_task or jax.distributed.is_initialized():
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        jax.distributed.initialize()
        return
    missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in os.environ]
    if missing:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} is set and {' and '.join(missing)} is not; every "
                         "process needs all three: the address of process 0, how many there are, and its own number")
    jax.distributed.initialize(address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"]),
                               cluster_detection_method="deactivate")


def is_main_process() -> bool:
    """True on the one process that writes logs and reports."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's `value` (anything JSON holds), in order of the processes, on all of them. All must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    width = 1 << (int(sizes.max()) - 1).bit_length()  # few sizes, so that few programs are compiled
    rows = multihost_utils.process_allgather(np.pad(data, (0, width - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def gather_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The sum of every process's counts, by name, on all of them. All must call it."""
    return dict(sum(map(Counter, gather(dict(counts))), Counter[str]()))


def on_main(fn: Callable[[], Any]) -> Any:
    """What `fn` gives on the main process (anything JSON holds), on all processes, once all have come here.

    Raises:
      What `fn` raises there, and RuntimeError with its message everywhere else.
    """
    if jax.process_count() == 1:
        return fn()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if is_main_process():
        try:
            outcome = {"value": fn()}
        except Exception as error:  # of any kind: the others wait to be told
            failure, outcome = error, {"error": f"{type(error).__name__} on the main process: {error}"}
    outcome = gather(outcome)[0]
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise RuntimeError(outcome["error"])
    return outcome["value"]


def divided(items: Sequence[Any], fn: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """`fn(items)`, each process having done every n-th item; results are anything JSON holds, one an item, in order."""
    count = jax.process_count()
    if count == 1:
        return list(fn(items))
    mine = items[jax.process_index() :: count]
    parts = gather(list(fn(mine)) if len(mine) else [])
    return [parts[i % count][i // count] for i in range(len(items))]
