"""Compiles one program and keeps what the compiler says of it: memory, warnings, or that it does not fit."""

from __future__ import annotations

import dataclasses
import re
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.parallel.topology import captured_stderr
from rlhf_jax.plan.programs import Program
from rlhf_jax.training.attention import platform_of

REMATERIALIZED = "Involuntary full rematerialization"
"""XLA's warning that it replicates an array to move it from one sharding to another."""
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. arguments: weights, state, batch. temporaries: all a step makes. peak: at one time."""

    arguments: float
    temporaries: float
    peak: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of a compilation.

    Attributes:
      memory: None where the compiler refused for want of it; `needed` is then what it asked for, if it said.
      text: the program, "" if there is none. rematerialized: how often XLA warned of REMATERIALIZED.
    """

    memory: Memory | None
    needed: float | None
    text: str
    rematerialized: int
    seconds: float


def needed_bytes(message: str) -> float | None:
    """How much memory a RESOURCE_EXHAUSTED message says the program wants; None if it does not say."""
    patterns = (r"Used ([\d.]+)([KMGT]?)i?B? of", r"\(([\d.]+)([KMGT]?)\) exceeds", r"requires ([\d.]+)([KMGT]?)",
                r"allocat\w+ ([\d.]+)([KMGT]?)i?B")
    for pattern in patterns:
        if found := re.search(pattern, message):
            return float(found[1]) * _UNITS[found[2]]
    return None


def compile_program(program: Program) -> Compiled:
    """Lowers and compiles. A program that is too large is a result, any other failure an error."""
    start = time.monotonic()
    with captured_stderr() as stderr:
        try:
            with _seen_by_kernels(_mesh_of(program)):
                compiled = program.jitted.lower(*program.args).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Compiled(None, needed_bytes(str(error)), "", stderr().count(REMATERIALIZED),
                            time.monotonic() - start)
        warnings = stderr().count(REMATERIALIZED)
    return Compiled(_memory(compiled, program), None, compiled.as_text(), warnings, time.monotonic() - start)


def _mesh_of(program: Program) -> Mesh:
    """What the program's arguments are laid over."""
    return next(leaf.sharding.mesh for leaf in jax.tree.leaves(program.args)
                if isinstance(getattr(leaf, "sharding", None), NamedSharding))


def _seen_by_kernels(mesh: Mesh) -> AbstractContextManager[Any]:
    """Pallas asks the mesh around a kernel which GPU to compile for (jax 0.12); a lone GPU's kernels have none."""
    lone = mesh.size == 1 and platform_of(mesh) == "gpu"
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if lone else nullcontext()


def _memory(compiled: Any, program: Program) -> Memory:
    """On TPUs the compiler's own peak. A GPU's program claims all its temporaries as it starts, and a CPU's peak leaves
    them out: there it is arguments, temporaries and what is not donated."""
    m = compiled.memory_analysis()
    arguments, temporaries = float(m.argument_size_in_bytes), float(m.temp_size_in_bytes)
    fresh = max(0.0, float(m.output_size_in_bytes) - float(m.alias_size_in_bytes))
    on_tpu = platform_of(_mesh_of(program)) == "tpu"
    return Memory(arguments, temporaries, float(m.peak_memory_in_bytes) if on_tpu else arguments + temporaries + fresh)
