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

_AT_ONCE = 4096
"""Pairs whose features are in memory together."""


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

    def read(self) -> AnswerStates:
        """The states of all answers.

        Raises:
          ValueError: there are none.
          SourceError, DamagedProduct: they are not what the stage made.
        """
        files = self._files
        check_made(self.folder)
        return AnswerStates([path for path in files if path.suffix == ".jsonl"])


class AnswerStates:
    """The states of answers, a shard of them at hand. Whoever asks in the order of the shards has each read once."""

    def __init__(self, shards: Sequence[Path]):
        self._shards, self._place, self._at_hand = shards, 0, _states_in(shards[0])

    @property
    def width(self) -> int:
        return len(next(iter(self._at_hand.values())))

    def find(self, prompt_id: str, answer: str) -> np.ndarray:
        """[D], mapped into memory. Raises KeyError where no shard has it."""
        for _ in self._shards:
            if (prompt_id, answer) in self._at_hand:
                break
            self._place = (self._place + 1) % len(self._shards)
            self._at_hand = _states_in(self._shards[self._place])
        return self._at_hand[prompt_id, answer]


def _states_in(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """(prompt's id, answer's id) -> [D] of a shard."""
    shard = read_features(path)
    names = [(row.prompt_id, answer) for row in shard.rows for answer in row.responses]
    return dict(zip(names, shard.response, strict=True))


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
        width = self._states.width
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
        names = [response_id(response) for response in responses]
        try:
            states = np.stack([self._states.find(group.prompt_id, name) for name in names])
        except KeyError as error:
            raise ValueError(f"the features hold no answer {error.args[0][1]} to {group.prompt_id!r}, which has a "
                             "score; score the answers again, with features: true") from error
        return states.astype(np.float64) @ self._projection

    def places(self, group: PromptGroup, ranked: Sequence[int], values: Sequence[float]) -> tuple[int, int]:
        """Places of chosen and rejected among the answers `ranked`, best first; values: their scores."""
        features = self._features(group, [group.responses[i] for i in ranked])
        return 0, second_player(features, np.asarray(values), self.covariance, self._options.width)

    def learned(self, pairs: Sequence[PromptGroup]) -> np.ndarray:
        """[d, d] the covariance once these pairs are known."""
        found = self.covariance
        for start in range(0, len(pairs), _AT_ONCE):
            features = [self._features(pair, pair.responses) for pair in pairs[start : start + _AT_ONCE]]
            found = with_pairs(found, np.stack([chosen - rejected for chosen, rejected in features]))
        return found
