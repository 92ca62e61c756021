"""Implicit rewards: beta times the log-ratio of a response under a policy and its reference (DPO, arXiv 2305.18290)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import CheckpointError, DecoderConfig, Params
from rlhf_jax.scoring.base import Progress, Verdicts, Weights, rerender
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute

Over = Literal["sum", "mean"]


class ImplicitScorer:
    """beta * sum over the response's tokens of (log pi - log pi_ref), or that over their number.

    The n responses of a prompt share its pass, of which each model takes one; both are given the policy's tokens. The
    verdict also names the two log-probs: "policy" and "reference", sums in nats.

    Args:
      params, config: of the policy. reference, reference_config: of the reference.

    Raises:
      CheckpointError: if one of the two is a classifier.
    """

    def __init__(self, params: Params | Callable[[], Params], config: DecoderConfig,
                 reference: Params | Callable[[], Params], reference_config: DecoderConfig, renderer: Renderer,
                 mesh: Mesh, *, name: str, key: Callable[[], str], beta: float = 0.1, over: Over = "sum"):
        for what, one in (("policy", config), ("reference", reference_config)):
            if one.is_classifier:
                raise CheckpointError(f"implicit rewards need language models, and this {what} is a classifier of "
                                      f"{one.num_labels} output(s); for it set kind: bradley_terry")
        self.name, self._key, self._beta, self._over = name, key, beta, over
        self.failures: Counter[str] = Counter()
        self._renderer = renderer
        self._models = [(Weights(weights), logps_map(Compute(shape, mesh=mesh), mesh))
                        for weights, shape in ((params, config), (reference, reference_config))]

    @property
    def key(self) -> str:
        """Changes when the scores would; found when it is asked for, since it reads all weights."""
        return self._key()

    def release(self) -> None:
        for weights, _ in self._models:
            weights.release()

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts:
        """A response that cannot be rendered gets None."""
        rendered, places = rerender(groups, self._renderer, self.failures)
        verdicts: Verdicts = [[None] * len(group.responses) for group in groups]
        if not rendered:
            return verdicts
        ours, theirs = (logps(weights(), rendered, shown)
                        for (weights, logps), shown in zip(self._models, (None, progress), strict=True))
        for (index, members), policy, reference in zip(places, ours, theirs, strict=True):
            for i, a, b in zip(members, policy, reference, strict=True):
                verdicts[index][i] = self._verdict(np.asarray(a, np.float64), np.asarray(b, np.float64))
        return verdicts

    def _verdict(self, policy: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        """Of the log-probs [T] of one response."""
        ratio = float(np.sum(policy - reference)) / (len(policy) if self._over == "mean" else 1)
        return {"": self._beta * ratio, "policy": float(policy.sum()), "reference": float(reference.sum())}
