"""Being asked to leave: SIGTERM, by which clouds and batch systems announce that a machine is wanted back.

Whichever process gets the signal, all of them leave together, each at a moment when what was done is safe: in training
by a vote that travels beside the steps (`vote`), in stages of shards by a file in the stage's folder (`Notice`).
"""

from __future__ import annotations

import signal
from functools import cache
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.parallel.distributed import gather

EXIT_PREEMPTED = 75
"""Exit status of a run that saved its state because it was asked to leave (EX_TEMPFAIL: "try again"): launchers give
the same command again, and it continues."""

_asked = False


class Preempted(RuntimeError):
    """The platform wants the machine back. done: what is safe."""

    def __init__(self, done: str):
        super().__init__(f"stopping on SIGTERM; {done}. Give the same command again to continue")


def watch_for_preemption() -> None:
    """From now on SIGTERM is noted instead of ending the process."""

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        global _asked
        _asked = True

    signal.signal(signal.SIGTERM, note)


def vote() -> jax.Array | bool:
    """Whether any process has been asked to leave, as a value that nobody waits for: all call it after the same step,
    go on to the next one, and find the same answer when they look."""
    if jax.process_count() == 1:
        return _asked
    ballots, largest = _poll()
    mine = np.full(1, _asked, np.int8)
    return largest(jax.make_array_from_callback((jax.device_count(),), ballots, lambda index: mine))


@cache
def _poll() -> tuple[NamedSharding, jax.stages.Wrapped]:
    mesh = Mesh(np.asarray(jax.devices()), "ballots")
    ballots = NamedSharding(mesh, PartitionSpec("ballots"))
    return ballots, jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))


class Notice:
    """A request to leave that reaches all processes of a stage, though they look at each other only at its end.

    The process that was asked leaves a file in the stage's folder; the others find it between two pieces of work.
    """

    def __init__(self, folder: Path):
        self._file = folder / ".leaving"

    def clear(self) -> None:
        """Forgets an earlier run's notice; by the main process, before the stage begins."""
        self._file.unlink(missing_ok=True)

    def noted(self) -> bool:
        """Whether this very process was asked, and the others can know from now on; costs nothing otherwise."""
        if _asked and jax.process_count() > 1:
            self._file.touch()
        return _asked

    def seen(self) -> bool:
        """Whether any process was asked."""
        return self.noted() or (jax.process_count() > 1 and self._file.exists())

    def leave_together(self, done: str) -> None:
        """Waits for all processes; raises Preempted on all if one of them has seen a notice. done: what is safe."""
        if any(gather(self.seen())):
            raise Preempted(done)
