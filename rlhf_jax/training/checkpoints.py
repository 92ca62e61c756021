"""Orbax checkpoints of the train state and of where the run stands; async, atomic, restored onto any mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rlhf_jax.models import Params
from rlhf_jax.training.step import TrainState


class Checkpoints:
    """Numbered checkpoints in a folder. A step that was not finished when the process died is not seen again."""

    def __init__(self, folder: str | Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, log: list[dict[str, Any]], unlogged: list[dict[str, float]]) -> None:
        """Starts writing `state`, the metric history and the steps since its last line; returns before it is done."""
        self._manager.save(step, args=ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)),
            # copies: the disk is written in a thread while the caller's lists grow
            log=ocp.args.JsonSave({"log_history": list(log), "unlogged": list(unlogged)})))

    def restore(self, step: int, like: TrainState
                ) -> tuple[TrainState, list[dict[str, Any]], list[dict[str, float]]]:
        """What `save` was given at `step`; the state with the shapes, dtypes and shardings of `like`.

        Raises:
          ValueError: the checkpoint holds another tree than `like`.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like))
        try:
            out = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), log=ocp.args.JsonRestore()))
        except ValueError as error:
            raise ValueError(f"the checkpoint of step {step} in {self._manager.directory} holds another state than "
                             "this training keeps, as one of another version of the program does "
                             f"({str(error)[:300]}). Go on with the version that wrote it, or delete that folder to "
                             "train this stage anew") from error
        return TrainState(**out["state"]), list(out["log"]["log_history"]), list(out["log"]["unlogged"])

    def close(self) -> None:
        """Waits for the last save and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_params(folder: Path) -> tuple[int, Any] | None:
    """(step, shapes and dtypes of the trained tree) of the last whole checkpoint; None if there is none."""
    with _reader(folder) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        saved = manager.item_metadata(step)["state"].tree["params"]
    return step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)


def restore_params(folder: Path, step: int, like: Any) -> Params:
    """The trained tree of a checkpoint, placed as `like` says; the optimizer's moments stay on the disk.

    like: `saved_params`' tree with this mesh's shardings, whatever mesh the checkpoint was saved on.
    """
    target = {"params": like}
    places = ocp.checkpoint_utils.construct_restore_args(target)
    with _reader(folder) as manager:
        state = manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)))["state"]
    params: Params = state["params"]
    return params


def _reader(folder: Path) -> Any:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "log": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(folder.resolve(), item_handlers=handlers)


def _tree(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}
