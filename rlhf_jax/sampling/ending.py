"""Where a response ends, and what it is then: for our own sampler and for what another engine sampled."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.groups import LENGTH, STOP, PromptGroup, Response


class Ending(NamedTuple):
    """What ends a response.

    stop_ids: token ids. stop_strings: the first token that completes one of them in the response's text is its last.
    decode_text: (prompt ids, response ids) -> text of the response.
    """

    stop_ids: Collection[int]
    stop_strings: Sequence[str]
    decode_text: Callable[[Sequence[int], Sequence[int]], str]

    def response(self, ids: np.ndarray, logps: np.ndarray, prompt: PromptGroup) -> Response:
        """What was sampled as a response: cut at a stop string, its text without the stop token.

        Args:
          ids: [T] int32, stop token included. logps: [T] float32.
        """
        stopped = int(ids[-1]) in self.stop_ids
        cut = self._stop_string_cut(ids, prompt)
        if cut is not None:
            ids, logps = ids[:cut], logps[:cut]
        body = ids[:-1] if stopped and cut is None else ids
        return Response(ids, np.ones(len(ids), bool), self._text(body, prompt),
                        STOP if stopped or cut is not None else LENGTH, logps)

    def has_stop_string(self, ids: np.ndarray, prompt: PromptGroup) -> bool:
        text = self._text(ids, prompt)
        return any(s in text for s in self.stop_strings)

    def _text(self, ids: np.ndarray, prompt: PromptGroup) -> str:
        return self.decode_text(prompt.prompt_ids.tolist(), ids.tolist())

    def _stop_string_cut(self, ids: np.ndarray, prompt: PromptGroup) -> int | None:
        """Length of the shortest prefix of `ids` that contains a stop string, or None."""
        if not self.stop_strings or not self.has_stop_string(ids, prompt):
            return None

        def has(count: int) -> bool:
            return self.has_stop_string(ids[:count], prompt)

        return bisect.bisect_left(range(1, len(ids)), True, key=has) + 1
