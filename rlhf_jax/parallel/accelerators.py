"""Accelerators under the names their clouds give them: chips, memory, speed, links and topology.

A name counts what its vendor counts. `v4-N` and `v5p-N` count **TensorCores**, two per chip: `v5p-16` is 8 chips.
`v5e-N` (also written `v5litepod-N`) and `v6e-N` count **chips**. JAX shows one device per chip for all of them (v4 and
v5p fuse their two cores). `2xv5e-256` is two slices joined by the data-centre network; `8xH100` one host of eight
GPUs, `4x8xH100` four such hosts; `cpu-8` eight virtual devices of a CPU.

All figures are per chip. Bandwidths are in bytes per second and one direction; vendors often print both, added.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
      kind: "tpu", "gpu" or "cpu".
      hbm_bytes: what a program may use; for TPUs the limit their compiler enforces, for GPUs 0.94 of what there is.
      flops: dense bfloat16 peak.
      hbm_bandwidth: bytes per second. link: one direction of one link of the torus, or of all NVLinks together.
      across: to chips of another slice (data-centre network) or another host (InfiniBand), per chip.
      begin, hop: seconds that a collective takes before its first step, and each step however little it sends.
      per_host: chips one host drives. whole_host: a slice of so many has one host, which drives them all.
      cores: what a name such as v5p-16 counts, per chip.
      wrap: the torus closes along a dimension of a multiple of this; 0 where there is no torus.
    """

    name: str
    kind: str
    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    link: float
    across: float
    begin: float
    hop: float
    per_host: int
    cores: int = 1
    wrap: int = 0
    whole_host: int = 0

    def wait(self, ways: int) -> float:
        """Seconds that a collective over so many devices takes if it sends nothing: there and back along each
        dimension of a torus of twos, or around a ring behind a switch."""
        if ways == 1:
            return 0.0
        return self.begin + self.hop * 2 * (math.log2(ways) if self.kind == "tpu" else ways - 1)

    @property
    def ring(self) -> float:
        """Bytes a second that a chip receives in a collective, with a ring along each dimension of a torus."""
        return _DIMENSIONS.get(self.name, 1) * self.link

    def all_reduce(self, size: float, ways: int) -> float:
        """Seconds in which so many neighbours of one host add up `size` bytes each has."""
        links = max(1.0, min(_DIMENSIONS[self.name], math.log2(ways))) if self.kind == "tpu" else 1.0
        return self.wait(ways) + 2 * (ways - 1) / ways * size / (links * self.link)


CHIPS = {
    # All TPUs: a hop takes about 1 us (jax-ml.github.io/scaling-book/sharding). All GPUs: NCCL's own model of its LL
    # protocol over NVLink, 6.6 us and 0.6 a step (src/graph/tuning.cc).
    # docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB at 1,200 GB/s, a torus where all dimensions are multiples
    # of 4. Links: six of 50 GB/s (Jouppi et al., arXiv 2304.01433). Data-centre network: not published, as v5p.
    "v4": Chip("v4", "tpu", 30.75 * _GIB, 275e12, 1.2e12, 50e9, 6.25e9, 0.0, 1e-6, 4, cores=2, wrap=4),
    # docs.cloud.google.com/tpu/docs/v5e and the comparison in .../v6e: 197 TFLOP/s, 16 GB at 819 GB/s, four ports,
    # 400 GB/s in both directions together; pod of 256 has 6.4 Tbit/s of data-centre network. Machines have 1, 4 or 8
    # chips: v5e-8 is one of 8, larger slices are of machines of 4; so are those of v6e.
    "v5e": Chip("v5e", "tpu", 15.75 * _GIB, 197e12, 819e9, 50e9, 3.125e9, 0.0, 1e-6, 4, wrap=16,
                whole_host=8),
    # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB at 2,765 GB/s, 1,200 GB/s in both directions over six
    # links, 50 Gbit/s of data-centre network per chip.
    "v5p": Chip("v5p", "tpu", 95.73 * _GIB, 459e12, 2.765e12, 100e9, 6.25e9, 0.0, 1e-6, 4, cores=2, wrap=4),
    # docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB at 1,640 GB/s, four ports, 800 GB/s in both directions; pod
    # of 256 has 25.6 Tbit/s of data-centre network.
    "v6e": Chip("v6e", "tpu", 31.24 * _GIB, 918e12, 1.64e12, 100e9, 12.5e9, 0.0, 1e-6, 4, wrap=16,
                whole_host=8),
    # NVIDIA H100 and H200 (SXM) data sheets: 989.4 TFLOP/s dense, 80 GB at 3.35 TB/s, 141 GB at 4.8 TB/s, NVLink
    # 900 GB/s in both directions; DGX H100 and H200: one 400 Gbit/s ConnectX-7 port a GPU.
    "H100": Chip("H100", "gpu", 80e9, 989.4e12, 3.35e12, 450e9, 50e9, 6.6e-6, 0.6e-6, 8),
    "H200": Chip("H200", "gpu", 141e9, 989.4e12, 4.8e12, 450e9, 50e9, 6.6e-6, 0.6e-6, 8),
    # virtual devices of one CPU, for trying meshes: round numbers of a small server core, not a vendor's
    "cpu": Chip("cpu", "cpu", 4 * _GIB, 1e11, 1e10, 1e10, 1e10, 0.0, 1e-6, 1_000_000),
}

_TOPOLOGIES = {
    # chips -> shape; docs.cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e}
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
}
_DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
_CPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Some chips and how they hang together.

    Attributes:
      name: as given. chip: what there is of. slices: groups joined by the slower network (slices of TPU, hosts of GPU).
      per_slice: chips of one of them. topology: of one slice, "2x2x2"; empty for GPU and CPU.
    """

    name: str
    chip: Chip
    slices: int
    per_slice: int
    topology: str = ""

    @property
    def devices(self) -> int:
        """Devices that JAX sees: one per chip."""
        return self.slices * self.per_slice

    @property
    def per_host(self) -> int:
        """Chips that one process drives."""
        return self.per_slice if self.per_slice == self.chip.whole_host else min(self.chip.per_host, self.per_slice)

    @property
    def links(self) -> int:
        """Links of a chip that a collective over the whole slice can use: two a dimension where the torus closes."""
        if not self.topology:
            return 1
        sizes = [int(size) for size in self.topology.split("x")]
        closed = [size % self.chip.wrap == 0 for size in sizes]
        if self.chip.wrap == 4:  # optical switches close a cube of 4x4x4 or larger as a whole
            closed = [all(closed)] * len(sizes)
        return max(1, sum(0 if size == 1 else 2 if close else 1 for size, close in zip(sizes, closed, strict=True)))

    @property
    def inside(self) -> float:
        """Bytes a second that a chip can receive from the others of its slice, in a collective over all of them."""
        return self.links * self.chip.link

    @property
    def topology_name(self) -> str:
        """What `jax.experimental.topologies.get_topology_desc` calls a slice."""
        return f"{self.chip.name}:{self.topology}"

    def describe(self) -> str:
        """One line for a person."""
        chips = f"{self.devices} {self.chip.name} chip{'s' * (self.devices > 1)}"
        if self.chip.cores > 1:
            chips += f" ({self.devices * self.chip.cores} TensorCores)"
        word = "slice" if self.chip.kind == "tpu" else "host"
        groups = f" in {self.slices} {word}s" if self.slices > 1 else ""
        shape = f", topology {self.topology}" if self.topology else ""
        return f"{chips}{groups}{shape}, {self.chip.hbm_bytes / _GIB:.1f} GiB each"


def one_host(accelerator: Accelerator) -> Accelerator:
    """A host of it by itself: what one process drives."""
    if accelerator.devices == accelerator.per_host:
        return accelerator
    shape = _TOPOLOGIES[_DIMENSIONS[accelerator.chip.name]][accelerator.per_host] if accelerator.topology else ""
    return dataclasses.replace(accelerator, slices=1, per_slice=accelerator.per_host, topology=shape)


KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
"""What JAX calls a device -> chip."""


def chip_of(device: Any) -> Chip | None:
    """What is known of a device, whether it is here or part of a topology; None of a CPU and of unknown kinds."""
    gpu = next((name for name in ("H100", "H200") if name in device.device_kind), None)
    name = KINDS.get(device.device_kind, gpu)
    return None if name is None else CHIPS[name]


def memory_of(device: Any) -> float | None:
    """Bytes a program may use on a device, whether it is here or of a TPU's topology; None on a CPU."""
    if device.platform == "cpu":
        return None
    chip = chip_of(device)
    if chip is not None and chip.kind == "tpu":
        return chip.hbm_bytes
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_flops_of(device: Any) -> float | None:
    """Dense bfloat16 operations a second of a device at its best; None where its kind is not in the table."""
    chip = chip_of(device)
    return None if chip is None else chip.flops


def known_names() -> list[str]:
    """Every single-slice name, and examples of several slices and hosts."""
    names = [f"{chip}-{count * CHIPS[chip].cores}" for chip, dims in _DIMENSIONS.items() for count in _TOPOLOGIES[dims]]
    gpus = [f"{count}x{chip}" for chip in ("H100", "H200") for count in (1, 2, 4, 8)]
    several = ["2xv5e-256", "4xv5p-128", "2x8xH100", "4x8xH100", "2x8xH200", "4x8xH200"]
    return [*names, *gpus, *several, *(f"cpu-{count}" for count in _CPU_COUNTS)]


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name, known_names(), n=3, cutoff=0.3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ValueError(
        f"no accelerator is called {name!r}{hint} Names are as the clouds spell them: v5p-16 (TensorCores: 8 chips), "
        "v5e-16 and v6e-16 (chips), 2xv5e-256 (slices), 8xH100, 4x8xH100 (hosts of 8), cpu-8")


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of this name.

    Raises:
      ValueError: if there is none; names the nearest.
    """
    plain = name.strip().replace("v5litepod-", "v5e-")
    if found := re.fullmatch(r"(?:(\d+)x)?(\d+)x(H100|H200)", plain, re.IGNORECASE):
        hosts, count, chip = int(found[1] or 1), int(found[2]), CHIPS[found[3].upper()]
        if 1 <= count <= chip.per_host and hosts >= 1:
            return Accelerator(name, chip, hosts, count)
        raise ValueError(f"{name!r}: a host holds 1 to {chip.per_host} {chip.name}; write several hosts as "
                         f"{math.ceil(hosts * count / chip.per_host)}x{chip.per_host}x{chip.name}")
    if found := re.fullmatch(r"cpu-(\d+)", plain):
        return Accelerator(name, CHIPS["cpu"], 1, int(found[1]))
    found = re.fullmatch(r"(?:(\d+)x)?(v4|v5e|v5p|v6e)-(\d+)", plain)
    if not found:
        raise _unknown(name)
    chip = CHIPS[found[2]]
    chips, odd = divmod(int(found[3]), chip.cores)
    shape = _TOPOLOGIES[_DIMENSIONS[chip.name]].get(chips)
    if shape is None or odd or not int(found[1] or 1):
        raise _unknown(name)
    return Accelerator(name, chip, int(found[1] or 1), chips, shape)
