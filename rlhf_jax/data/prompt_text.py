"""A prompt as plain text: what duplicates, benchmarks, splits and lengths are found by."""

from __future__ import annotations

import functools
import hashlib

from rlhf_jax.data.example import Example
from rlhf_jax.data.groups import Text

BUCKETS = 100


def plain_text(text: Text) -> str:
    """The words of a text; of messages their contents, with an empty line between them."""
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)


def user_turns(prompt: Text) -> list[str]:
    """What the user said, turn by turn; plain text is one turn."""
    return [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] == "user"]


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
