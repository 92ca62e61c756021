"""The theory's second player (arXiv 2405.07863, algorithm 1) as a pair rule: what it reads, and what it keeps.

It reads the states that `score --features true` wrote beside its shards, and the covariance of the rounds before. All
pairs of a round are chosen under the same covariance, so that no prompt depends on another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.features import read_features, response_id
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.scoring.uncertainty import projection, second_player, with_pairs
from rlhf_jax.workflow.products import COVARIANCE
from rlhf_jax.workflow.stage import check_made, fingerprint, hash_path


@dataclasses.dataclass(frozen=True)
class StoredStates:
    """The feature shards beside scored shards. stage_key: of the stage that wrote them, if one of this run did."""

    folder: Path
    stage_key: str | None = None

    @cached_property
    def key(self) -> str:
        return self.stage_key or fingerprint([hash_path(path) for path in self._files])

    @property
    def _files(self) -> list[Path]:
        """Raises ValueError where there are none."""
        found = sorted(path for path in self.folder.glob("shard-*") if path.suffix in (".jsonl", ".safetensors"))
        if not found:
            raise ValueError(f"rule = 'enhancer' reads the reward model's features, and {self.folder} holds none; "
                             "score the answers with features: true")
        return found

    def read(self) -> dict[tuple[str, str], np.ndarray]:
        """(prompt's id, answer's id) -> [D], mapped into memory.

        Raises:
          ValueError: there are none.
          SourceError, DamagedProduct: they are not what the stage made.
        """
        files = self._files
        check_made(self.folder)
        out: dict[tuple[str, str], np.ndarray] = {}
        for path in (path for path in files if path.suffix == ".jsonl"):
            shard = read_features(path)
            names = [(row.prompt_id, answer) for row in shard.rows for answer in row.responses]
            out |= zip(names, shard.response, strict=True)
        return out


@dataclasses.dataclass(frozen=True)
class EarlierPairs:
    """The folder of an earlier pairing by the enhancer. stage_key: of that stage, if this run did it."""

    folder: Path
    stage_key: str | None = None

    @cached_property
    def key(self) -> str:
        return self.stage_key or hash_path(self.path)

    @property
    def path(self) -> Path:
        """The covariance of its pairs. Raises ValueError where there is none."""
        path = self.folder / COVARIANCE
        if not path.is_file():
            raise ValueError(f"{self.folder} holds no {COVARIANCE}; give the output_dir of a finished `rlhf-jax pairs "
                             "--rule enhancer` as earlier, or leave it out")
        return path

    def read(self) -> np.ndarray:
        """[d, d]."""
        check_made(self.path)
        return np.load(self.path)

    @property
    def projected_by(self) -> tuple[Any, Any] | None:
        """Seed and projection of its options; None where no record says them."""
        options = ((check_made(self.folder) or {}).get("inputs", {})).get("options")
        return None if options is None else (options["seed"], options["projection"])


class Enhancer:
    """Chooses what the best answer of a prompt is held against.

    Args:
      earlier: the pairs of the rounds before; None for none.

    Raises:
      ValueError: there are no states, or earlier ones have another size.
    """

    def __init__(self, options: PairOptions, states: StoredStates, earlier: EarlierPairs | None = None):
        self._options, self._states = options, states.read()
        width = len(next(iter(self._states.values())))
        self._projection = projection(width, options.projection, options.seed)
        size = self._projection.shape[1]
        self.covariance = options.ridge * np.eye(size) if earlier is None else earlier.read()
        if self.covariance.shape != (size, size):
            raise ValueError(f"the earlier pairs' features have {len(self.covariance)} numbers and these {size}; pair "
                             "both with the same reward model and projection")
        if earlier is not None and size < width and earlier.projected_by not in (None, (options.seed, size)):
            raise ValueError(f"the earlier pairs in {earlier.folder} were projected by another seed than "
                             f"{options.seed}, to which their covariance means nothing; give the same one")

    def _features(self, group: PromptGroup, responses: Sequence[Response]) -> np.ndarray:
        """[n, d] of the answers, projected."""
        names = [(group.prompt_id, response_id(response)) for response in responses]
        if lacking := [name for name in names if name not in self._states]:
            raise ValueError(f"the features hold no answer {lacking[0][1]} to {lacking[0][0]!r}, which has a score; "
                             "score the answers again, with features: true")
        return np.stack([self._states[name] for name in names]).astype(np.float64) @ self._projection

    def places(self, group: PromptGroup, ranked: Sequence[int], values: Sequence[float]) -> tuple[int, int]:
        """Places of chosen and rejected among the answers `ranked`, best first; values: their scores."""
        features = self._features(group, [group.responses[i] for i in ranked])
        return 0, second_player(features, np.asarray(values), self.covariance, self._options.width)

    def learned(self, pairs: Sequence[PromptGroup]) -> np.ndarray:
        """[d, d] the covariance once these pairs are known."""
        features = [self._features(pair, pair.responses) for pair in pairs]
        return with_pairs(self.covariance, np.stack([chosen - rejected for chosen, rejected in features]))
