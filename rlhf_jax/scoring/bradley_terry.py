"""A Bradley-Terry reward model as a scorer: one number at a response's last token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.packing import unpack_slots
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.scoring.base import Progress, Scores, rerender
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute


class BradleyTerryScorer:
    """Scores with a sequence classifier of one output; the n responses share their prompt's forward pass.

    Args:
      params, config: of the reward model. renderer: with the reward model's own tokenizer.
      fingerprint: of weights and rendering. mean, std: calibration saved with the model; scores are (r - mean) / std.

    Raises:
      CheckpointError: if the model is no single-output classifier.
    """

    def __init__(self, params: Params, config: DecoderConfig, renderer: Renderer, mesh: Mesh, *, name: str = "proxy",
                 fingerprint: str = "", rows_per_batch: int = 4):
        if config.num_labels != 1:
            kind = f"a classifier of {config.num_labels} outputs" if config.num_labels else "a language model"
            raise CheckpointError(f"a Bradley-Terry scorer needs a sequence classifier with one output and this "
                                  f"checkpoint is {kind}; for a pairwise preference model set kind: pairwise")
        self.name, self.fingerprint = name, fingerprint
        self.failures: Counter[str] = Counter()
        self._params, self._renderer = params, renderer
        self._compute = Compute(config)
        self._map = PackedMap(self._outputs, mesh, unpack_slots, rows_per_batch=rows_per_batch)

    def _outputs(self, params: Params, batch: Any) -> Any:
        return self._compute.slot_scores(params, batch)[..., 0]

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Scores:
        """Raw float32 rewards; a response that cannot be rendered or scores no finite number gets None."""
        rendered, places = rerender(groups, self._renderer, self.failures)
        scores: Scores = [[None] * len(group.responses) for group in groups]
        if not rendered:
            return scores
        found = self._map(self._params, rendered, progress)
        for (index, members), values in zip(places, found, strict=True):
            for i, value in zip(members, np.asarray(values, np.float64), strict=True):
                if math.isfinite(value):
                    scores[index][i] = float(value)
                else:
                    self.failures["non_finite_score"] += 1
        return scores
