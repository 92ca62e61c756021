"""A prompt as plain text: what duplicates, benchmarks, splits and lengths are found by."""

from __future__ import annotations

import functools
import hashlib
import json

from rlhf_jax.data.example import Example
from rlhf_jax.data.groups import Message, Text

BUCKETS = 100


def plain_text(text: Text) -> str:
    """The words of a text; of messages their contents, with an empty line between them."""
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)


def user_turns(prompt: Text) -> list[str]:
    """What the user said, turn by turn; plain text is one turn."""
    return [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] == "user"]


def asked(example: Example) -> Text:
    """The user's messages in the prompt and in the responses; where nobody asks, the text itself."""
    said = messages_of(example.prompt, "user") if example.prompt else []
    said = [*said, *(message for response in example.responses for message in messages_of(response, "assistant"))]
    asking = [message for message in said if message["role"] == "user"]
    return asking or plain_text(example.responses[0] if example.responses else "")


def compared(text: Text, role: str) -> str:
    """What a text says and shows, by which rows are compared: case and white space aside in the words alone.

    Plain text is the same as one message of `role`.
    """
    messages = [{**message, "content": normalised(message["content"])} for message in messages_of(text, role)]
    plain = messages == [{"role": role, "content": messages[0]["content"]}]
    return messages[0]["content"] if plain else json.dumps(messages, ensure_ascii=False, sort_keys=True)


def messages_of(text: Text, role: str) -> list[Message]:
    """A text as messages: itself, or one of the role."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


@functools.lru_cache(maxsize=4096)  # an answer is in many pairs, one behind the other
def normalised(text: str) -> str:
    """Lower case, white space collapsed."""
    return " ".join(text.lower().split())


def opening(example: Example) -> str:
    """What says on which side of a split an example falls: its first user turn, or its text where nobody asks.

    Conversations that begin alike fall on one side, however they go on.
    """
    first = next(iter(user_turns(example.prompt)), "") or plain_text(example.responses[0] if example.responses else "")
    return normalised(first)


def bucket(text: str) -> int:
    """A number below BUCKETS by the sha1 of a normalised text; the same in every source and for every seed."""
    return int(hashlib.sha1(text.encode()).hexdigest()[:8], 16) % BUCKETS
