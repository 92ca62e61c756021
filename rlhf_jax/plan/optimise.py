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
from rlhf_jax.plan.measure import StagePlan, measure, meshes_to_try, placed, resident_bytes, runs_apart
from rlhf_jax.plan.programs import settled, step_need
from rlhf_jax.plan.recipe import Task
from rlhf_jax.plan.report import gib, mesh_words, useful_share
from rlhf_jax.plan.shapes import SampleShape, TrainShape, reference_shape
from rlhf_jax.sampling.cache import stored_dtype
from rlhf_jax.sampling.kernels import paged_attention

_ROW_LENGTHS = (1.0, 1.125, 1.25, 1.5, 2.0)
"""Rows so many times as long as the config's."""
_SLOTS = (1, 2, 3, 4, 6, 8)
_SPARE = 1.1
"""Times the mean length of a response is what lanes need of their pages, if few are to wait."""
_REMEDY = "give more --tries, or more devices"
_ROOM = 1.15
"""Estimates may be off by so much: what is estimated to need more than this share of the memory is not compiled."""


class Candidate(NamedTuple):
    """A stage with other options, on a mesh. keys: what a config would set for it; none for the config's own form."""

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
    """tried: of each task, those whose options are looked for, the config's own first. mesh: of the stages that run on
    all devices. chosen: a form of each task, in their order."""

    tried: Mapping[int, Sequence[Tried]]
    mesh: MeshConfig
    chosen: Sequence[Tried]


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

    Stages that share the mesh are chosen together: the mesh on which they take the fewest hours in all. What has no
    options of its own follows and is compiled with those chosen: the reference in the rows of its training, the
    prefill and a second sampler with the slots of the first.

    Raises:
      ValueError: some stage fits in no form that was tried.
    """
    devices = devices_of(accelerator)
    asked = MeshConfig(*mesh.shape(accelerator.devices), mesh.axis_types)
    others = (other.shape(accelerator.devices) for other in meshes_to_try([t.stage for t in tasks], accelerator))
    meshes = list(dict.fromkeys([asked, *(MeshConfig(*sizes, mesh.axis_types) for sizes in others)]))
    leaders = _leaders(tasks)

    def tried_as(candidate: Candidate) -> Tried:
        task = candidate.task
        plan = compiled(task.stage, candidate.mesh, accelerator, devices)
        calls = task.calls(plan.mesh["data"] * plan.mesh["fsdp"], plan.hosts)
        return Tried(candidate, plan, calls * plan.times.step / efficiency / 3600, useful_share(plan))

    tried: dict[int, list[Tried]] = {}
    for place, task in enumerate(tasks):
        if leaders[place] != place:
            continue
        name = task.stage.name
        here = meshes[:1] if runs_apart(name, accelerator) else meshes
        tried[place] = []
        for number, candidate in enumerate(_candidates(task, here, accelerator, devices, tries)):
            said(f"compiling {name}, {number + 1} of at most {tries}: {words(candidate)}")
            tried[place].append(tried_as(candidate))
    best = _best_mesh([some for place, some in tried.items() if not runs_apart(tasks[place].stage.name, accelerator)],
                      asked)
    for place, some in tried.items():
        if runs_apart(tasks[place].stage.name, accelerator):
            tried[place] = [_beside(one, best, accelerator) for one in some]
    chosen: dict[int, Tried] = {}
    for place, some in tried.items():
        followers = [(other, task) for other, task in enumerate(tasks) if leaders[other] == place != other]
        for one in _fastest(tasks[place].stage.name, some, best):
            following = {other: tried_as(Candidate(_followed(task, one), best, {})) for other, task in followers}
            if all(follower.plan.fits for follower in following.values()):
                chosen |= {place: one, **following}
                break
        else:
            raise ValueError(f"{tasks[place].stage.name} fits, but what runs with its options does not "
                             f"({', '.join(task.stage.name for _, task in followers)}); {_REMEDY}")
    return Optimised(tried, best, [chosen[place] for place in range(len(tasks))])


def _leaders(tasks: Sequence[Task]) -> list[int]:
    """Of each task, the place of the one whose options it follows; its own where it has some."""
    names = [task.stage.name for task in tasks]

    def leader(place: int) -> int:
        followed = {"reference": "dpo", "prefill": "decode", "decode": "decode"}.get(names[place])
        return names.index(followed) if followed in names else place

    return [leader(place) for place in range(len(tasks))]


def _followed(task: Task, leader: Tried) -> Task:
    """A task with the options that were chosen for another."""
    stage, other = task.stage, leader.candidate.task.stage
    if isinstance(stage, SampleShape):
        return dataclasses.replace(task, stage=dataclasses.replace(
            stage, sampling=dataclasses.replace(stage.sampling, **leader.candidate.keys)))
    assert isinstance(other, TrainShape)
    return dataclasses.replace(task, stage=reference_shape(other))


def _beside(tried: Tried, mesh: MeshConfig, accelerator: Accelerator) -> Tried:
    """A stage that runs apart, beside weights that lie over this mesh."""
    plan = tried.plan
    held = resident_bytes(tried.candidate.task.stage, mesh, accelerator) + plan.beside
    plan = dataclasses.replace(plan, held=held, fits=plan.peak > 0 and plan.peak + held <= plan.limit)
    return dataclasses.replace(tried, candidate=tried.candidate._replace(mesh=mesh), plan=plan)


def words(candidate: Candidate) -> str:
    """A candidate on one line."""
    keys = ", ".join(f"{key} {value}" for key, value in candidate.keys.items())
    return f"mesh {mesh_words(_axes(candidate.mesh))}" + (f", {keys}" if keys else "")


def _axes(mesh: MeshConfig) -> dict[str, int]:
    return {axis: getattr(mesh, axis) for axis in AXES}


def _fastest(name: str, tried: Sequence[Tried], mesh: MeshConfig) -> list[Tried]:
    """Those that fit on this mesh, fastest first."""
    fitting = [t for t in tried if t.plan.fits and t.candidate.mesh == mesh]
    if not fitting:
        raise ValueError(f"{name} fits in none of the {len(tried)} forms that were compiled; {_REMEDY}")
    return sorted(fitting, key=lambda t: (t.hours, t.memory))


def _best_mesh(shared: Sequence[Sequence[Tried]], asked: MeshConfig) -> MeshConfig:
    """The mesh on which all stages that share one fit, in the fewest hours together."""
    if not shared:
        return asked
    hours: dict[MeshConfig, float] = {}
    for mesh in dict.fromkeys(t.candidate.mesh for t in shared[0]):
        best = [min((t.hours for t in some if t.plan.fits and t.candidate.mesh == mesh), default=math.inf)
                for some in shared]
        hours[mesh] = sum(best)
    mesh = min(hours, key=lambda m: hours[m])
    if hours[mesh] == math.inf:
        raise ValueError(f"on none of the meshes that were compiled do all stages fit; {_REMEDY}")
    return mesh


def _candidates(task: Task, meshes: Sequence[MeshConfig], accelerator: Accelerator, devices: Sequence[Any], tries: int
                ) -> Iterator[Candidate]:
    """The config's own form, then those that are estimated to take least time, the best of each mesh before others."""
    yield Candidate(task, meshes[0], {})
    match task.stage:
        case TrainShape():
            found = _of_training(task, task.stage, meshes, accelerator, devices)
        case SampleShape() if task.stage.name == "decode":
            found = _of_decoding(task, task.stage, meshes[0], accelerator, devices)
        case _:
            found = iter([(0.0, Candidate(task, mesh, {})) for mesh in meshes[1:]])
    ranked = [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]
    first = {candidate.mesh: candidate for candidate in reversed(ranked)}
    best = [candidate for candidate in ranked if first[candidate.mesh] is candidate]
    rest = [candidate for candidate in ranked if first[candidate.mesh] is not candidate]
    yield from [*best, *rest][: tries - 1]


def _of_training(task: Task, stage: TrainShape, meshes: Sequence[MeshConfig], accelerator: Accelerator,
                 devices: Sequence[Any]) -> Iterator[tuple[float, Candidate]]:
    """(estimated seconds, candidate): rows, recomputation and lengths of rows on each mesh."""
    chip = accelerator.chip
    own, _ = settled(stage, placed(stage, meshes[0], accelerator, devices).mesh, chip)
    assert isinstance(own, TrainShape)
    for factor in _ROW_LENGTHS:
        row_length = stage.row_length if factor == 1 else round(stage.row_length * factor / 128) * 128
        longer = stage.trained_with(row_length=row_length, micro_rows="auto", remat="auto")
        for mesh in meshes:
            laid = placed(longer, mesh, accelerator, devices).mesh
            need = step_need(longer, laid)
            for micro_rows, remat in candidates(need, laid.shape):
                keys = {"micro_rows": micro_rows, "remat": remat, "row_length": row_length}
                asked_for = mesh == meshes[0] and (own.micro_rows, own.remat, own.row_length) == tuple(keys.values())
                if asked_for or step_bytes(need, laid.shape, micro_rows, remat).total > _ROOM * chip.hbm_bytes:
                    continue
                found = Candidate(dataclasses.replace(task, stage=stage.trained_with(**keys)), mesh, keys)
                yield step_seconds(need, laid.shape, micro_rows, remat, chip), found


def _of_decoding(task: Task, stage: SampleShape, mesh: MeshConfig, accelerator: Accelerator, devices: Sequence[Any]
                 ) -> Iterator[tuple[float, Candidate]]:
    """(estimated bytes a token of one lane reads, candidate): slots, and the share of the caches that is reserved."""
    ways = accelerator.per_host
    laid = placed(stage, mesh, accelerator, devices).mesh
    dtype = stored_dtype(stage.sampling.cache_dtype, stage.dtype)
    needed = math.ceil(20 * _SPARE * stage.assume.response_tokens / stage.sampling.max_new_tokens) / 20
    own = (stage.sampling.slots, stage.sampling.cache_share)
    for factor in _SLOTS:
        for share in dict.fromkeys((own[1], min(needed, 1.0))):
            slots = factor * own[0]
            changed = dataclasses.replace(stage, sampling=dataclasses.replace(
                stage.sampling, slots=slots, cache_share=share))
            room = token_bytes(stage.config, changed.settings, stage.dtype, ways, 1)
            paged = paged_attention(laid, stage.config, changed.sampling, dtype)
            beside = 2 if paged and paged.apart else 1  # merged weights lie beside the others
            weights = beside * room.weights / laid.shape["tensor"]
            if weights + room.caches > _ROOM * accelerator.chip.hbm_bytes or (slots, share) == own:
                continue
            read = token_bytes(stage.config, _at_depth(changed), stage.dtype, ways, 1)
            keys = {"slots": slots, "cache_share": share}
            yield sum(read) / changed.sampling.in_flight, Candidate(
                dataclasses.replace(task, stage=changed), mesh, keys)


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


def as_tree(found: Optimised, command: Any, whole: bool = True) -> dict[str, Any]:
    """The chosen options as keys of the config they were found for.

    whole: all of its stages were looked at, so that the mesh is one for all of them.
    """
    tree: dict[str, Any] = {"mesh": _axes(found.mesh)} if whole else {}
    for place in found.tried:
        one = found.chosen[place]
        part: Any = tree
        for key in _path_of(command, one) if one.candidate.keys else ():
            part = part.setdefault(key, {})
        part.update(one.candidate.keys)
    return tree


def _path_of(command: Any, one: Tried) -> tuple[str, ...]:
    """Where a config has the options that a stage changes."""
    name = one.candidate.task.stage.name
    wanted = {"decode": "sampling", "pairwise": "reward", "process": "reward", "outcome": "reward",
              "outcome_generative": "reward"}.get(name, name)
    fields = {field.name: field for field in declared(type(command))}
    if wanted not in fields or fields[wanted].flat:
        return ()  # the options of a verb stand at the top
    inner = {field.name: field for field in declared(type(getattr(command, wanted)))}
    nested = "train" in inner and not inner["train"].flat
    return (wanted, "train") if nested else (wanted,)
