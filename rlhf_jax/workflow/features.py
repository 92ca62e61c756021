"""Stored features as the input of a stage: folders of shards that one model made, read a shard at a time."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.features import FeatureShard, read_features
from rlhf_jax.workflow.stage import check_made, fingerprint, hash_path
from rlhf_jax.workflow.stages.shards import ShardFolder, shards


@dataclasses.dataclass(frozen=True)
class Features:
    """Folders that `rlhf-jax features` filled, as one sequence of shards."""

    folders: tuple[Path, ...]

    @cached_property
    def key(self) -> str:
        """Their contents and what made them. Raises ValueError where a stage did not end."""
        return fingerprint([[ShardFolder(folder).key, *(hash_path(path.with_suffix(".safetensors"))
                                                        for path in shards(folder)), self.made_by(folder)]
                            for folder in self.folders])

    def made_by(self, folder: Path) -> dict[str, Any]:
        """Model, pooling and dtype of a folder's features.

        Raises:
          ValueError: if no such stage made it.
        """
        inputs = (check_made(folder) or {}).get("inputs", {})
        if not {"model", "pool", "dtype"} <= set(inputs):
            raise ValueError(f"{folder} is no output_dir of a finished `rlhf-jax features`; give one")
        return {name: inputs[name] for name in ("model", "pool", "dtype")}

    def check_model(self, key: str, name: str) -> None:
        """Raises ValueError unless all features are last-token states of the model with this key."""
        for folder in self.folders:
            made = self.made_by(folder)
            if made["model"] != key:
                raise ValueError(f"the features in {folder} are of another model than {name}, or of another chat "
                                 "template; give the model and the chat_template_path they were made with")
            if made["pool"] != "last":
                raise ValueError(f"the features in {folder} are means over tokens (pool = {made['pool']!r}), and a "
                                 "head is read at one token; make them with pool: last")

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for folder in self.folders for path in shards(folder))

    def shards(self) -> Iterator[FeatureShard]:
        """All shards, in order."""
        return map(read_features, self.paths)

    @cached_property
    def width(self) -> int:
        """D of the hidden states."""
        return int(read_features(self.paths[0]).response.shape[1])


class PromptStates:
    """The prompts' hidden states of many shards, by the prompt's place among all; mapped, never read whole."""

    def __init__(self, arrays: list[np.ndarray]):
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """[U, D] float32 of the prompts at `places` [U]."""
        found = np.empty((len(places), self._arrays[0].shape[1]), np.float32)
        where = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(where):
            some = where == shard
            found[some] = self._arrays[shard][places[some] - self._starts[shard]]
        return found


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Whether a prompt, or an answer, is among the held-out ones: by the hash of its name, so always the same."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64
