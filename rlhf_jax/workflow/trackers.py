"""Experiment trackers: TensorBoard, Weights & Biases and Trackio get the rows of trainer_state.json as they come."""

from __future__ import annotations

import importlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlhf_jax.config.trackers import PACKAGES
from rlhf_jax.parallel import is_main_process, on_main
from rlhf_jax.workflow.stage import to_plain, write_json_atomic

SENT = "trackers.json"
"""In a stage's folder: under which id each tracker knows the stage, how often it was opened, how many rows it has."""


class Tracker(NamedTuple):
    """log: (step, metrics) -> None. close: called once, after the last row."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


class _About(NamedTuple):
    """What a tracker is told of a stage. opened: how often it was told before, by earlier starts."""

    folder: Path
    config: dict[str, Any]
    id: str
    opened: int


def package(name: str) -> Any:
    """The package of a tracker, imported.

    Raises:
      ValueError: if it is not installed.
    """
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise ValueError(f"report_to = {name!r} needs a package that cannot be imported ({error}); "
                         f'pip install "rlhf_jax[{name}]", or leave {name} out') from error


def _project(variable: str) -> str:
    return os.environ.get(variable) or "rlhf_jax"


def _tensorboard(module: Any, about: _About) -> Tracker:
    """Event files in the stage's folder, one a start; the second it began would not tell two starts apart."""
    writer = module.SummaryWriter(logdir=str(about.folder), filename_suffix=f".{about.opened}")
    if not about.opened:
        writer.add_text("config", f"```yaml\n{yaml.safe_dump(about.config, sort_keys=False)}```", 0)

    def log(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def _wandb(module: Any, about: _About) -> Tracker:
    run = module.init(project=_project("WANDB_PROJECT"), name=about.folder.name, id=about.id, resume="allow",
                      config=about.config)
    # not wandb's own step, which drops a row at a step that it takes for finished: evaluation after a restart
    run.define_metric("*", step_metric="step")
    return Tracker(lambda step, metrics: run.log({**metrics, "step": step}), run.finish)


def _trackio(module: Any, about: _About) -> Tracker:
    """Trackio knows a run by its name alone."""
    run = module.init(project=_project("TRACKIO_PROJECT"), name=about.folder.name, config=about.config,
                      resume="allow" if about.opened else "never")
    return Tracker(lambda step, metrics: run.log(metrics, step=step), module.finish)  # run.finish leaves it current


OPEN: dict[str, Callable[[Any, _About], Tracker]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


@contextmanager
def tracking(names: tuple[str, ...], folder: Path, config: Any) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens trackers of a stage; gives what takes the rows of its log, from the first one, whatever was sent before.

    The main process writes. A row that a tracker got before a restart is not sent again: rows are counted, and the
    count is kept in the stage's folder, beside what is hashed by content. NaN values are left out.
    """
    folder = folder.resolve()
    kept: dict[str, dict[str, Any]] = {}
    trackers: dict[str, Tracker] = {}
    rows = 0

    def begin() -> None:
        path = folder / SENT
        kept.update(json.loads(path.read_text()) if path.is_file() else {})
        for name in names:
            known = kept.setdefault(name, {"id": secrets.token_hex(8), "opened": 0, "rows": 0})
            about = _About(folder, to_plain(config), known["id"], known["opened"])
            trackers[name] = OPEN[name](package(name), about)
            stack.callback(trackers[name].close)
            known["opened"] += 1
            write_json_atomic(path, kept)

    def take(row: Mapping[str, Any]) -> None:
        nonlocal rows
        rows += 1
        metrics = {key: value for key, value in row.items() if key != "step" and not math.isnan(value)}
        for name, tracker in trackers.items():
            if kept[name]["rows"] < rows:
                tracker.log(row["step"], metrics)
                kept[name]["rows"] = rows
                write_json_atomic(folder / SENT, kept)

    with ExitStack() as stack:
        if names:
            on_main(begin)
        yield take if is_main_process() else lambda row: None
