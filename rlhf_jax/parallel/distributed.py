"""Start-up on one machine or many, by JAX's own cluster detection, and what processes tell each other as JSON.

All processes run the same program on the same files (a run folder lies on storage that all of them see). Whatever only
one may do (writing a record, renaming a folder) is done by the main process inside `on_main`, which is a barrier too.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CLUSTER_MARKS = ("SLURM_JOB_ID", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES",
                  "OMPI_COMM_WORLD_SIZE", "RLHF_JAX_CLUSTER")
BARRIER_SECONDS = 7200.0
"""How long a process waits for the others where all must come; RLHF_JAX_BARRIER_SECONDS replaces it. The death of one
ends the waiting within two minutes anyway."""
_barriers = itertools.count()


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
    processes, number = _numbers(address)
    if number == 0:
        _check_port(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address))
    waiting = threading.Timer(20.0, lambda: print(
        f"process {number} of {processes} is here and waits for the others to join at {address}; it gives up after "
        "five minutes. See that all are started, and that process 0 can be reached there", file=sys.stderr, flush=True))
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(address, processes, number, cluster_detection_method="deactivate")
    finally:
        waiting.cancel()


def _numbers(address: str) -> tuple[int, int]:
    """(processes, number of this one) from the environment.

    Raises:
      ValueError: if one of the three variables is missing or is no address or number.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} is set and {' and '.join(missing)} is not; every "
                         "process needs all three: the address of process 0, how many there are, and its own number")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} is no HOST:PORT with a port from 1 to 65535; give the "
                         "address of process 0, such as 10.0.0.1:8476")
    processes, number = (os.environ[name] for name in names)
    if not processes.isdecimal() or not number.isdecimal() or int(number) >= int(processes):
        raise ValueError(f"JAX_NUM_PROCESSES = {processes!r} and JAX_PROCESS_ID = {number!r}: give every process the "
                         "number of all, and its own, which counts from 0")
    return int(processes), int(number)


def _check_port(address: str) -> None:
    """Raises ValueError if nobody can listen at the port of `address` here: JAX would end without a word."""
    port, both = int(address.rpartition(":")[2]), socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ValueError(f"port {port} of JAX_COORDINATOR_ADDRESS cannot be used on this machine ({error.strerror}); "
                         "has an earlier run not ended? End it, or give all processes another port") from error


def is_main_process() -> bool:
    """True on the one process that writes logs and reports."""
    return jax.process_index() == 0


@contextmanager
def _time_limit() -> Iterator[None]:
    """Ends this process after `BARRIER_SECONDS` in which not all have come here, and says which have not.

    What waits inside can be neither interrupted nor told a time; it ends by itself, at once, where the connection to
    another process breaks.
    """
    from orbax.checkpoint import multihost

    client, place = multihost.get_jax_distributed_client(), f"rlhf_jax/{next(_barriers)}/"
    here, count = jax.process_index(), jax.process_count()
    seconds = float(os.environ.get("RLHF_JAX_BARRIER_SECONDS", BARRIER_SECONDS))

    def give_up() -> None:
        came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(place)}
        late = ", ".join(str(process) for process in range(count) if process not in came)
        print(f"process {here} of {count} has waited {seconds:g} seconds for process {late or 'none that is late'}; "
              "see the log of that one. Where it only needs longer, set RLHF_JAX_BARRIER_SECONDS on all processes. The "
              "same command continues the run", file=sys.stderr, flush=True)
        os._exit(1)

    client.key_value_set(f"{place}{here}", "")
    watch = threading.Timer(seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        client.key_value_delete(f"{place}{here}")


def gather(value: Any) -> list[Any]:
    """Every process's `value` (anything JSON holds), in order of the processes, on all of them. All must call it.

    Where one does not come within `BARRIER_SECONDS`, the others name it and end.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with _time_limit():
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


def check_shared(folder: Path, patience: float = 10.0) -> None:
    """Raises ValueError on all processes unless a file that the main one puts into `folder` is there for all of them.

    patience: seconds that the storage may take to show it.
    """
    if jax.process_count() == 1:
        return
    name = f".shared-{uuid.uuid4().hex}.tmp"

    def put() -> str:
        (folder / name).touch()
        return name

    path, end = folder / str(on_main(put)), time.monotonic() + patience
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)
    blind = [str(process) for process, seen in enumerate(gather(path.exists())) if not seen]
    on_main(lambda: path.unlink())
    if blind:
        raise ValueError(f"{folder} is not one folder for all processes: what process 0 writes there, process "
                         f"{', '.join(blind)} does not find. Give all of them the same output_dir on storage that they "
                         "share")


def map_over_processes(items: Sequence[Any], fn: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """`fn(items)`, each process having done every n-th item; results are anything JSON holds, one an item, in order."""
    count = jax.process_count()
    if count == 1:
        return list(fn(items))
    mine = items[jax.process_index() :: count]
    parts = gather(list(fn(mine)) if len(mine) else [])
    return [parts[i % count][i // count] for i in range(len(items))]
