"""Models that answer with one token: the letters of a comparison, the signs of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.rows import Example
from rlhf_jax.models import CheckpointError


def reply_ids(renderer: Renderer, replies: Sequence[str], model: str, instead: Mapping[str, str] | None = None
              ) -> tuple[int, ...]:
    """Token ids of the replies where a reply begins.

    Args:
      model: what needs them, for the error. instead: what could be another where a reply is not one token, by reply;
        the chat template where nothing is said.

    Raises:
      CheckpointError: a reply is not one token of its own in this tokenizer and template.
    """
    group = renderer.render(Example([{"role": "user", "content": "?"}], tuple(replies)))
    ids = []
    for reply, response in zip(replies, group.responses, strict=True):
        if len(response.ids) != 2:
            raise CheckpointError(f"the reply {reply!r} takes {len(response.ids) - 1} tokens in this tokenizer and "
                                  f"template; a {model} needs one. Use another "
                                  f"{(instead or {}).get(reply, 'chat template')}")
        ids.append(int(response.ids[0]))
    for place, found in enumerate(ids):
        if found in ids[:place]:
            raise CheckpointError(f"the replies {replies[ids.index(found)]!r} and {replies[place]!r} have the same "
                                  f"token id in this tokenizer; a {model} cannot tell them apart")
    return tuple(ids)
