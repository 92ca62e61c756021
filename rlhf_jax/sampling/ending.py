"""Where a response ends, and what it is then: for our own sampler and for what another engine sampled."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.groups import LENGTH, STOP, PromptGroup, Response
from rlhf_jax.data.tokenizer import special_token_ids


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuationText:
    """Text of a response by a tokenizer: its leading space as in the running text, special tokens left out."""

    tokenizer: Any

    def __call__(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        before = self._decoded(list(prompt_ids)[-8:])
        both = self._decoded([*list(prompt_ids)[-8:], *ids])
        return both[len(before):] if both.startswith(before) else self._decoded(list(ids))

    def left_out(self, strings: Sequence[str]) -> dict[str, int]:
        """Those of the strings that are a special token, which no text shows, with its id."""
        ids = {string: self.tokenizer.convert_tokens_to_ids(string) for string in strings}
        return {string: token for string, token in ids.items() if token is not None
                and self.tokenizer.convert_ids_to_tokens(token) == string and not self._decoded([token])}

    def check_shown(self, strings: Sequence[str]) -> None:
        """Raises ValueError for a string that has a special token, which no text shows, beside other text."""
        special = {self.tokenizer.convert_ids_to_tokens(token): token for token in special_token_ids(self.tokenizer)}
        for string in strings:
            hidden = [text for text, token in special.items() if text in string and not self._decoded([token])]
            if hidden and string not in hidden:
                raise ValueError(f"stop_strings holds {string!r}, with the special token {max(hidden, key=len)!r} in "
                                 "it, which is left out of the text that is searched: it would never be found. Give "
                                 "the special token alone, or other text alone")

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class Ending(NamedTuple):
    """What ends a response.

    stop_ids: token ids. stop_strings: the first token that completes one of them in the response's text is its last.
    decode_text: (prompt ids, response ids) -> text of the response.
    """

    stop_ids: Collection[int]
    stop_strings: Sequence[str]
    decode_text: Callable[[Sequence[int], Sequence[int]], str]

    @classmethod
    def by(cls, stop_ids: Collection[int], stop_strings: Sequence[str],
           decode_text: Callable[[Sequence[int], Sequence[int]], str]) -> Ending:
        """By these ids and strings; strings that are special tokens of a policy's tokenizer end a response by id.

        Raises:
          ValueError: a string holds a special token and other text.
        """
        special = dict[str, int]()
        if isinstance(decode_text, ContinuationText):
            decode_text.check_shown(stop_strings)
            special = decode_text.left_out(stop_strings)
        return cls(sorted({*stop_ids, *special.values()}), [text for text in stop_strings if text not in special],
                   decode_text)

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
