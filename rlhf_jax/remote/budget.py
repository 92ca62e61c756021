"""What asking may cost: a budget of requests and of tokens, and a rate."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlhf_jax.config.server import Server
from rlhf_jax.remote.answers import Answers
from rlhf_jax.remote.openai import Question


class RemoteError(RuntimeError):
    """A server cannot be asked any further. Answers so far are kept."""


class BudgetSpent(RemoteError):
    """The budget of requests or tokens is spent before all questions were answered."""


class Stopped(RemoteError):
    """Another question's failure ended the asking."""


class Budget:
    """Lets requests begin: no faster than the rate, and none beyond the budget, which counts what earlier runs spent.

    count: processes that share it equally.
    """

    def __init__(self, server: Server, answers: Answers, count: int):
        self._answers, self._lock, self._begun, self._next_start = answers, threading.Lock(), 0, 0.0
        limits = {"requests": server.max_requests, "tokens": server.max_total_tokens}
        self._keys = {"requests": "max_requests", "tokens": "max_total_tokens"}
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        self._before, self._own_before, self._count = Counter(answers.spent), Counter(answers.own), count
        self._interval = 60.0 * count / server.requests_per_minute if server.requests_per_minute else 0.0

    def start(self, stop: threading.Event) -> None:
        """Waits for the turn of one more request.

        Raises:
          BudgetSpent: if none may be sent.
          Stopped: if `stop` is set, before or meanwhile.
        """
        with self._lock:
            if stop.is_set():
                raise Stopped
            for name, limit in self._limits.items():
                spent = self._answers.own[name] - self._own_before[name] + (self._begun if name == "requests" else 0)
                if spent >= (limit - self._before[name]) // self._count:
                    raise BudgetSpent(f"{self._keys[name]} = {limit} is spent ({self._before[name]} in earlier runs, "
                                      f"{spent} by this process) before every question had an answer. What was "
                                      f"answered is kept in {self._answers.folder} and not asked again: raise "
                                      f"{self._keys[name]} and give the same command")
            self._begun += 1
            now = time.monotonic()
            at = max(now, self._next_start)
            self._next_start = at + self._interval
        if stop.wait(at - now):
            with self._lock:
                self._begun -= 1
            raise Stopped

    def write_down(self, key: str, question: Question, attempts: int, answer: Mapping[str, Any] | None, url: str
                   ) -> None:
        """Adds to the kept answers; the requests that it took are counted there from now on."""
        with self._lock:
            self._answers.add(key, question, attempts, answer, url)
            self._begun -= attempts
