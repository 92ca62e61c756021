"""Rendering: an Example becomes a PromptGroup. Text turns into token ids here, once, and never again.

Messages are rendered by the tokenizer's chat template; plain text is tokenised as it stands. Either way the prompt
has at most one BOS, the stop token lies inside the loss mask of the last turn, what a template writes after it is cut
off unless scores are read there, and masks come from lengths, never from token ids.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import LENGTH, Message, PromptGroup, Response, Text
from rlhf_jax.data.rows import Example
from rlhf_jax.data.tokenizer import (
    TEMPLATES,
    EndOfTurn,
    TemplateRefused,
    end_of_turn,
    has_bos_for_text,
    load_tokenizer,
    pad_token_id,
    plain_ids,
    stop_token_ids,
    template_ids,
)
from rlhf_jax.data.turns import BadRow

__all__ = [
    "DATA_SCORE",
    "TEMPLATES",
    "Renderer",
    "describe",
    "load_tokenizer",
    "pad_token_id",
    "render_all",
    "stop_token_ids",
]

Overlong = Literal["error", "drop", "truncate_prompt_left", "truncate_response"]
DATA_SCORE = "data"
"""Name under which the grades of a data set lie in `Response.scores`."""
_TOO_LONG = ("prompt_too_long", "response_too_long")


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
      to_last_token: messages are rendered whole, with what the template writes behind the last stop token, so that a
        response ends where transformers and TRL read a sequence classifier.
      skipped_id: taken off the ends of responses: transformers reads no head at its padding token.
    """

    tokenizer: Any
    max_prompt_length: int | None = None
    max_length: int | None = None
    overlong: Overlong = "error"
    eos_id: int | None = None
    add_bos: bool | None = None
    text_as_chat: bool = False
    to_last_token: bool = False
    skipped_id: int | None = None

    def __post_init__(self) -> None:
        if self.overlong not in get_args(Overlong):
            raise ValueError(f"overlong is {self.overlong!r}; it must be one of {', '.join(get_args(Overlong))}")
        for name in ("max_prompt_length", "max_length"):
            limit = getattr(self, name)
            if limit is not None and limit < 2:
                raise ValueError(f"{name} is {limit}; BOS and one more token need at least 2")

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
          BadRow: zero_token_prompt, doubled_bos, template_refused.
        """
        return np.asarray(_prompt_ids(self, self._chat(prompt), {}), np.int32)

    def render(self, example: Example) -> PromptGroup:
        """The prompt and all its responses as token ids within the limits.

        Raises:
          BadRow: prompt_too_long, response_too_long, zero_token_response, zero_token_prompt, doubled_bos,
            template_not_prefix_preserving, template_refused, identical_after_truncation.
          ValueError: the tokenizer lacks a chat template, or the template a stop token.
        """
        return _render(self, example)[0]

    def _chat(self, prompt: Text) -> Text:
        # An empty prompt (language modelling) has no user who could say it, so it stays plain text.
        return _messages(prompt, "user") if self.text_as_chat and prompt else prompt


def render_all(examples: Iterable[Example], renderer: Renderer, funnel: Funnel) -> list[PromptGroup]:
    """The groups of all examples that can be rendered; drops and truncations are counted in `funnel`.

    Raises:
      BadRow: a row is too long and `renderer.overlong` is "error".
      ValueError: no row is left.
    """
    groups, last = [], "there was none"
    for example in examples:
        try:
            group, notes = _render(renderer, example)
        except BadRow as error:
            if renderer.overlong == "error" and error.reason in _TOO_LONG:
                raise BadRow(error.reason, f"prompt {example.prompt_id!r}: {error.message}. Raise the limit, or set "
                                           f"overlong to {', '.join(get_args(Overlong)[1:])}") from error
            funnel.dropped[error.reason] += 1
            last = error.message
            continue
        funnel.notes.update(notes)
        groups.append(group)
    if not groups:
        raise ValueError(f"no row is left after rendering (of the last: {last}):\n{funnel}")
    return groups


def _render(renderer: Renderer, example: Example) -> tuple[PromptGroup, list[str]]:
    prompt, chat = renderer._chat(example.prompt), renderer.text_as_chat
    if isinstance(prompt, str) and any(not isinstance(response, str) for response in example.responses):
        prompt = _messages(prompt, "user")
    variables = _template_variables(example)
    prompt_ids = _prompt_ids(renderer, prompt, variables)
    if renderer.to_last_token and not isinstance(prompt, str):
        prompt_ids, rendered = _conversations(renderer, prompt, prompt_ids, example.responses, variables)
    else:
        rendered = [_response(renderer, prompt, prompt_ids, response, variables) for response in example.responses]
    prompt_ids, rendered, notes = _fit(renderer, prompt_ids, rendered)
    for chosen, rejected in example.pairs:
        if rendered[chosen].ids.tolist() == rendered[rejected].ids.tolist():
            raise BadRow("identical_after_truncation", "chosen and rejected have the same token ids; allow longer "
                                                       "responses")
    scores = example.scores or (None,) * len(rendered)
    labels = example.labels or (None,) * len(rendered)
    responses = tuple(
        dataclasses.replace(r, text=text, label=label, scores={} if score is None else {DATA_SCORE: score})
        for r, text, score, label in zip(rendered, example.responses, scores, labels, strict=True)
    )
    group = PromptGroup(example.prompt_id, np.asarray(prompt_ids, np.int32), responses,
                        prompt if chat else example.prompt, example.pairs, example.margins, example.extra)
    return group, notes


def _template_variables(example: Example) -> dict[str, Any]:
    """The columns `tools` and `chat_template_kwargs` of a row, which its chat template may use."""
    variables = dict(example.extra.get("chat_template_kwargs") or {})
    tools = example.extra.get("tools")
    if tools:
        variables["tools"] = json.loads(tools) if isinstance(tools, str) else tools
    return variables


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _template_ids(renderer: Renderer, messages: list[Message], generation: bool,
                  variables: dict[str, Any]) -> list[int]:
    try:
        return template_ids(renderer.tokenizer, messages, generation=generation, **variables)
    except TemplateRefused as error:
        raise BadRow("template_refused", str(error)) from error


def _prompt_ids(renderer: Renderer, prompt: Text, variables: dict[str, Any]) -> list[int]:
    bos = renderer.tokenizer.bos_token_id
    if isinstance(prompt, str):
        ids = plain_ids(renderer.tokenizer, prompt, continues=False)
        ids = ids if renderer.bos_id is None else [renderer.bos_id, *ids]
    else:
        ids = _template_ids(renderer, prompt, True, variables)
    if not ids:
        raise BadRow("zero_token_prompt", "the prompt has no token, and the tokenizer no BOS to start from")
    if bos is not None and ids[:2] == [bos, bos]:
        raise BadRow("doubled_bos", "the prompt begins with two BOS tokens; remove BOS from the text or the template")
    return ids


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
        ids, mask = _chat_response(renderer, _messages(prompt, "user"), prompt_ids, _messages(response, "assistant"),
                                   variables)
    if not ids:
        raise BadRow("zero_token_response", "a response has no token; there is nothing to learn from")
    return Response(np.asarray(ids, np.int32), np.asarray(mask, bool))


def _conversations(renderer: Renderer, prompt: list[Message], prompt_ids: list[int], responses: Sequence[Text],
                   variables: dict[str, Any]) -> tuple[list[int], list[Response]]:
    """What all conversations begin with, at most the prompt with its header, and the rest of each (`to_last_token`).

    Prompt and response together are `apply_chat_template` of the whole conversation, whatever the template does.
    """
    whole = [_template_ids(renderer, [*prompt, *_messages(response, "assistant")], False, variables)
             for response in responses]
    whole = [_unpadded(ids, renderer.skipped_id) for ids in whole]
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


def _chat_response(renderer: Renderer, prompt: list[Message], prompt_ids: list[int], response: list[Message],
                   variables: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of the turns after the prompt, found by rendering up to each message boundary.

    The tokens of an assistant turn are those between its header and its stop token, stop token included.
    """
    ids, mask = list(prompt_ids), [False] * len(prompt_ids)
    for i, message in enumerate(response):
        if message["role"] != "assistant":
            continue
        turns = [*prompt, *response[: i + 1]]
        header = prompt_ids if i == 0 else _template_ids(renderer, turns[:-1], True, variables)
        whole = _template_ids(renderer, turns, False, variables)
        whole = whole[: len(whole) - renderer.end_of_turn.trailing]
        if header[: len(ids)] != ids or whole[: len(header)] != header:
            raise BadRow("template_not_prefix_preserving",
                         f"the chat template renders turn {len(turns)} so that the turns before it change; where the "
                         "response begins is unknown. Use a template that only appends")
        if whole[-1] != renderer.end_of_turn.stop_id:
            raise BadRow("stop_token_missing", "the chat template does not end this assistant turn with its stop token")
        if len(whole) == len(header) + 1:
            raise BadRow("zero_token_response", "an assistant turn has no token but its stop token")
        mask += [False] * (len(header) - len(ids)) + [True] * (len(whole) - len(header))
        ids = whole
    return ids[len(prompt_ids) :], mask[len(prompt_ids) :]


def _fit(renderer: Renderer, prompt_ids: list[int],
         responses: Sequence[Response]) -> tuple[list[int], list[Response], list[str]]:
    """Prompt and responses within the limits, and what was cut."""
    longest = max((len(r.ids) for r in responses), default=0)
    total, notes = renderer.max_length, []
    room = renderer.max_prompt_length
    if total is not None and len(prompt_ids) + longest > total and renderer.overlong == "truncate_prompt_left":
        room = max(total - longest, total // 2) if room is None else room
    if room is not None and len(prompt_ids) > room:
        if renderer.overlong != "truncate_prompt_left":
            raise BadRow("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens, max_prompt_length is {room}")
        prompt_ids, notes = _keep_end(prompt_ids, room, renderer.tokenizer.bos_token_id), ["truncated_prompt"]
    if total is None or len(prompt_ids) + longest <= total:
        return prompt_ids, list(responses), notes
    if len(prompt_ids) >= total:
        raise BadRow("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens and max_length is {total}, which "
                                        "leaves no room for a response")
    if not renderer.overlong.startswith("truncate"):
        raise BadRow("response_too_long", f"prompt ({len(prompt_ids)}) and longest response ({longest} tokens) exceed "
                                          f"max_length {total}")
    cut = [_cut(response, total - len(prompt_ids)) for response in responses]
    return prompt_ids, cut, [*notes, *(["truncated_response"] * sum(r.finish_reason == LENGTH for r in cut))]


def _keep_end(ids: list[int], length: int, bos: int | None) -> list[int]:
    return [ids[0], *ids[len(ids) - length + 1 :]] if ids[0] == bos else ids[-length:]


def _cut(response: Response, length: int) -> Response:
    if len(response.ids) <= length:
        return response
    mask = response.loss_mask[:length]
    if not mask.any():
        raise BadRow("zero_token_response", "nothing of the assistant's own is left of a response after truncation")
    return dataclasses.replace(response, ids=response.ids[:length], loss_mask=mask, finish_reason=LENGTH)


def describe(group: PromptGroup, tokenizer: Any) -> str:
    """A group as text for `--dry-run`: what is trained on stands between [ and ], the rest is seen but masked."""
    lines = [f"prompt {group.prompt_id} ({len(group.prompt_ids)} tokens)", tokenizer.decode(group.prompt_ids)]
    for i, response in enumerate(group.responses):
        role = [name for pair in group.pairs for name, j in zip(("chosen", "rejected"), pair, strict=True) if j == i]
        trained = int(response.loss_mask.sum())
        about = [*sorted(set(role)), f"{len(response.ids)} tokens", f"{trained} trained",
                 f"last {tokenizer.convert_ids_to_tokens(int(response.ids[-1]))!r}"]
        about += [f"{name} {score:g}" for name, score in response.scores.items()]
        about += [] if response.label is None else [f"label {response.label}"]
        about += [] if response.finish_reason is None else [f"finish {response.finish_reason}"]
        edges = np.flatnonzero(np.diff(response.loss_mask)) + 1
        spans = zip(np.split(response.ids, edges), np.split(response.loss_mask, edges), strict=True)
        shown = "".join(f"[{tokenizer.decode(ids)}]" if mask[0] else tokenizer.decode(ids) for ids, mask in spans)
        lines += [f"response {i} ({', '.join(about)})", shown]
    return "\n".join(lines)
