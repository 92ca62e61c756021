"""Counts XLA compilations, so that a stage can show it compiles a constant number of programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCount:
    """Programs compiled and seconds spent so far inside a `count_compiles` block."""

    def __init__(self) -> None:
        self.programs = 0
        self.seconds = 0.0

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            self.programs += 1
            self.seconds += duration_secs


@contextmanager
def count_compiles() -> Iterator[CompileCount]:
    """`with count_compiles() as count:` ... `count.programs`."""
    count = CompileCount()
    jax.monitoring.register_event_duration_secs_listener(count._listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(count._listen)
