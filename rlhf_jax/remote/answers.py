"""Answers that were paid for: appended to a file as they come, so that a killed run asks for none of them again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.jsonl import scan_jsonl
from rlhf_jax.remote.openai import Question


def question_key(url: str, question: Question) -> str:
    """sha256 of all that is asked: the server's address, the method and the whole body."""
    asked = json.dumps([url, question.path, question.body], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class Answers:
    """A folder of kept answers: every process reads all files there and appends to its own.

    A line that was cut off when a run was killed is passed over: its question is asked again.

    Attributes:
      folder: where they are.
      requests: attempts so far, also those of earlier runs and those that failed.
      tokens: so far, as the server counted them.
    """

    def __init__(self, folder: Path, place: int = 0):
        self.folder = folder
        self._path = folder / f"answers-{place:05d}.jsonl"
        self._lock = threading.Lock()
        self._found: dict[str, Mapping[str, Any]] = {}
        self.requests = self.tokens = 0
        for path in sorted(folder.glob("answers-*.jsonl")):
            for _, row in scan_jsonl(path):
                if not isinstance(row, BadRow):
                    self._note(row)

    def get(self, key: str) -> Mapping[str, Any] | None:
        return self._found.get(key)

    def add(self, key: str, question: Question, attempts: int, answer: Mapping[str, Any] | None) -> None:
        """Writes an answer down, or (None) that there was none after so many attempts; on the disk when it returns."""
        row = {"key": key, "path": question.path, "request": question.body, "attempts": attempts, "answer": answer}
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                cut_off = self._path.stat().st_size and not self._ends_whole()
                stream.write((b"\n" if cut_off else b"") + json.dumps(row).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            self._note(row)

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() == b"\n"

    def _note(self, row: Mapping[str, Any]) -> None:
        attempts, answer = row.get("attempts"), row.get("answer")
        self.requests += attempts if isinstance(attempts, int) else 1
        if isinstance(answer, dict) and isinstance(row.get("key"), str):
            self._found[row["key"]] = answer
            usage = answer.get("usage")
            tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
            self.tokens += tokens if isinstance(tokens, int) else 0
