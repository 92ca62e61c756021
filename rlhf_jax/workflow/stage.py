"""Stages: named by the hash of what goes in, skipped when done, continued when interrupted, never overwritten."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.fields import Options, flattened
from rlhf_jax.parallel import Notice, gather, is_main_process, on_main
from rlhf_jax.workflow.findings import found
from rlhf_jax.workflow.products import (
    AT_WORK,
    CARD,
    INPUTS,
    MODEL,
    POLICY,
    RECORD,
    RESULTS,
    check_products,
    drop_checkpoints,
    is_made,
    list_products,
)

if TYPE_CHECKING:
    from rlhf_jax.workflow.context import Context
    from rlhf_jax.workflow.datasets import Preview

MANIFEST = "manifest.json"
_TIMED = (RECORD, INPUTS, AT_WORK, "trainer_state.json")
"""What stages write about themselves, seconds included; no part of what they made."""


class StageConflict(RuntimeError):
    """A folder already holds the work of another configuration."""


@dataclasses.dataclass(frozen=True)
class Stage(abc.ABC):
    """A piece of work as a value: its fields are its inputs, and so its key; the same fields are the same work."""

    def inputs(self) -> dict[str, Any]:
        """What the result depends on; what has a `key` stands for itself by it."""
        return {field.name: to_plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @abc.abstractmethod
    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        """Does the work in `folder`, which may hold what a killed run of the same stage left; returns its report."""

    def preview(self, context: Context) -> Preview:
        """What a dry run shows. Raises what `run` would raise before its first step, sample or score."""
        raise ValueError(f"{type(self).__name__} has nothing to show before it runs")


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished stage: its folder, the hash of its inputs, and what it reports (counts, metrics, funnel)."""

    name: str
    folder: Path
    key: str
    report: Mapping[str, Any]
    seconds: float
    reused: bool


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON values, for hashing and printing; NaN and infinity become None.

    What has a `key` (a checkpoint, a finished stage, a scorer, groups) stands for itself by it.
    """
    if isinstance(key := getattr(value, "key", None), str):
        return key
    if isinstance(value, Options):
        return to_plain(flattened(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def fingerprint(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(to_plain(value), sort_keys=True).encode()).hexdigest()


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """What names a stage: its name and its inputs."""
    return fingerprint({"stage": name, "inputs": inputs})


def hash_path(path: str | Path) -> str:
    """sha256 of a file's name and bytes, or of the names and bytes of all files in a folder.

    Records with timings in a folder, its card and hidden files are left out: the same weights or shards have one hash.

    Raises:
      FileNotFoundError: if there is no such path.
      DamagedProduct: if a stage made it and it is no longer what the stage made.
    """
    path = Path(path).expanduser()
    check_made(path)  # first: of what a stage made it is known that it is missing
    digest = hashlib.sha256()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}; the working folder is {Path.cwd()}")
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in (*_TIMED, CARD)
                   and not any(part.startswith(".") for part in p.relative_to(path).parts)) if path.is_dir() else [path]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_finished(folder: Path, files: Collection[str]) -> None:
    """Checks that files about to be read are not what an unfinished stage left, or what is left of a finished one.

    folder: where they lie. files: their names.

    Raises:
      StageConflict: the stage that makes it has not finished.
      DamagedProduct: it finished, and a file that it made is gone or changed.
    """
    folder = folder.expanduser().resolve()
    try:
        started = _read_record(folder / INPUTS)
    except (OSError, StageConflict):  # none of ours
        return
    if _unchanged(folder, started).issuperset(files):
        return
    if not (folder / RECORD).is_file():
        raise StageConflict(f"{folder} holds a part of what the stage {started['stage']!r} makes, which has not "
                            "finished; give its command again, which goes on with what is there")
    check_products(folder, _read_record(folder / RECORD).get("products", {}))


def check_made(path: Path) -> dict[str, Any] | None:
    """Checks a file or folder that is about to be read against the record of the stage that made it, if one did.

    Returns:
      That record, if `path` is a finished stage's folder, or lies in one.

    Raises:
      DamagedProduct: if it is no longer what the stage made.
    """
    path = path.resolve()
    folder = next((folder for folder in (path, *path.parents[:3])
                   if (folder / RECORD).is_file() and (folder / INPUTS).is_file()), None)
    if folder is None:
        return None
    record, within = _read_record(folder / RECORD), path.relative_to(folder)
    check_products(folder, {name: made for name, made in record.get("products", {}).items()
                            if Path(name).is_relative_to(within)}, read=True)
    return record


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes JSON to a temporary name, syncs and renames it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as stream:
        json.dump(to_plain(value), stream, indent=1, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def run_stage(folder: Path, name: str, inputs: Mapping[str, Any], body: Callable[[Path], Mapping[str, Any]],
              begins: Callable[[str], None] = lambda name: None) -> Finished:
    """Runs `body(folder)` unless this very stage is done; its return value is the stage's report.

    begins: is told the name of a stage that is about to work; what it does is no part of the stage's seconds.

    `body` may find partial work of a killed run of the *same* inputs (finished shards, checkpoints) and continue it.
    The record is written last, so a folder without one is unfinished, whatever lies in it. With several processes all
    run the body; the main one decides whether it is needed and writes the record, once all are through.

    Raises:
      StageConflict: if the folder belongs to other inputs, or processes disagree on what the inputs are.
      DamagedProduct: if the stage is done and a file that it made is gone or changed.
    """
    key = stage_key(name, inputs)
    if len(set(gather(key))) > 1:
        raise StageConflict(f"the processes of this run see different inputs for the stage {name!r}: give all of them "
                            "the same command and the same files, on storage that all of them share")
    record = on_main(lambda: _begun(folder, name, key, inputs))
    if record is not None:
        return Finished(name, folder, key, record["report"], record["seconds"], reused=True)
    begins(name)
    start = time.perf_counter()
    report = to_plain(body(folder))
    gather(None)  # the others may still be writing their files

    def finish() -> dict[str, Any]:
        seconds = round(time.perf_counter() - start, 3)
        record = {"stage": name, "key": key, "inputs": inputs, "report": report, "seconds": seconds,
                  "products": list_products(folder, _beside(folder))}
        write_json_atomic(folder / RECORD, record)
        drop_checkpoints(folder)  # not before: a run that dies in between has nothing to do again
        return {"report": report, "seconds": seconds}

    record = on_main(finish)
    return Finished(name, folder, key, record["report"], record["seconds"], reused=False)


def _begun(folder: Path, name: str, key: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the stage if it is done; else None, and its folder is there with its inputs written down."""
    started, done = folder / INPUTS, folder / RECORD
    for path in (done, started) if done.is_file() or _work(folder) else ():
        if path.is_file() and (found := _read_record(path))["key"] != key:
            changed = _differences(found["inputs"], to_plain(inputs))
            raise StageConflict(f"{folder} holds the {found['stage']} stage of another configuration; these inputs "
                                f"differ: {', '.join(changed) or 'stage'}. Choose another output_dir; or give the "
                                "command as it was, which goes on with what is there")
    if done.is_file():
        record = _read_record(done)
        check_products(folder, record.get("products", {}))
        drop_checkpoints(folder)
        return record
    folder.mkdir(parents=True, exist_ok=True)
    Notice(folder).clear()
    if started.is_file():
        before, kept = _read_record(started).get("before", {}), _beside(folder)
        for leftover in folder.rglob(".*.tmp"):  # of a run that was killed while it wrote
            if leftover.is_file() and str(leftover.relative_to(folder)) not in kept:
                leftover.unlink()
    else:
        before = {str(file.relative_to(folder)): _state(file) for file in folder.rglob("*") if file.is_file()}
    write_json_atomic(started, {"stage": name, "key": key, "inputs": inputs, "before": before})
    return None


def _state(file: Path) -> list[int]:
    """Size and time of a file, which change when it is written."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _unchanged(folder: Path, started: Mapping[str, Any]) -> set[str]:
    """Names of the files that lay in a folder before its stage began, and are what they were."""
    return {name for name, state in started.get("before", {}).items()
            if (folder / name).is_file() and _state(folder / name) == state}


def _beside(folder: Path) -> set[str]:
    """Names of the files that lie in a stage's folder and have nothing to do with it; not what is left of a stage."""
    return {name for name in _unchanged(folder, _read_record(folder / INPUTS)) if not is_made(name)}


def _check_record(record: dict[str, Any], done: bool) -> None:
    """Raises KeyError or TypeError for what is no record of a stage, or of a stage that is done."""
    kinds: dict[str, Any] = {"stage": str, "key": str, "inputs": dict}
    for name, kind in (kinds | {"report": dict, "seconds": int | float} if done else kinds).items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is {type(record[name]).__name__}")
    _ = [(made["bytes"] + 0, made["sha256"] + "") for made in record.get("products", {}).values()]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        _check_record(record, done=path.name == RECORD)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageConflict(f"{path} is damaged ({error}), so what {path.parent} holds cannot be told. It is "
                            "written whole or not at all: something else changed it. Remove that folder and run again"
                            ) from error
    return record


def begun_stage(folder: Path) -> str | None:
    """Name of the stage that was begun in a folder; None where none was."""
    return str(_read_record(folder / INPUTS)["stage"]) if (folder / INPUTS).is_file() else None


def _work(folder: Path) -> list[Path]:
    """Files of an unfinished stage that took work to make: not its inputs, the rows it put aside, what it is at."""
    beside = _beside(folder) if (folder / INPUTS).is_file() else set()
    return [p for p in folder.rglob("*") if p.is_file() and p.name not in (INPUTS, AT_WORK)
            and "quarantine" not in p.name and str(p.relative_to(folder)) not in beside]


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) for d in _differences(old.get(k), new.get(k), f"{path}.{k}".strip("."))]
    return [] if old == new else [path]


@dataclasses.dataclass
class Run:
    """A run folder: stages in `stages/<name>-<hash>`, and `manifest.json` that lists those this run is made of.

    single: the folder is that of one stage, for verbs that do one. begins: is told the name of a stage that is about to
    work, rather than to be found done. shared: folder of a sweep, whose stages, caches and paid answers this run uses
    and adds to; None for a run that has its own. other: the folder holds a run of another configuration, of which
    nothing is finished any more once this one works.
    """

    folder: Path
    config: Any
    stages: list[Finished] = dataclasses.field(default_factory=list)
    announce: Callable[[str], None] = print
    single: bool = False
    begins: Callable[[str], None] = lambda name: None
    shared: Path | None = None
    other: bool = False

    @property
    def store(self) -> Path:
        """Where stages, caches and paid answers lie."""
        return self.shared or self.folder

    def stage(self, name: str, inputs: Mapping[str, Any], body: Callable[[Path], Mapping[str, Any]]) -> Finished:
        """`run_stage` in this run's folder; the same inputs under the same name are one stage for all who ask."""
        if self.single:
            return run_stage(self.folder, name, inputs, body, self._begins)
        folder = self.store / "stages" / f"{name.replace('/', '-')}-{stage_key(name, inputs)[:10]}"
        known = any(stage.folder == folder for stage in self.stages)
        if not known:
            self.announce(f"{name} ...")
        stage = run_stage(folder, name, inputs, body, self._begins)
        if not known:
            self.stages.append(stage)
            told = ["already done" if stage.reused else f"{stage.seconds:.1f} s", found(stage.report)]
            self.announce(f"{name}: {'; '.join(filter(None, told))}")
            self.write_manifest()
        return stage

    def announce_earlier(self) -> None:
        """Says from where a run goes on: what an earlier command left in its folder."""
        path = self.folder / MANIFEST
        if not path.is_file():
            return
        try:
            earlier = json.loads(path.read_text())
            names, config = [stage["name"] for stage in earlier["stages"]], earlier["config"]
        except (ValueError, LookupError, TypeError):
            self.announce(f"{path} is damaged; it is written anew")
            return
        self.other = not self.single and config != json.loads(json.dumps(to_plain(self.config)))
        if names:
            self.announce(f"continues the run in {self.folder}: {len(names)} stages were done, the last of them "
                          f"{names[-1]}; what still has the same inputs is kept")

    def _begins(self, name: str) -> None:
        if self.other:
            on_main(self._forget_end)
            self.other = False
        self.begins(name)

    def _forget_end(self) -> None:
        """Work of another configuration begins: until it ends, this is no finished run, and nothing is its policy."""
        (self.folder / RESULTS).unlink(missing_ok=True)
        for link in (self.folder / name for name in (POLICY, MODEL)):
            if link.is_symlink():
                link.unlink()

    def write_manifest(self) -> None:
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.folder / MANIFEST, {
            "config": self.config,
            "stages": [{"name": s.name, "folder": os.path.relpath(s.folder, self.folder), "key": s.key,
                        "seconds": s.seconds, "report": s.report} for s in self.stages]})
