"""A reward model as a scorer: one number at the last token of the conversation, where transformers and TRL read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.packing import unpack_slots
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.parallel import Bound, bound
from rlhf_jax.scoring.base import Progress, Verdicts, Weights, rerender
from rlhf_jax.scoring.states import states_map
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute


class BradleyTerryScorer:
    """Scores with an output of a sequence classifier; the n responses share their prompt's forward pass.

    Of a classifier with several outputs the others are stored beside the score, by the names that config.json gives
    them (`id2label`) or by their numbers.

    Args:
      params, config: of the reward model; see `Weights`. renderer: with the reward model's own tokenizer.
      key: of weights and rendering, or a function that finds it.
      output: which of several outputs is the score (ODIN's quality is 1).

    Raises:
      CheckpointError: if the model is no classifier, or has several outputs and none was chosen.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig, renderer: Renderer, mesh: Mesh, *,
                 name: str = "proxy", key: str | Callable[[], str] = "", output: int | None = None,
                 rows_per_batch: int = 4):
        self._output = output
        self._check(config)
        self._names = self._number_names(config)
        self.name, self._key = name, key
        self.failures: Counter[str] = Counter()
        self._weights = Weights(params)
        self._renderer = renderer.for_scores(config.score_at, config.pad_token_id)
        self._compute = Compute(config, mesh=mesh)
        self._map = PackedMap(self._outputs(), mesh, unpack_slots, rows_per_batch=rows_per_batch)
        self._states = states_map(self._compute, mesh, stop_id=None)

    def _check(self, config: DecoderConfig) -> None:
        if not config.is_classifier:
            raise CheckpointError("a Bradley-Terry scorer needs a sequence classifier and this checkpoint is a "
                                  "language model; for a pairwise preference model set kind: pairwise")
        if config.gate is not None:
            raise CheckpointError(f"this checkpoint weighs {config.num_labels} objectives by a gate (ArmoRM's layout); "
                                  "set kind: multi_objective")
        if self._output is None and config.num_labels != 1:
            raise CheckpointError(f"this checkpoint is a classifier of {config.num_labels} outputs; say which one is "
                                  "the score with output: 0, 1, ... (of an ODIN model 1 is quality, 0 is length)")
        if self._output is not None and not 0 <= self._output < config.num_labels:
            raise CheckpointError(f"output = {self._output} of a classifier with {config.num_labels} output(s); they "
                                  "count from 0")

    def _number_names(self, config: DecoderConfig) -> tuple[str, ...]:
        """Names of the numbers that `_outputs` gives of a response; the score's is ""."""
        return tuple("" if i == (self._output or 0) else label for i, label in enumerate(config.output_names))

    def _outputs(self) -> Bound:
        """(params, batch) -> [B, S, numbers]."""
        return bound(Compute.slot_scores, self._compute)

    @property
    def key(self) -> str:
        """Changes when the scores would."""
        return self._key() if callable(self._key) else self._key

    def release(self) -> None:
        self._weights.release()

    def _backbone(self, params: Params) -> Params:
        """The weights whose hidden states are given."""
        return params

    def states(self, groups: Sequence[PromptGroup]) -> list[list[np.ndarray | None]]:
        """Per group and response [2, D] float32: its state where a head is read, and NaN; None for one that cannot be
        rendered. It takes a forward pass of its own."""
        rendered, places = rerender(groups, self._renderer, Counter())  # what cannot be is counted when it is scored
        out: list[list[np.ndarray | None]] = [[None] * len(group.responses) for group in groups]
        found = self._states(self._backbone(self._weights()), rendered) if rendered else []
        for (index, members), states in zip(places, found, strict=True):
            for i, state in zip(members, states, strict=True):
                out[index][i] = state
        return out

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """Raw float32 rewards; a response that cannot be rendered or scores no finite number gets None."""
        rendered, places = rerender(groups, self._renderer, self.failures)
        verdicts: Verdicts = [[None] * len(group.responses) for group in groups]
        if not rendered:
            return verdicts
        found = self._map(self._weights(), rendered, progress)
        for (index, members), values in zip(places, found, strict=True):
            for i, numbers in zip(members, np.asarray(values, np.float64).tolist(), strict=True):
                if all(map(math.isfinite, numbers)):
                    verdicts[index][i] = dict(zip(self._names, numbers, strict=True))
                else:
                    self.failures["non_finite_score"] += 1
        return verdicts
