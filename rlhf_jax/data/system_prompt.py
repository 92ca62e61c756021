"""A system message for conversations that have none of their own."""

from __future__ import annotations

from typing import Any

from rlhf_jax.data.bad_row import BadRow, short
from rlhf_jax.data.groups import SYSTEM_ROLES, Message, Text


def with_system_prompt(prompt: Text, text: str) -> list[Message]:
    """The prompt behind a system message; one that begins with its own keeps it, and a string becomes a user's turn.

    Raises:
      BadRow: system_beside_text, where the prompt is empty: whole text, in which nobody speaks.
    """
    if not prompt:
        raise BadRow("system_beside_text", "system_prompt is set and the row is whole text, in which nobody speaks; "
                                           "give messages, or leave system_prompt out")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return messages if messages[0]["role"] in SYSTEM_ROLES else [{"role": "system", "content": text}, *messages]


def check_system_role(renderer: Any, text: str) -> None:
    """Raises ValueError, with the reason, where the chat template of a `Renderer` writes no system message."""
    try:
        renderer.reading.check(with_system_prompt("?", text), {})
        renderer.render_prompt(with_system_prompt("?", text))
    except BadRow as error:
        raise ValueError(f"the system message {short(text)} cannot be shown to this model: {error.message}") from error
