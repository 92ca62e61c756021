"""A language model on these devices that answers questions: the judge's counterpart of a served one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.rows import BadRow, Example
from rlhf_jax.models import Params
from rlhf_jax.sampling import Sampler
from rlhf_jax.scoring.base import Progress, Weights
from rlhf_jax.scoring.judge import Endpoint, continued


class LocalModel:
    """Replies drawn by our sampler; a question that is asked twice is answered once.

    A reply depends on the weights, the question and the seed alone: never on what else is asked.

    Args:
      model: what errors call it.
      params: its weights, or a function that reads them.
      renderer: its tokenizer and template, within the tokens that a question may take.
      sampler: one sample of each question.
      endpoint: "chat", or "completions" for a model without a template.
    """

    def __init__(self, model: str, params: Params | Callable[[], Params], renderer: Renderer, sampler: Sampler,
                 endpoint: Endpoint):
        self.model = model
        self._weights, self._renderer, self._sampler, self._endpoint = Weights(params), renderer, sampler, endpoint

    def ask(self, conversations: Sequence[list[dict[str, str]]], failures: Counter[str],
            progress: Progress | None = None) -> list[str | None]:
        """Questions that cannot be rendered, too long ones among them, get None and are counted by reason."""
        names = [self._rendered(turns, failures) for turns in conversations]
        prompts = {name: PromptGroup(name, ids, ()) for name, ids in (found for found in names if found is not None)}
        order, replies = list(prompts), dict[str, str]()
        if order:
            for index, group in self._sampler.generate(self._weights(), [prompts[name] for name in order]):
                replies[order[index]] = str(group.responses[0].text)
                if progress:
                    progress(1)
        return [None if found is None else replies[found[0]] for found in names]

    def _rendered(self, turns: list[dict[str, str]], failures: Counter[str]) -> tuple[str, np.ndarray] | None:
        """A question's ids, and a name that they alone determine."""
        try:
            group = self._renderer.render(Example(turns if self._endpoint == "chat" else continued(turns), ()))
        except BadRow as error:
            failures[error.reason] += 1
            return None
        return hashlib.sha256(group.prompt_ids.tobytes()).hexdigest(), group.prompt_ids

    def release(self) -> None:
        """Lets the weights go, which are read again when more is asked."""
        self._weights.release()
