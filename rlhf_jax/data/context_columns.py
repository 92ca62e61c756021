"""Columns beside a row's texts that change what the model is shown.

| column                     | becomes                                                                     |
|----------------------------|-----------------------------------------------------------------------------|
| `system`, `system_prompt`  | a system message before the prompt                                          |
| `tools`                    | a list of schemas (or its JSON) for the chat template                       |
| `chat_template_kwargs`     | variables of the chat template                                              |
| `image(s)`, `audio(s)`, `video(s)` | refused: only text is supported                                     |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.bad_row import BadRow, checked_text, short
from rlhf_jax.data.groups import SYSTEM_ROLES, Message, Text
from rlhf_jax.data.json_values import checked_json

SYSTEM_COLUMNS = ("system", "system_prompt")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
_MEDIA = tuple(name + ending for name in ("image", "audio", "video") for ending in ("", "s"))
_OURS = ("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
         "continue_final_message", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding",
         "truncation", "max_length", "tokenizer_kwargs", "sanitize_control_tokens", "strftime_now")
"""Names that a row's chat_template_kwargs may not take, since the rendering itself sets them."""


def check_media(row: Mapping[str, Any]) -> None:
    """Raises BadRow (media_not_rendered) for a row with pictures, sound or film."""
    for column in _MEDIA:
        if row.get(column) not in (None, "", [], {}):
            raise BadRow("media_not_rendered", f"column {column!r} holds {short(row[column])} and only text is "
                                               "supported; leave such rows out, or the column where it says nothing")


def with_system(prompt: Text, row: Mapping[str, Any]) -> Text:
    """The prompt behind the system message that a row keeps in a column of its own; a string becomes a user's turn.

    Raises:
      BadRow: not_text_content, lone_surrogate, two_system_messages (another one in the messages or a second column).
    """
    for column in SYSTEM_COLUMNS:
        text = row.get(column)
        if _is_blank(text):
            continue
        if not isinstance(text, str):
            raise BadRow("not_text_content", f"column {column!r} holds {short(text)}; a system message is text")
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        first = messages[0]
        if first["role"] in SYSTEM_ROLES and first["content"].strip() != text.strip():
            raise BadRow("two_system_messages", f"column {column!r} ({short(text)}) and the messages before it "
                                                f"({short(first['content'])}) are two system messages; keep one")
        if first["role"] not in SYSTEM_ROLES:
            messages = [{"role": "system", "content": checked_text(text, column)}, *messages]
        prompt = messages
    return prompt


def without_system(prompt: Text, row: Mapping[str, Any]) -> tuple[Text, bool]:
    """The prompt without its system or developer message, and whether it or a column of the row had one."""
    first = not isinstance(prompt, str) and prompt[0]["role"] in SYSTEM_ROLES
    return prompt[1:] if first else prompt, first or has_system(row)


def has_system(row: Mapping[str, Any]) -> bool:
    """Whether a column of the row holds a system message; one of white space is none."""
    return not all(_is_blank(row.get(column)) for column in SYSTEM_COLUMNS)


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def template_variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the columns `tools` and `chat_template_kwargs` hand to the chat template.

    Raises:
      BadRow: bad_tools, bad_chat_template_kwargs, and those of `checked_json`.
    """
    variables = row.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise BadRow("bad_chat_template_kwargs", f"column 'chat_template_kwargs' holds {short(variables)}; give an "
                                                 "object of names and values")
    taken = [str(name) for name in variables if name in _OURS or not str(name).isidentifier()]
    if taken:
        raise BadRow("bad_chat_template_kwargs", f"column 'chat_template_kwargs' names {', '.join(map(short, taken))}"
                                                 ", which no row can set; leave it out")
    variables = checked_json(variables, "chat_template_kwargs")
    tools = _tools(row.get("tools"))
    return {**variables, **({"tools": tools} if tools else {})}


def _tools(tools: Any) -> list[dict[str, Any]]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise BadRow("bad_tools", f"column 'tools' holds {short(tools)}, which is no JSON ({error}); give a list "
                                      "of tool schemas, or leave it empty") from error
    if tools is not None and (not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools)):
        raise BadRow("bad_tools", f"column 'tools' holds {short(tools)}; give a list of tool schemas, each an object")
    checked: list[dict[str, Any]] = checked_json(tools or [], "tools")
    return checked
