"""Devices of an accelerator that is not here: TPU topologies from libtpu's compiler, else virtual CPU devices.

libtpu compiles for any slice on a machine without one; `pip install "rlhf_jax[tpu]"` brings it. For GPUs, and where
libtpu is missing, the same mesh is laid over virtual devices of the CPU.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any

import jax

from rlhf_jax.parallel.accelerators import Accelerator

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # programs are compiled, never run; libtpu's compiler is found nevertheless
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process that compiles aborts on a lock file
    # warnings of the compiler go to stderr, where a plan looks for them, and nothing to files
    "TPU_MIN_LOG_LEVEL": "1", "TPU_STDERR_LOG_LEVEL": "1", "TPU_LOG_DIR": "disabled",
    # what follows silences look-ups of the cloud's metadata
    "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # compilations for absent devices cannot be read back from the cache, and trying warns
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
"""Environment of a process that compiles for absent devices; to be set before jax looks for devices."""


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Everything the process writes to file descriptor 2 meanwhile, C++ included; call what is yielded to read it."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield partial(_contents, sink)
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _contents(sink: IO[bytes]) -> str:
    sink.seek(0)
    return sink.read().decode(errors="replace")


def prepare() -> None:
    """Makes this process one that compiles for absent devices. Before the first use of a jax device."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def has_tpu_compiler() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def compiles_exactly(accelerator: Accelerator) -> bool:
    """Whether the accelerator's own compiler is here; else programs are compiled for virtual CPU devices."""
    return accelerator.chip.kind == "cpu" or (accelerator.chip.kind == "tpu" and has_tpu_compiler())


def devices_of(accelerator: Accelerator) -> Sequence[Any]:
    """As many devices as the accelerator has, to lay a mesh over.

    Raises:
      ValueError: where CPU devices have to stand in and jax already runs with fewer.
    """
    if accelerator.chip.kind == "tpu" and has_tpu_compiler():
        return _tpu_devices(accelerator)
    found = _cpu_devices(accelerator.devices)
    if len(found) < accelerator.devices:
        raise ValueError(f"{accelerator.name} has {accelerator.devices} devices and this process already runs jax with "
                         f"{len(found)} CPU devices; plan in a process of its own")
    return found[: accelerator.devices]


def _cpu_devices(count: int) -> Sequence[Any]:
    with suppress(RuntimeError):  # jax already runs; its devices may be enough
        jax.config.update("jax_num_cpu_devices", count)
    return jax.devices("cpu")


def _tpu_devices(accelerator: Accelerator) -> Sequence[Any]:
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if accelerator.slices > 1:
        options["num_slices"] = accelerator.slices
    if accelerator.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as v4 runs
    if accelerator.per_slice == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    with captured_stderr():  # what libtpu says while it starts helps nobody
        return topologies.get_topology_desc(accelerator.topology_name, "tpu", **options).devices
