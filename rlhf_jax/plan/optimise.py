"""`rlhf-jax plan --optimise true`: other layouts and sizes of a recipe's stages, compiled, measured and ranked.

Estimates decide in which order candidates are compiled and nothing else. What is shown and chosen was compiled.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.fields import declared
from rlhf_jax.parallel.accelerators import Accelerator
from rlhf_jax.parallel.decoding import token_bytes
from rlhf_jax.parallel.micro_batches import candidates, step_bytes, step_seconds
from rlhf_jax.parallel.topology import devices_of
from rlhf_jax.plan.measure import StagePlan, measure, meshes_to_try, runs_apart
from rlhf_jax.plan.programs import step_need
from rlhf_jax.plan.recipe import Task
from rlhf_jax.plan.report import gib, mesh_words, useful_share
from rlhf_jax.plan.shapes import SampleShape, TrainShape, reference_shape

_ROW_LENGTHS = (1.0, 1.125, 1.25, 1.5, 2.0)
"""Rows so many times as long as the config's."""
_SLOTS = (1, 2, 3, 4, 6, 8)
_SHARES = (0.5, 0.3, 0.2)
"""Of what lanes may write, where responses lie in pages."""
_REMEDY = "give more --tries, or more devices"
_ROOM = 1.15
"""Estimates may be off by so much: what is estimated to need more than this share of the memory is not compiled."""


class Candidate(NamedTuple):
    """A stage with other options, on a mesh. keys: the options that a config would set for it."""

    task: Task
    mesh: MeshConfig
    keys: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate and what the compiler made of it. hours: of the whole recipe. useful: share of the peak's speed."""

    candidate: Candidate
    plan: StagePlan
    hours: float
    useful: float

    @property
    def memory(self) -> float:
        """Bytes on one device."""
        return self.plan.peak + self.plan.held


@dataclasses.dataclass(frozen=True)
class Optimised:
    """tried: by stage, the config's own first. mesh: of the stages that run on all devices. chosen: by stage, on it."""

    tried: Mapping[str, Sequence[Tried]]
    mesh: MeshConfig
    chosen: Mapping[str, Tried]


def frontier(tried: Sequence[Tried]) -> list[Tried]:
    """Those that fit and that no other beats in both hours and memory, fastest first."""
    best: list[Tried] = []
    for one in sorted((t for t in tried if t.plan.fits), key=lambda t: (t.hours, t.memory)):
        if not best or one.memory < best[-1].memory:
            best.append(one)
    return best


def optimise(tasks: Sequence[Task], mesh: MeshConfig, accelerator: Accelerator, tries: int, efficiency: float, *,
             compiled: Callable[..., StagePlan] = measure,
             said: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Optimised:
    """Compiles up to `tries` candidates of each stage, the config's own among them, and picks the fastest that fit.

    Stages that share the mesh are chosen together: the mesh on which they take the fewest hours in all.

    Raises:
      ValueError: some stage fits in no form that was tried.
    """
    devices = devices_of(accelerator)
    meshes = list(dict.fromkeys([_sizes(mesh, accelerator), *meshes_to_try([t.stage for t in tasks], accelerator)]))
    preferences = any(task.stage.name == "dpo" for task in tasks)
    tried: dict[str, list[Tried]] = {}
    for task in tasks:
        name = task.stage.name
        here = [meshes[0]] if runs_apart(name, accelerator) else meshes
        if name == "reference" and preferences:  # in the rows of its training, whose options it shares
            continue
        tried[name] = []
        for number, candidate in enumerate(_candidates(task, here, accelerator, tries)):
            said(f"compiling {name}, {number + 1} of at most {tries}: {words(candidate)}")
            tried[name].append(_tried(candidate, accelerator, devices, efficiency, compiled))
    chosen_mesh = _best_mesh(tried, accelerator)
    chosen = {name: _fastest(name, some, None if runs_apart(name, accelerator) else chosen_mesh)
              for name, some in tried.items()}
    for task in tasks:
        if task.stage.name not in chosen:
            train = chosen["dpo"].candidate.task.stage
            assert isinstance(train, TrainShape)
            followed = Candidate(dataclasses.replace(task, stage=reference_shape(train)), chosen_mesh, {})
            tried["reference"] = [_tried(followed, accelerator, devices, efficiency, compiled)]
            chosen["reference"] = _fastest("reference", tried["reference"], chosen_mesh)
    return Optimised(tried, chosen_mesh, chosen)


def words(candidate: Candidate) -> str:
    """A candidate on one line."""
    keys = ", ".join(f"{key} {value}" for key, value in candidate.keys.items())
    return f"mesh {mesh_words(_axes(candidate.mesh))}" + (f", {keys}" if keys else "")


def _axes(mesh: MeshConfig) -> dict[str, int]:
    return {axis: getattr(mesh, axis) for axis in AXES}


def _sizes(mesh: MeshConfig, accelerator: Accelerator) -> MeshConfig:
    return MeshConfig(*mesh.shape(accelerator.devices))


def _tried(candidate: Candidate, accelerator: Accelerator, devices: Sequence[Any], efficiency: float,
           compiled: Callable[..., StagePlan]) -> Tried:
    task = candidate.task
    plan = compiled(task.stage, candidate.mesh, accelerator, devices)
    calls = task.calls(plan.mesh["data"] * plan.mesh["fsdp"], plan.hosts)
    return Tried(candidate, plan, calls * plan.times.step / efficiency / 3600, useful_share(plan))


def _fastest(name: str, tried: Sequence[Tried], mesh: MeshConfig | None) -> Tried:
    fitting = [t for t in tried if t.plan.fits and mesh in (None, t.candidate.mesh)]
    if not fitting:
        raise ValueError(f"{name} fits in none of the {len(tried)} forms that were compiled; {_REMEDY}")
    return min(fitting, key=lambda t: (t.hours, t.memory))


def _best_mesh(tried: Mapping[str, Sequence[Tried]], accelerator: Accelerator) -> MeshConfig:
    """The mesh on which all stages that share one fit, in the fewest hours together."""
    shared = [some for name, some in tried.items() if not runs_apart(name, accelerator)]
    if not shared:
        return next(iter(tried.values()))[0].candidate.mesh
    hours: dict[MeshConfig, float] = {}
    for mesh in dict.fromkeys(t.candidate.mesh for t in shared[0]):
        best = [min((t.hours for t in some if t.plan.fits and t.candidate.mesh == mesh), default=math.inf)
                for some in shared]
        hours[mesh] = sum(best)
    mesh = min(hours, key=lambda m: hours[m])
    if hours[mesh] == math.inf:
        raise ValueError(f"on none of the meshes that were compiled do all stages fit; {_REMEDY}")
    return mesh


def _candidates(task: Task, meshes: Sequence[MeshConfig], accelerator: Accelerator, tries: int
                ) -> Iterator[Candidate]:
    """The config's own form, then those that are estimated to take least time, the best of each mesh before others."""
    yield Candidate(task, meshes[0], {})
    match task.stage:
        case TrainShape():
            ranked = sorted(_of_training(task, task.stage, meshes, accelerator), key=lambda found: found[0])
        case SampleShape() if task.stage.name == "decode":
            ranked = sorted(_of_decoding(task, task.stage, meshes[0], accelerator), key=lambda found: found[0])
        case _:
            ranked = [(0.0, Candidate(task, mesh, {})) for mesh in meshes[1:]]
    first = {candidate.mesh: candidate for _, candidate in reversed(ranked)}
    best = [candidate for _, candidate in ranked if first[candidate.mesh] is candidate]
    rest = [candidate for _, candidate in ranked if first[candidate.mesh] is not candidate]
    yield from [*best, *rest][: tries - 1]


def _of_training(task: Task, stage: TrainShape, meshes: Sequence[MeshConfig], accelerator: Accelerator
                 ) -> Iterator[tuple[float, Candidate]]:
    """(estimated seconds, candidate): rows, recomputation and lengths of rows on each mesh."""
    chip, own = accelerator.chip, stage.options.train
    for factor in _ROW_LENGTHS:
        row_length = stage.row_length if factor == 1 else round(stage.row_length * factor / 128) * 128
        need = step_need(stage.trained_with(row_length=row_length, micro_rows="auto", remat="auto"))
        for mesh in meshes:
            sizes = _axes(mesh)
            for micro_rows, remat in candidates(need, sizes):
                keys = {"micro_rows": micro_rows, "remat": remat, "row_length": row_length}
                asked_for = mesh == meshes[0] and (own.micro_rows, own.remat, stage.row_length) == tuple(keys.values())
                if asked_for or step_bytes(need, sizes, micro_rows, remat).total > _ROOM * chip.hbm_bytes:
                    continue
                found = Candidate(Task(stage.trained_with(**keys), task.groups), mesh, keys)
                yield step_seconds(need, sizes, micro_rows, remat, chip), found


def _of_decoding(task: Task, stage: SampleShape, mesh: MeshConfig, accelerator: Accelerator
                 ) -> Iterator[tuple[float, Candidate]]:
    """(estimated bytes a token of one lane reads, candidate): slots, and the share of the caches that is reserved."""
    shares = (stage.sampling.cache_share, *_SHARES) if accelerator.chip.kind == "gpu" else (1.0,)
    for factor in _SLOTS:
        for share in shares:
            slots = factor * stage.sampling.slots
            changed = dataclasses.replace(stage, sampling=dataclasses.replace(
                stage.sampling, slots=slots, cache_share=share))
            room = token_bytes(stage.config, changed.settings, stage.dtype, accelerator.per_host, 1)
            if room.caches > accelerator.chip.hbm_bytes or (factor, share) == (1, stage.sampling.cache_share):
                continue
            read = token_bytes(stage.config, _at_depth(changed), stage.dtype, accelerator.per_host, 1)
            keys = {"slots": slots, "cache_share": share} if accelerator.chip.kind == "gpu" else {"slots": slots}
            yield sum(read) / changed.sampling.in_flight, Candidate(Task(changed, task.groups), mesh, keys)


def _at_depth(stage: SampleShape) -> SamplingConfig:
    """With caches as deep as lanes are on average."""
    return dataclasses.replace(stage.sampling, prompt_length=stage.assume.prompt_tokens, cache_share=1.0,
                               max_new_tokens=max(1, stage.assume.response_tokens // 2))


TRIED_COLUMNS = ("mesh and options", "hours", "memory, GiB", "useful", "")


def tried_rows(tried: Sequence[Tried], chosen: Tried) -> list[tuple[str, ...]]:
    """One candidate a row, those that fit by hours; what none beats in both hours and memory is marked."""
    best, rows = frontier(tried), list[tuple[str, ...]]()
    for one in sorted(tried, key=lambda t: (not t.plan.fits, t.hours)):
        marks = [*(["the config's"] if one is tried[0] else []), *(["frontier"] if one in best else []),
                 *(["chosen"] if one is chosen else [])]
        numbers = (f"{one.hours:.2f}", gib(one.memory), f"{one.useful:.0%}")
        rows.append((words(one.candidate), *(numbers if one.plan.fits else ("does not fit", "", "")), ", ".join(marks)))
    return rows


def as_tree(found: Optimised, command: Any) -> dict[str, Any]:
    """The chosen options as keys of the config they were found for."""
    tree: dict[str, Any] = {"mesh": _axes(found.mesh)}
    for name, one in found.chosen.items():
        part: Any = tree
        for key in _path_of(command, name, one):
            part = part.setdefault(key, {})
        part.update(one.candidate.keys)
    return tree


def _path_of(command: Any, name: str, one: Tried) -> tuple[str, ...]:
    """Where a config has the options that a stage changes."""
    if not one.candidate.keys:
        return ()
    wanted = {"decode": "sampling", "pairwise": "reward", "process": "reward", "outcome": "reward",
              "outcome_generative": "reward"}.get(name, name)
    fields = {field.name: field for field in declared(type(command))}
    if wanted not in fields or fields[wanted].flat:
        return ()  # the options of a verb stand at the top
    inner = {field.name: field for field in declared(type(getattr(command, wanted)))}
    nested = "train" in inner and not inner["train"].flat
    return (wanted, "train") if nested else (wanted,)
