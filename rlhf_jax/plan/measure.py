"""Plans: the programs of a run, compiled for devices that are not here; do they fit, and how long would they take?"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.models import count_params
from rlhf_jax.parallel import batch_ways, make_mesh, sampling_layout
from rlhf_jax.parallel.accelerators import Accelerator, one_host
from rlhf_jax.parallel.topology import compiles_exactly, devices_of
from rlhf_jax.plan.compile import Compiled, compile_program
from rlhf_jax.plan.fitting import Change, smallest_change
from rlhf_jax.plan.hlo import Collective, Module
from rlhf_jax.plan.programs import build, settled
from rlhf_jax.plan.roofline import Times, times, work_of
from rlhf_jax.plan.shapes import SampleShape, Shape, TrainShape, at_a_time

WHOLE_TREE = 0.25
"""Share of all weights; if more of them is gathered for all layers at once, the tree counts as gathered whole."""
FILTERS = "/cond/branch_1_fun/"
"""In the names of what decoding computes only for tokens that are left out (`sampling.decode`)."""
Compile = Callable[[Any], Compiled]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What came out for one stage on one mesh; sizes in bytes on one device, times in seconds of one call.

    Attributes:
      fits: `peak` and `held` together are within `limit`. change: what had to be changed for it; empty for nothing.
      more_calls: how many times as often a program runs that was changed to do less at a time.
      hosts: how many such meshes work side by side. why: the mesh, if the sampler chose it, or rows and
        recomputation, if the training did. needed: what a refused
        program asked for.
      exact: compiled by the accelerator's own compiler; else by the CPU's, for as many virtual devices.
      held: what the run keeps beside the program: float32 weights, and `beside`: where decoding has weights of
        its own (merged, in eight bits), those that they were made of.
      collectives: kind -> (runs, bytes received). across: bytes of them between slices or hosts.
      whole_tree: bytes of weights gathered for all layers at once, if that is much of the model; else 0.
      wide: bytes of float32 gathers of weights' size although the compute dtype is narrower.
      kernels: hand-written (Pallas) kernels in the program. rematerialized: XLA's warnings.
      useful, executed: operations of one call, over all devices.
    """

    stage: str
    mesh: dict[str, int]
    fits: bool
    limit: float
    exact: bool
    change: tuple[str, ...] = ()
    more_calls: float = 1.0
    needed: float | None = None
    hosts: int = 1
    why: str = ""
    held: float = 0.0
    beside: float = 0.0
    arguments: float = 0.0
    formula_arguments: float = 0.0
    temporaries: float = 0.0
    peak: float = 0.0
    collectives: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    across: float = 0.0
    whole_tree: float = 0.0
    wide: float = 0.0
    kernels: int = 0
    rematerialized: int = 0
    useful: float = 0.0
    executed: float = 0.0
    compute_s: float = 0.0
    hbm_s: float = 0.0
    links_s: float = 0.0
    compile_s: float = 0.0

    @property
    def times(self) -> Times:
        return Times(self.compute_s, self.hbm_s, self.links_s, in_turn=self.stage == "decode")

    @property
    def received(self) -> float:
        """Bytes a device receives from others in one call."""
        return sum(size for _, size in self.collectives.values())


class Place(NamedTuple):
    """Where a stage runs: on one mesh over everything, or on a mesh of its own on each host; why, if it was chosen."""

    mesh: Mesh
    accelerator: Accelerator
    hosts: int
    why: str = ""


def placed(stage: Shape, mesh: MeshConfig, accelerator: Accelerator, devices: Sequence[Any]) -> Place:
    """Sampling and scoring run on every host by itself, as the stages lay themselves; the rest on the whole mesh."""
    hosts = accelerator.devices // accelerator.per_host
    host = one_host(accelerator)
    if isinstance(stage, SampleShape):
        over = make_mesh(MeshConfig(), devices if hosts == 1 else devices_of(host))
        chip = None if accelerator.chip.kind == "cpu" else accelerator.chip
        laid = sampling_layout(stage.config, jnp.dtype(stage.dtype), over, stage.settings, chip)
        return Place(laid.mesh, host, hosts, laid.why)
    if runs_apart(stage.name, accelerator):
        return Place(make_mesh(MeshConfig(), devices_of(host)), host, hosts)
    return Place(make_mesh(mesh, devices), accelerator, 1)


def resident_bytes(stage: Shape, mesh: MeshConfig, accelerator: Accelerator) -> float:
    """Bytes on a device of what a run holds and the program does not see: float32 weights on the training mesh.

    Training consumes what it starts from, but for the weights under an adapter, which is merged into them at the end;
    the reference pass runs beside the policy and the reference's own masters; sampling and scoring beside the policy.
    A scorer has its policy's size, or near it.
    """
    data = mesh.shape(accelerator.devices)[0]
    consumed = isinstance(stage, TrainShape) and not stage.options.lora.use_peft
    copies = 0 if consumed else {"reference": 2}.get(stage.name, 1)
    return copies * 4 * count_params(stage.config) * data / accelerator.devices


def measure(stage: Shape, mesh: MeshConfig, accelerator: Accelerator, devices: Sequence[Any],
            compile_with: Compile = compile_program) -> StagePlan:
    """Compiles one stage for one mesh and reads everything off."""
    laid, where, hosts, why = placed(stage, mesh, accelerator, devices)
    stage, divided = settled(stage, laid, accelerator.chip)
    program = build(stage, laid)
    compiled = compile_with(program)
    sizes = {axis: laid.shape[axis] for axis in AXES}
    limit, exact = accelerator.chip.hbm_bytes, compiles_exactly(accelerator)
    plan = StagePlan(stage.name, sizes, False, limit, exact, needed=compiled.needed, hosts=hosts, why=why or divided,
                     formula_arguments=program.argument_bytes, rematerialized=compiled.rematerialized,
                     compile_s=compiled.seconds, held=resident_bytes(stage, mesh, accelerator) + program.beside,
                     beside=program.beside)
    if compiled.memory is None:
        return plan
    module = Module(compiled.text, trips=program.trips, layers=program.layers, groups=_groups(laid, where),
                    weights=program.weights)
    work = work_of(stage, laid, module.kernels)
    found = times(work, _at_work(module.collectives, stage), where)
    plan = dataclasses.replace(plan, useful=work.useful, executed=work.executed, compute_s=found.compute,
                               hbm_s=found.hbm, links_s=found.links)
    return dataclasses.replace(
        plan, fits=compiled.memory.peak + plan.held <= limit, arguments=compiled.memory.arguments,
        temporaries=compiled.memory.temporaries, peak=compiled.memory.peak, collectives=module.summary(),
        across=sum(c.received for c in module.collectives if c.across),
        whole_tree=_whole_tree(module.collectives, program.param_bytes), wide=_wide(module.collectives, stage),
        kernels=module.kernels)


def _groups(mesh: Any, accelerator: Accelerator) -> list[int]:
    """The slice (or the host of GPUs) of each device of the mesh, in the program's order."""
    if accelerator.chip.kind == "tpu" and compiles_exactly(accelerator):
        return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    return [place // accelerator.per_slice for place in range(accelerator.devices)]


def _at_work(collectives: Sequence[Collective], stage: Shape) -> list[Collective]:
    """Without those in the branch for filters of a sampler that leaves no token out; it never takes that one."""
    idle = isinstance(stage, SampleShape) and not stage.sampling.filters
    return [c for c in collectives if not (idle and FILTERS in c.op)]


def _whole_tree(collectives: Sequence[Collective], param_bytes: int) -> float:
    gathered = sum(c.result_bytes for c in collectives if c.kind == "all-gather" and c.weights and not c.in_layers)
    return gathered if gathered >= WHOLE_TREE * param_bytes else 0.0


def _wide(collectives: Sequence[Collective], stage: Shape) -> float:
    """float32 gathers as large as a weight matrix of a layer, where the computation is narrower; what sampling gathers
    in float32 are logits."""
    dtype = stage.options.train.dtype if isinstance(stage, TrainShape) else stage.dtype
    least = 4 * stage.config.embed * stage.config.kv_heads * stage.config.head_dim
    if dtype == "float32" or isinstance(stage, SampleShape):
        return 0.0
    return sum(c.received for c in collectives if c.kind == "all-gather" and c.dtype == "f32"
               and c.result_bytes >= least)


def plan_stage(stage: Shape, mesh: MeshConfig, accelerator: Accelerator, devices: Sequence[Any], tries: int,
               compile_with: Compile = compile_program) -> StagePlan:
    """The stage as asked for; where it does not fit, the smallest change within `tries` compilations that does."""
    first = measure(stage, mesh, accelerator, devices, compile_with)
    if first.fits or not tries:
        return first
    stage, _ = settled(stage, placed(stage, mesh, accelerator, devices).mesh, accelerator.chip)

    def attempt(change: Change) -> StagePlan:
        found = measure(change.stage, change.mesh, accelerator, devices, compile_with)
        more = at_a_time(stage, _ways(first)) / at_a_time(change.stage, _ways(found))
        return dataclasses.replace(found, change=change.words, more_calls=more)

    better = smallest_change(stage, mesh, accelerator, tries, attempt, lambda found: found.fits)
    return first if better is None else dataclasses.replace(better[1], needed=first.needed or first.peak)


def _ways(plan: StagePlan) -> int:
    """Pieces that the mesh cuts a batch into."""
    return plan.mesh["data"] * plan.mesh["fsdp"]


def meshes_to_try(stages: Sequence[Shape], accelerator: Accelerator) -> list[MeshConfig]:
    """Sensible meshes: fsdp alone, with tensor over up to a host's devices, with data across slices or hosts."""
    heads = min(stage.config.kv_heads for stage in stages)
    found = []
    for data in dict.fromkeys((1, accelerator.slices, 2)):
        for tensor in (1, 2, 4, 8):
            if accelerator.devices % (data * tensor) or tensor > accelerator.per_host or heads % tensor:
                continue
            found.append(MeshConfig(data, accelerator.devices // tensor // data, 1, tensor))
    return found


def runs_apart(name: str, accelerator: Accelerator) -> bool:
    """Whether a stage runs on each host by itself, so that the training mesh changes nothing but what it holds."""
    return name in ("prefill", "decode") or (name == "score" and accelerator.devices > accelerator.per_host)


def plan_all(stages: Sequence[Shape], mesh: MeshConfig, accelerator: Accelerator, tries: int,
             known: Sequence[tuple[Shape, StagePlan]] = (),
             said: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> list[StagePlan]:
    """Every stage on one mesh; says what is at work and what came of it.

    known: stages that run apart, as they came out on another mesh.
    """
    devices = devices_of(accelerator)
    ways = batch_ways(make_mesh(mesh, devices))
    found = []
    for stage in stages:
        if (before := next((plan for shape, plan in known if shape is stage), None)) is not None:
            held = resident_bytes(stage, mesh, accelerator) + before.beside
            found.append(dataclasses.replace(before, held=held, fits=before.peak + held <= before.limit))
            continue
        said(f"compiling {stage.name} for {accelerator.name} ({jax.__version__}, {ways} ways) ...")
        found.append(plan_stage(stage, mesh, accelerator, devices, tries))
        said(told(found[-1]))
    return found


def told(plan: StagePlan) -> str:
    """A line on a stage that was just compiled; the tables have the rest."""
    changed = f", with {', '.join(plan.change)}" if plan.change else ""
    needed = (plan.peak or plan.needed or math.nan) + plan.held
    size = "its memory is not told" if math.isnan(needed) else f"{needed / 2**30:.1f} of {plan.limit / 2**30:.1f} GiB"
    taken = f", {plan.times.step:.3g} s a call at the vendor's peak" if plan.fits else ""
    return (f"  {plan.stage} {'fits' if plan.fits else 'does NOT fit'}{changed}: {size}{taken}; "
            f"compiled in {plan.compile_s:.0f} s")
