"""Being asked to leave: SIGTERM, by which clouds and batch systems announce that a machine is wanted back."""

from __future__ import annotations

import itertools
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_PREEMPTED = 75
"""Exit status of a run that saved its state because it was asked to leave (EX_TEMPFAIL: "try again"): launchers give
the same command again, and it continues."""

_asked = False
_looks = itertools.count()


class Preempted(RuntimeError):
    """The platform wants the machine back. done: what is safe."""

    def __init__(self, done: str):
        super().__init__(f"asked to leave (SIGTERM); {done}. Give the same command again to continue")


def watch_for_preemption() -> None:
    """From now on SIGTERM is noted instead of ending the process. With several processes JAX's own service notes it."""

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        global _asked
        _asked = True

    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, note)


def preemption_noted() -> bool:
    """Whether this process knows that it is asked to leave; always False with several, which must leave together."""
    return _asked


def preempted() -> bool:
    """Whether the run is asked to leave: the same answer on all processes, whichever of them got the signal.

    All processes must call it equally often; they stop at the same call.
    """
    if jax.process_count() == 1:
        return _asked
    return multihost_utils.reached_preemption_sync_point(next(_looks))
