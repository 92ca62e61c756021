"""Rendering: an Example becomes a PromptGroup. Text turns into token ids here, once, and never again.

Messages are rendered by the tokenizer's chat template; plain text is tokenised as it stands. Either way the prompt
has at most one BOS, the stop token lies inside the loss mask of the last turn, what a template writes after it is cut
off unless scores are read there, and masks come from lengths, never from token ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, get_args

import numpy as np

from rlhf_jax.config.data import Overlong
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.context_columns import template_variables
from rlhf_jax.data.example import Example, with_responses
from rlhf_jax.data.groups import LENGTH, SYSTEM_ROLES, Message, PromptGroup, Response, Text
from rlhf_jax.data.growing_text import GrowingText
from rlhf_jax.data.limits import Limits
from rlhf_jax.data.prompt_text import messages_of
from rlhf_jax.data.spoken import spoken_ids
from rlhf_jax.data.system_prompt import with_system_prompt
from rlhf_jax.data.template_reading import TemplateReading, unrendered
from rlhf_jax.data.templates import TEMPLATES, TemplateRefused
from rlhf_jax.data.tokenizer import (
    EndOfTurn,
    end_of_turn,
    has_bos_for_text,
    load_tokenizer,
    pad_token_id,
    plain_ids,
    stop_token_ids,
    template_text,
)

__all__ = [
    "TEMPLATES",
    "Overlong",
    "Renderer",
    "describe",
    "load_tokenizer",
    "pad_token_id",
    "stop_token_ids",
]


@dataclasses.dataclass(frozen=True)
class Renderer:
    """How text becomes token ids.

    Attributes:
      tokenizer: a transformers tokenizer.
      max_prompt_length: tokens of a prompt at most, BOS and generation header included; None: no limit.
      max_length: tokens of prompt and one response together at most; None: no limit.
      overlong: what becomes of longer rows. `error` and `drop` raise BadRow from `render` (`render_all` stops at the
        first or counts and goes on). `truncate_prompt_left` keeps BOS and the end of the prompt and cuts responses
        only if still too long. `truncate_response` cuts responses alone. A cut response has no stop token.
      eos_id: stop token put after plain-text responses; None: the tokenizer's EOS. (The story models stop with BOS.)
      add_bos: plain-text prompts begin with BOS; None: see `tokenizer.has_bos_for_text`.
      text_as_chat: string prompts and responses are rendered as a user and an assistant message, not as plain text.
      rows: of the model's embedding; an id beyond them is a fault of the row. None: any id will do.
      to_last_token: messages are rendered whole, with what the template writes behind the last stop token, so that a
        response ends where transformers and TRL read a sequence classifier.
      skipped_id: taken off the ends of responses: transformers reads no head at its padding token.
      system_prompt: see `data.system_prompt`.
    """

    tokenizer: Any
    max_prompt_length: int | None = None
    max_length: int | None = None
    overlong: Overlong = "error"
    eos_id: int | None = None
    add_bos: bool | None = None
    text_as_chat: bool = False
    rows: int | None = None
    to_last_token: bool = False
    skipped_id: int | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.overlong not in get_args(Overlong):
            raise ValueError(f"overlong is {self.overlong!r}; it must be one of {', '.join(get_args(Overlong))}")
        for name in ("max_prompt_length", "max_length"):
            limit = getattr(self, name)
            if limit is not None and limit < 2:
                raise ValueError(f"{name} is {limit}; BOS and one more token need at least 2")

    @cached_property
    def limits(self) -> Limits:
        return Limits(self.max_prompt_length, self.max_length, self.overlong)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def reading(self) -> TemplateReading:
        return TemplateReading(self.tokenizer)

    @cached_property
    def growing(self) -> GrowingText:
        return GrowingText(self.tokenizer)

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        return end_of_turn(self.tokenizer)

    @cached_property
    def bos_id(self) -> int | None:
        wanted = has_bos_for_text(self.tokenizer) if self.add_bos is None else self.add_bos
        if wanted and self.tokenizer.bos_token_id is None:
            raise ValueError("add_bos is set and the tokenizer has no BOS token; unset it")
        return self.tokenizer.bos_token_id if wanted else None

    @property
    def text_end(self) -> int | None:
        """The stop token behind plain-text responses."""
        return self.tokenizer.eos_token_id if self.eos_id is None else self.eos_id

    def for_scores(self, score_at: str, pad_token_id: int | None) -> Renderer:
        """This renderer for a sequence classifier: responses end where its head is read (`DecoderConfig.score_at`)."""
        last = score_at == "last_token"
        return dataclasses.replace(self, to_last_token=last, skipped_id=pad_token_id if last else None)

    def render_prompt(self, prompt: Text) -> np.ndarray:
        """[p] int32 ids of a prompt, not cut, with BOS and, for messages, the header of the assistant's turn.

        Raises:
          BadRow: zero_token_prompt, doubled_bos, template_refused, token_without_row; prompt_too_long where that is
            sure from its letters.
        """
        dataclasses.replace(self.limits, overlong="drop").within_reach(Example(prompt), self.longest_token)
        return np.asarray(_prompt_ids(self, self._chat(prompt), {}), np.int32)

    def render(self, example: Example) -> PromptGroup:
        """The prompt and all its responses as token ids within the limits.

        Raises:
          BadRow: prompt_too_long, response_too_long, zero_token_response, zero_token_prompt, doubled_bos,
            template_not_prefix_preserving, template_refused, token_without_row, nothing_trained, NAME_not_rendered,
            and LEFT_OUT.
          ValueError: the tokenizer lacks a chat template, or the template a stop token.
        """
        return self.render_noted(example)[0]

    def render_noted(self, example: Example) -> tuple[PromptGroup, list[str]]:
        """As `render`, and what was done to the example, for the funnel's notes."""
        return _render(self, example)

    def _chat(self, prompt: Text) -> Text:
        # An empty prompt (language modelling) has no user who could say it, so it stays plain text.
        chat = messages_of(prompt, "user") if self.text_as_chat and prompt else prompt
        return chat if self.system_prompt is None else with_system_prompt(chat, self.system_prompt)


def _render(renderer: Renderer, example: Example) -> tuple[PromptGroup, list[str]]:
    example = renderer.limits.within_reach(example, renderer.longest_token)
    prompt, chat = renderer._chat(example.prompt), renderer.text_as_chat or renderer.system_prompt is not None
    if isinstance(prompt, str) and any(not isinstance(response, str) for response in example.responses):
        prompt = messages_of(prompt, "user")
    variables = template_variables(example.extra)
    unread = _check_read(renderer, prompt, example.responses, variables)
    if prompt == "" and renderer.bos_id is None and len(example.responses) == 1:
        prompt_ids, rendered = _whole_text(renderer, example.responses[0])
    else:
        prompt_ids = _prompt_ids(renderer, prompt, variables)
        if renderer.to_last_token and not isinstance(prompt, str):
            prompt_ids, rendered = _conversations(renderer, prompt, prompt_ids, example.responses, variables)
        else:
            rendered = [_response(renderer, prompt, prompt_ids, response, variables) for response in example.responses]
    prompt_ids, rendered, notes = renderer.limits.fit(prompt_ids, rendered, renderer.tokenizer.bos_token_id)
    example, rendered, about = _told_apart(example, rendered)
    scores = example.scores or ({},) * len(rendered)
    responses = tuple(dataclasses.replace(r, text=text, scores=numbers)
                      for r, text, numbers in zip(rendered, example.responses, scores, strict=True))
    group = PromptGroup(example.prompt_id, np.asarray(prompt_ids, np.int32), responses,
                        prompt if chat else example.prompt, example.pairs, example.margins, example.extra)
    return group, [*unread, *notes, *about]


def _told_apart(example: Example, rendered: list[Response]) -> tuple[Example, list[Response], list[str]]:
    """Without the pairs whose responses have the same ids and the responses that are then in none, and notes of them.

    Raises:
      BadRow: identical_after_truncation or identical_tokens, where no pair is left.
    """
    same = [rendered[chosen].ids.tolist() == rendered[rejected].ids.tolist() for chosen, rejected in example.pairs]
    if not any(same):
        return example, rendered, []
    if all(same):
        if any(rendered[place].finish_reason == LENGTH for pair in example.pairs for place in pair):
            raise BadRow("identical_after_truncation", "chosen and rejected have the same token ids once they are cut; "
                                                       "allow longer responses")
        raise BadRow("identical_tokens", "chosen and rejected have the same token ids: they differ in nothing that the "
                                         "chat template and the tokenizer keep; leave out the row")
    whole = [number for number, alike in enumerate(same) if not alike]
    pairs = tuple(example.pairs[number] for number in whole)
    margins = tuple(example.margins[number] for number in whole) if example.margins else ()
    kept = sorted({place for pair in pairs for place in pair})
    apart = with_responses(dataclasses.replace(example, pairs=pairs, margins=margins), kept)
    return apart, [rendered[place] for place in kept], ["left_out_identical_pairs"] * sum(same)


def _check_read(renderer: Renderer, prompt: Text, responses: Sequence[Text], variables: dict[str, Any]) -> list[str]:
    """See `TemplateReading.check`; plain text is written by no template, so that nothing beside it is."""
    if isinstance(prompt, str):
        for name in variables:
            raise unrendered(name, " beside plain text")
        return []
    messages = [message for text in (prompt, *responses) if not isinstance(text, str) for message in text]
    return renderer.reading.check(messages, variables)


def _whole_text(renderer: Renderer, text: Text) -> tuple[list[int], list[Response]]:
    """Text without a prompt where nothing stands before texts: its first token is seen, the others are learned."""
    response = _response(renderer, "", [], text, {})
    if len(response.ids) < 2:
        raise BadRow("zero_token_response", "the text has one token, before which there is nothing to predict it from")
    return response.ids[:1].tolist(), [Response(response.ids[1:], response.loss_mask[1:])]


def _template_ids(renderer: Renderer, variables: dict[str, Any], messages: list[Message],
                  generation: bool) -> list[int]:
    try:
        return renderer.growing.ids(template_text(renderer.tokenizer, messages, generation=generation, **variables))
    except TemplateRefused as error:
        raise _refusal(renderer, variables, messages, generation, error) from error


def _refusal(renderer: Renderer, variables: dict[str, Any], messages: list[Message], generation: bool,
             error: TemplateRefused) -> BadRow:
    """Why a template takes no messages: their system message, if it takes them without one."""
    role = messages[0]["role"] if messages else ""
    if role in SYSTEM_ROLES:
        with contextlib.suppress(TemplateRefused):
            template_text(renderer.tokenizer, messages[1:], generation=generation, **variables)
            return BadRow(f"{role}_not_rendered", f"{error}. Without its {role} message the conversation is rendered: "
                                                  "use a template that takes one (chat_template_path), set "
                                                  "drop_system, or write it into the first user turn")
    return BadRow("template_refused", str(error))


def _prompt_ids(renderer: Renderer, prompt: Text, variables: dict[str, Any]) -> list[int]:
    bos = renderer.tokenizer.bos_token_id
    if isinstance(prompt, str):
        ids = plain_ids(renderer.tokenizer, prompt, continues=False)
        ids = ids if renderer.bos_id is None else [renderer.bos_id, *ids]
    else:
        ids = _template_ids(renderer, variables, prompt, True)
    if not ids:
        raise BadRow("zero_token_prompt", "the prompt has no token, and in this tokenizer no BOS stands before texts "
                                          "(one that opens the turns of a chat template is none); give a prompt")
    if bos is not None and ids[:2] == [bos, bos]:
        raise BadRow("doubled_bos", "the prompt begins with two BOS tokens; remove BOS from the text or the template")
    _check_rows(renderer, ids)
    return ids


def _check_rows(renderer: Renderer, ids: list[int]) -> None:
    if ids and renderer.rows is not None and max(ids) >= renderer.rows:
        token = renderer.tokenizer.convert_ids_to_tokens(max(ids))
        raise BadRow("token_without_row", f"the text holds the token {token!r} ({max(ids)}), and the model's embedding "
                                          f"has {renderer.rows:,} rows; take it out of the text")


def _response(renderer: Renderer, prompt: Text, prompt_ids: list[int], response: Text,
              variables: dict[str, Any]) -> Response:
    if isinstance(prompt, str) and isinstance(response, str):
        ids = plain_ids(renderer.tokenizer, response, continues=prompt != "")
        mask = [True] * len(ids)
        eos = renderer.text_end
        if eos is None:
            raise ValueError("the tokenizer has no EOS token, so a model could not learn to stop; set eos_id")
        if ids and ids[-1] != eos:
            ids, mask = [*ids, eos], [*mask, True]
        ids = _unpadded(ids, renderer.skipped_id)
        mask = mask[: len(ids)]
    else:
        ids, mask = spoken_ids(partial(_template_ids, renderer, variables), renderer.end_of_turn,
                               messages_of(prompt, "user"), prompt_ids, messages_of(response, "assistant"))
    if not ids:
        raise BadRow("zero_token_response", "a response has no token; there is nothing to learn from")
    _check_rows(renderer, ids)
    return Response(np.asarray(ids, np.int32), np.asarray(mask, bool))


def _conversations(renderer: Renderer, prompt: list[Message], prompt_ids: list[int], responses: Sequence[Text],
                   variables: dict[str, Any]) -> tuple[list[int], list[Response]]:
    """What all conversations begin with, at most the prompt with its header, and the rest of each (`to_last_token`).

    Prompt and response together are `apply_chat_template` of the whole conversation, whatever the template does.
    """
    whole = [_template_ids(renderer, variables, [*prompt, *messages_of(response, "assistant")], False)
             for response in responses]
    whole = [_unpadded(ids, renderer.skipped_id) for ids in whole]
    for ids in whole:
        _check_rows(renderer, ids)
    columns = zip(prompt_ids, *(ids[:-1] for ids in whole), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    if not shared:
        raise BadRow("template_not_prefix_preserving", "the rendered conversations of this prompt have no token in "
                                                       "common; use a template that begins with BOS or the prompt")
    return prompt_ids[:shared], [Response(np.asarray(ids[shared:], np.int32), np.ones(len(ids) - shared, bool))
                                 for ids in whole]


def _unpadded(ids: list[int], skipped_id: int | None) -> list[int]:
    """The ids without the skipped ones at their end."""
    while ids and ids[-1] == skipped_id:
        ids = ids[:-1]
    return ids


def describe(group: PromptGroup, tokenizer: Any) -> str:
    """A group as text for `--dry-run`: what is trained on stands between [ and ], the rest is seen but masked."""
    lines = [f"prompt {group.prompt_id} ({len(group.prompt_ids)} tokens)", tokenizer.decode(group.prompt_ids)]
    for i, response in enumerate(group.responses):
        role = [name for pair in group.pairs for name, j in zip(("chosen", "rejected"), pair, strict=True) if j == i]
        trained = int(response.loss_mask.sum())
        about = [*sorted(set(role)), f"{len(response.ids)} tokens", f"{trained} trained",
                 f"last {tokenizer.convert_ids_to_tokens(int(response.ids[-1]))!r}"]
        about += [f"{name} {score:g}" for name, score in response.scores.items()]
        about += [] if response.finish_reason is None else [f"finish {response.finish_reason}"]
        edges = np.flatnonzero(np.diff(response.loss_mask)) + 1
        spans = zip(np.split(response.ids, edges), np.split(response.loss_mask, edges), strict=True)
        shown = "".join(f"[{tokenizer.decode(ids)}]" if mask[0] else tokenizer.decode(ids) for ids, mask in spans)
        lines += [f"response {i} ({', '.join(about)})", shown]
    return "\n".join(lines)
