"""OpenAI's HTTP interface: questions as servers want them, and what is read of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Question(NamedTuple):
    """What is asked. path: of the interface's method, behind the server's url. body: its JSON."""

    path: str
    body: Mapping[str, Any]


def chat(model: str, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Question:
    """The next turn of a conversation. settings: temperature, max_tokens, logprobs ..."""
    return Question("chat/completions", {"model": model, "messages": list(messages), **settings})


def completion(model: str, prompt: str | Sequence[int], **settings: Any) -> Question:
    """What comes after a text, or after token ids."""
    return Question("completions", {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt),
                                    **settings})


def chat_text(answer: Mapping[str, Any]) -> str:
    """The text of a turn. Raises ValueError where there is none."""
    text = _choice(answer).get("message", {}).get("content")
    if not isinstance(text, str):
        raise ValueError("the answer has no choices[0].message.content")
    return text


def completion_text(answer: Mapping[str, Any]) -> str:
    """The text of a continuation. Raises ValueError where there is none."""
    text = _choice(answer).get("text")
    if not isinstance(text, str):
        raise ValueError("the answer has no choices[0].text")
    return text


def first_token_logps(answer: Mapping[str, Any]) -> dict[str, float]:
    """Token -> log-probability, of the most probable first tokens of a turn (asked with logprobs and top_logprobs).

    Raises:
      ValueError: the server gave none.
    """
    tokens = (_choice(answer).get("logprobs") or {}).get("content") or []
    top = tokens[0].get("top_logprobs") if tokens else None
    if not top:
        raise ValueError("the answer has no choices[0].logprobs.content[0].top_logprobs; the judge must be served with "
                         "log-probs")
    return {str(entry["token"]): float(entry["logprob"]) for entry in top}


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the answer has no choices")
    return choices[0]
