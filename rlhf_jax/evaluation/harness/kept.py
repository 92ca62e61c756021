"""Pieces of work that a killed command finds done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.data.jsonl import read_jsonl, write_jsonl_atomic
from rlhf_jax.parallel import Notice, is_main_process, on_main

ANSWERS = "answers"


class Kept:
    """Answers in files, one for each piece of work; all processes ask for the same pieces.

    Args:
      folder: of the stage, in which they lie in `answers` until `drop`; None keeps nothing.
      progress: (done, total) -> None.
    """

    def __init__(self, folder: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None):
        self._folder, self.progress = None if folder is None else folder / ANSWERS, progress
        self._notice = None if folder is None else Notice(folder)

    def __call__(self, name: str, work: Callable[[], list[Any]]) -> list[Any]:
        """The answers of the piece called `name`: as they were kept, else what `work` gives (values that JSON holds).

        Raises Preempted on all processes if one of them is asked to leave.
        """
        if self._folder is None or self._notice is None:
            return work()
        path = self._folder / f"{name}.jsonl"
        if on_main(path.is_file):
            return [row["answer"] for row in read_jsonl(path)]
        self._notice.leave_together("finished answers are kept")
        answers = work()
        if is_main_process():
            write_jsonl_atomic(path, ({"answer": answer} for answer in answers))
        return answers

    def drop(self) -> None:
        """Removes what was kept, once it is no longer needed."""
        if self._folder is not None and is_main_process():
            shutil.rmtree(self._folder, ignore_errors=True)
