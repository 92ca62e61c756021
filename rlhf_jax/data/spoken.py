"""Where the assistant speaks in a rendered conversation: ids and loss mask of the turns behind a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.groups import Message
from rlhf_jax.data.message_fields import TRAIN
from rlhf_jax.data.tokenizer import EndOfTurn

Render = Callable[[list[Message], bool], list[int]]
"""(messages, with the header of the assistant's next turn or without) -> the ids of a chat template."""


def spoken_ids(render: Render, end: EndOfTurn, prompt: Sequence[Message], prompt_ids: Sequence[int],
               response: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of the turns after the prompt, found by rendering up to each message boundary.

    The tokens of an assistant turn are those between its header and its stop token, stop token included.

    Raises:
      BadRow: template_not_prefix_preserving, stop_token_missing, zero_token_response, nothing_trained.
    """
    ids, mask = list(prompt_ids), [False] * len(prompt_ids)
    for i, message in enumerate(response):
        if message["role"] != "assistant":
            continue
        turns = [*prompt, *response[: i + 1]]
        header = list(prompt_ids) if i == 0 else render(turns[:-1], True)
        own = _behind(render, header, turns) if header[: len(ids)] == ids else None
        if own is None:
            raise BadRow("template_not_prefix_preserving",
                         f"the chat template renders turn {len(turns)} so that the turns before it, or its own "
                         "opening, change; where the response begins is unknown. Use a template that only appends "
                         "(a training form of this one, with chat_template_path); of one that opens with a thought, "
                         "give the thought (reasoning_content, or <think> in the text), or chat_template_kwargs "
                         "against it")
        own = _to_stop_token(own, end, message)
        if len(own) == 1:
            raise BadRow("zero_token_response", "an assistant turn has no token but its stop token")
        mask += [False] * (len(header) - len(ids)) + [message.get(TRAIN, True)] * len(own)
        ids = [*header, *own]
    if not any(mask):
        raise BadRow("nothing_trained", "every turn of a response says that it is not trained on; leave out the row")
    return ids[len(prompt_ids) :], mask[len(prompt_ids) :]


def _behind(render: Render, header: list[int], turns: list[Message]) -> list[int] | None:
    """What the assistant writes behind `header`, the conversation before its turn; None where that is unknown.

    gpt-oss is shown the thought before a tool call until the answer is there, and no more once it is. The answer is
    learned behind what is shown while it is written: it begins behind the last header that it shares with another
    answer to the same conversation.
    """
    whole = render(turns, False)
    if whole[: len(header)] == header:
        return whole[len(header) :]
    closed = render(turns[:-1], False)
    opening = header[len(closed) :]
    if not opening or header[: len(closed)] != closed:
        return None
    other = render([*turns[:-1], {"role": "assistant", "content": "zqjx"}], False)
    shared = next((i for i, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b), 0)
    starts = [i for i in range(shared - len(opening) + 1) if whole[i : i + len(opening)] == opening]
    return whole[starts[-1] + len(opening) :] if starts else None


def _to_stop_token(ids: list[int], end: EndOfTurn, message: Message) -> list[int]:
    """A turn up to its stop token. One that calls tools may have another one: gpt-oss ends it with <|call|>."""
    if ids[len(ids) - end.trailing - 1 :] == [end.stop_id, *end.trailing_ids]:
        return ids[: len(ids) - end.trailing]
    if "tool_calls" in message and ids and ids[-1] in end.markers:
        return ids
    raise BadRow("stop_token_missing", "the chat template does not end this assistant turn with its stop token, so "
                                       "the model could not learn to stop there; use a template that does "
                                       "(chat_template_path)")
