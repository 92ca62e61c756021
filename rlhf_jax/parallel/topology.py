"""Devices of an accelerator that is not here, from its own compiler: libtpu's for TPUs, XLA's for NVIDIA GPUs.

Both compile on a machine without an accelerator or a driver: `pip install "rlhf_jax[tpu]"` brings libtpu, `pip install
"rlhf_jax[plan-gpu]"` jax's CUDA plugin and ptxas. Where they are missing, the same mesh is laid over virtual devices of
the CPU.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
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


def has_gpu_compiler() -> bool:
    """Whether jax's CUDA plugin is here, of jax's own version, and NVIDIA's assembler; no driver is needed."""
    try:
        return version("jax-cuda12-pjrt") == version("jax") and bool(version("nvidia-cuda-nvcc-cu12"))
    except PackageNotFoundError:
        return False


_HAS_COMPILER: dict[str, Callable[[], bool]] = {"cpu": lambda: True, "tpu": has_tpu_compiler, "gpu": has_gpu_compiler}


def compiles_exactly(accelerator: Accelerator) -> bool:
    """Whether the accelerator's own compiler is here; else programs are compiled for virtual CPU devices."""
    return _HAS_COMPILER[accelerator.chip.kind]()


def devices_of(accelerator: Accelerator) -> Sequence[Any]:
    """As many devices as the accelerator has, to lay a mesh over.

    Raises:
      ValueError: where CPU devices have to stand in and jax already runs with fewer.
    """
    if accelerator.chip.kind != "cpu" and compiles_exactly(accelerator):
        return _tpu_devices(accelerator) if accelerator.chip.kind == "tpu" else _gpu_devices(accelerator)
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
    if accelerator.per_slice == accelerator.per_host:  # libtpu's own guess is machines of four
        options["chips_per_host_bounds"] = tuple(map(int, f"{accelerator.topology}x1".split("x")[:3]))
    with captured_stderr():  # what libtpu says while it starts helps nobody
        return topologies.get_topology_desc(accelerator.topology_name, "tpu", **options).devices


_GPU_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: BANDWIDTH l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: MEMORY shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NAME"
"""
"""What XLA's compiler asks of a Hopper GPU (stream_executor.GpuTargetConfigProto), as an H100 answers."""
_GPUS = {"H100": ("NVIDIA H100 80GB HBM3", 84_942_979_072), "H200": ("NVIDIA H200", 150_000_000_000)}
"""What a GPU calls itself, and all the memory that it has, in bytes."""


def _gpu_devices(accelerator: Accelerator) -> Sequence[Any]:
    """GPUs of one process for each host."""
    from jax.experimental import topologies

    chip = accelerator.chip
    name, memory = _GPUS[chip.name]
    target = _GPU_TARGET.replace("NAME", name).replace("MEMORY", str(memory)).replace(
        "BANDWIDTH", f"{chip.hbm_bandwidth:.0f}")
    with captured_stderr():  # that there is no driver
        return topologies.get_topology_desc(chip.name, "cuda", target_config=target,
                                            topology=f"{accelerator.slices}x1x{accelerator.per_slice}").devices
