"""What asking may cost: a budget of requests and of tokens, and a rate."""

from __future__ import annotations

import threading
import time

from rlhf_jax.config.server import Server
from rlhf_jax.remote.answers import Answers


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
        self._answers, self._lock, self._sent, self._next_start = answers, threading.Lock(), 0, 0.0
        self._before = {"max_requests": answers.requests, "max_total_tokens": answers.tokens}
        limits = {"max_requests": server.max_requests, "max_total_tokens": server.max_total_tokens}
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        self._count = count
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
            spent = {"max_requests": self._sent,
                     "max_total_tokens": self._answers.tokens - self._before["max_total_tokens"]}
            for name, limit in self._limits.items():
                if spent[name] >= (limit - self._before[name]) // self._count:
                    raise BudgetSpent(f"{name} = {limit} is spent ({self._before[name]} in earlier runs, {spent[name]} "
                                      "by this process) before every question had an answer. What was answered is "
                                      f"kept in {self._answers.folder} and not asked again: raise {name} and give the "
                                      "same command")
            self._sent += 1
            now = time.monotonic()
            at = max(now, self._next_start)
            self._next_start = at + self._interval
        if stop.wait(at - now):
            raise Stopped
