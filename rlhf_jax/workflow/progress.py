"""A run seen from outside while it goes: the file that says what it is at, and the stages that are done."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from pathlib import Path
from typing import Any

from rlhf_jax.workflow.context import Tick
from rlhf_jax.workflow.products import AT_WORK, RECORD
from rlhf_jax.workflow.stage import MANIFEST, begun_stage, write_json_atomic

NOTED_SECONDS = 5.0
"""How often, at most, the file is written while a stage goes on."""

@dataclasses.dataclass(frozen=True)
class AtWork:
    """What a run is at. done, total: prompts, shards or steps. since, seen: seconds since 1970."""

    stage: str
    done: int
    total: int
    words: str
    since: float
    seen: float


class Noted:
    """A tick that also keeps the file of what a run is at, for as long as its command lives; see `AtWork`."""

    def __init__(self, folder: Path, tick: Tick):
        self._file, self._tick = folder / AT_WORK, tick
        self._stage, self._since, self._last = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int, words: str) -> None:
        if stage != self._stage or time.time() - self._last >= NOTED_SECONDS:
            self._note(stage, done, total, words)
        self._tick(stage, done, total, words)

    def begin(self, stage: str) -> None:
        """A stage begins, which may not tick at all."""
        self._note(stage, 0, 0, "")

    def end(self) -> None:
        """The command ends, done or not."""
        self._file.unlink(missing_ok=True)

    def _note(self, stage: str, done: int, total: int, words: str) -> None:
        now = time.time()
        self._since, self._last = self._since if stage == self._stage else now, now
        self._stage = stage
        write_json_atomic(self._file, AtWork(stage, done, total, words, self._since, now))


def at_work(folder: Path) -> AtWork | None:
    """What the run in a folder is at, or was when it was killed; None where no command is at work in it."""
    try:
        return AtWork(**json.loads((folder / AT_WORK).read_text()))
    except FileNotFoundError:
        return None


def finished_stages(folder: Path) -> list[dict[str, Any]]:
    """Name, seconds and report of each stage that is done, of a run or of a single verb.

    Raises:
      ValueError: nothing of a run lies there, or its files are damaged.
    """
    manifest, record = folder / MANIFEST, folder / RECORD
    try:
        if manifest.is_file():
            return [{key: stage[key] for key in ("name", "seconds", "report")}
                    for stage in json.loads(manifest.read_text())["stages"]]
        if record.is_file():
            one = json.loads(record.read_text())
            return [{"name": one["stage"], "seconds": one["seconds"], "report": one["report"]}]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} holds damaged records ({type(error).__name__}: {error}); give the command of the "
                         "run again, which writes them anew") from error
    if at_work(folder) is not None:
        return []
    if (begun := begun_stage(folder)) is not None:
        raise ValueError(f"{folder} holds an unfinished stage, {begun}, and no command is at work in it; give "
                         "its command again to go on")
    raise ValueError(f"{folder} holds no run: no {MANIFEST}, no {RECORD}, and no command is at work in it")


def ago(seconds: float) -> str:
    """A span of time in a few letters."""
    return str(datetime.timedelta(seconds=round(max(seconds, 0))))
