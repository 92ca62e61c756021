"""Prompts and responses within the limits of a data set, before and after they are tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlhf_jax.config.data import Overlong
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.example import Example
from rlhf_jax.data.groups import LENGTH, Response, Text

TOO_LONG = ("prompt_too_long", "response_too_long")
LEFT_OUT = (*TOO_LONG, "identical_after_truncation", "identical_tokens", "nothing_left_after_truncation")
"""Reasons for which the limits or the tokenizer, and no fault of the row, leave it out."""
_SLACK = 4
"""A normalizer may make text shorter, but not by this factor."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_prompt_length, max_length, overlong: see `chat.Renderer`."""

    max_prompt_length: int | None
    max_length: int | None
    overlong: Overlong

    def within_reach(self, example: Example, longest_token: int) -> Example:
        """The example, text beyond what any tokenisation brings within the limits cut or refused.

        A text of 200 MB takes 6 GB to tokenise, to no purpose. longest_token: characters of the longest token.

        Raises:
          BadRow: prompt_too_long, response_too_long.
        """
        rooms = [room for room in (self.max_prompt_length, self.max_length) if room is not None]
        reach = _SLACK * longest_token * min(rooms, default=0)
        prompt, responses = example.prompt, example.responses
        if rooms and _characters(prompt) > reach:
            if self.overlong != "truncate_prompt_left":
                raise BadRow("prompt_too_long", f"the prompt has {_characters(prompt):,} characters, which no "
                                                f"tokenizer brings within {min(rooms):,} tokens")
            prompt = _mapped(prompt, lambda text: text[-reach:])
        reach = _SLACK * longest_token * (self.max_length or 0)
        if self.max_length is not None and any(_characters(response) > reach for response in responses):
            if not self.overlong.startswith("truncate"):
                raise BadRow("response_too_long", f"a response has {max(map(_characters, responses)):,} characters, "
                                                  f"which no tokenizer brings within {self.max_length:,} tokens")
            responses = tuple(_mapped(response, lambda text: text[:reach]) for response in responses)
        return dataclasses.replace(example, prompt=prompt, responses=responses)

    def fit(self, prompt_ids: list[int], responses: Sequence[Response], bos: int | None
            ) -> tuple[list[int], list[Response], list[str]]:
        """Prompt and responses within the limits, and what was cut.

        Raises:
          BadRow: prompt_too_long, response_too_long, nothing_left_after_truncation.
        """
        longest = max((len(r.ids) for r in responses), default=0)
        total, notes = self.max_length, []
        room = self.max_prompt_length
        if total is not None and len(prompt_ids) + longest > total and self.overlong == "truncate_prompt_left":
            room = max(total - longest, total // 2) if room is None else room
        if room is not None and len(prompt_ids) > room:
            if self.overlong != "truncate_prompt_left":
                raise BadRow("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens, max_prompt_length is {room}")
            prompt_ids, notes = _keep_end(prompt_ids, room, bos), ["truncated_prompt"]
        if total is None or len(prompt_ids) + longest <= total:
            return prompt_ids, list(responses), notes
        if len(prompt_ids) >= total:
            raise BadRow("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens and max_length is {total}, which "
                                            "leaves no room for a response")
        if not self.overlong.startswith("truncate"):
            raise BadRow("response_too_long", f"prompt ({len(prompt_ids)}) and longest response ({longest} tokens) "
                                              f"exceed max_length {total}")
        cut = [_cut(response, total - len(prompt_ids)) for response in responses]
        return prompt_ids, cut, [*notes, *(["truncated_response"] * sum(r.finish_reason == LENGTH for r in cut))]


def _characters(text: Text) -> int:
    return len(text.strip()) if isinstance(text, str) else sum(len(m["content"].strip()) for m in text)


def _mapped(text: Text, cut: Callable[[str], str]) -> Text:
    return cut(text) if isinstance(text, str) else [{**m, "content": cut(m["content"])} for m in text]


def _keep_end(ids: list[int], length: int, bos: int | None) -> list[int]:
    return [ids[0], *ids[len(ids) - length + 1 :]] if ids[0] == bos else ids[-length:]


def _cut(response: Response, length: int) -> Response:
    if len(response.ids) <= length:
        return response
    mask = response.loss_mask[:length]
    if not mask.any():
        raise BadRow("nothing_left_after_truncation", "nothing of the assistant's own is left of a response after "
                                                      "truncation")
    return dataclasses.replace(response, ids=response.ids[:length], loss_mask=mask, finish_reason=LENGTH)
