"""Answers that were paid for: appended to a file as they come, so that a killed run asks for none of them again."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.remote.openai import Question


def question_key(url: str, question: Question) -> str:
    """sha256 of all that is asked: the server's address, the method and the whole body."""
    asked = json.dumps([url, question.path, question.body], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class Origin(NamedTuple):
    """Where a kept answer came from: the server's address, and the answer's place among all that are kept."""

    url: str
    order: int


class Answers:
    """A folder of kept answers: every process reads all files there and appends to its own.

    A line that was cut off when a run was killed is passed over: its question is asked again.

    Attributes:
      folder: where they are.
      spent: requests (attempts, failed ones too) and tokens (as servers counted them) of all that is kept there.
      own: the same of this process's file alone.
    """

    def __init__(self, folder: Path, place: int = 0):
        self.folder = folder
        self.spent: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self._path = folder / f"answers-{place:05d}.jsonl"
        self._lock = threading.Lock()
        self._found: dict[str, Mapping[str, Any]] = {}
        self._origins: dict[str, Origin] = {}
        self._order = itertools.count()
        self._read: Counter[Path] = Counter()
        self.look()

    def look(self) -> None:
        """Reads what was added since, by this client or another, in this process or another."""
        with self._lock:
            for path in sorted(self.folder.glob("answers-*.jsonl")):
                self._look_into(path)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Mapping[str, Any] | None:
        return self._found.get(key)

    def origin(self, key: str) -> Origin:
        """Of the answer to a question that has one."""
        return self._origins[key]

    def add(self, key: str, question: Question, attempts: int, answer: Mapping[str, Any] | None, url: str) -> None:
        """Writes an answer down, or (None) that there was none after so many attempts; on the disk when it returns.

        url: of the server that was asked last.
        """
        row = {"key": key, "path": question.path, "request": question.body, "attempts": attempts, "url": url,
               "answer": answer}
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b", buffering=0) as stream:
                size = stream.seek(0, os.SEEK_END)
                if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
                    stream.write(b"\n")  # ends a line that was cut off
                stream.write(json.dumps(row).encode() + b"\n")
                os.fsync(stream.fileno())
            self._look_into(self._path)

    def _look_into(self, path: Path) -> None:
        with path.open("rb") as stream:
            stream.seek(self._read[path])
            block = stream.read()
        whole = block[: block.rfind(b"\n") + 1]
        self._read[path] += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                self._note(row, path == self._path)

    def _note(self, row: Mapping[str, Any], own: bool) -> None:
        attempts, answer = row.get("attempts"), row.get("answer")
        cost = Counter(requests=attempts if isinstance(attempts, int) else 1)
        if isinstance(answer, dict) and isinstance(row.get("key"), str):
            self._found[row["key"]] = answer
            self._origins[row["key"]] = Origin(str(row.get("url", "a server")), next(self._order))
            usage = answer.get("usage")
            tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
            cost["tokens"] = tokens if isinstance(tokens, int) else 0
        self.spent += cost
        if own:
            self.own += cost
