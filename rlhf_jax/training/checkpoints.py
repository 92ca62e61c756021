"""Orbax checkpoints of the train state and of where the run stands; async, atomic, restored onto any mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlhf_jax.training.step import TrainState


class Checkpoints:
    """Numbered checkpoints in a folder. A step that was not finished when the process died is not seen again."""

    def __init__(self, folder: str | Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, log: list[dict[str, Any]]) -> None:
        """Starts writing `state` and the metric history; returns before the disk is done."""
        self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)), log=ocp.args.JsonSave({"log_history": log})))

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, list[dict[str, Any]]]:
        """State of `step` with the shapes, dtypes and shardings of `like`, and the metric history up to it."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like))
        out = self._manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(target), log=ocp.args.JsonRestore()))
        return TrainState(**out["state"]), list(out["log"]["log_history"])

    def close(self) -> None:
        """Waits for the last save and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}
