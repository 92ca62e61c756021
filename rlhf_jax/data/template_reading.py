"""Whether a chat template writes what a row says: seen once for each kind of message, on a probe.

A field without effect is no small thing: beside a template that passes over the thoughts, not to think is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.groups import SYSTEM_ROLES, Message
from rlhf_jax.data.message_fields import TRAIN
from rlhf_jax.data.templates import TemplateRefused
from rlhf_jax.data.tokenizer import template_of, template_text

_SAID = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")
"""What the speaker said, in whatever form. Other fields are about the message; that they are not written is noted."""
_Kind = tuple[str, tuple[str, ...], bool, bool]
"""Role, names of the fields beside role and content, whether there is text, and whether several tools are called."""


class TemplateReading:
    """What of messages and tools the chat template of a tokenizer writes."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._unread: dict[_Kind, list[str]] = {}
        self._tools: bool | None = None

    def check(self, messages: Iterable[Message], variables: Mapping[str, Any]) -> list[str]:
        """Notes for the funnel: `unread_NAME` for fields about a message that the template does not write.

        Args:
          messages: of prompt and responses. variables: the row's tools and chat_template_kwargs.

        Raises:
          BadRow: NAME_not_rendered, for a turn, a field of what was said, tools or a variable that it does not write.
        """
        if "tools" in variables and not self._reads_tools():
            raise unrendered("tools")
        for name in variables:
            if name != "tools" and name not in _variables(template_of(self._tokenizer)):
                raise unrendered(name)
        notes: list[str] = []
        for kind in dict.fromkeys(_kind(message) for message in messages):
            if kind[0] in ("user", "assistant") and not kind[1]:
                continue
            for name in self._unread_of(kind):
                if name in _SAID:
                    whole = name == "content" and kind[0] in (*SYSTEM_ROLES, "tool")
                    several = " that call several tools" if kind[3] and name == "tool_calls" else ""
                    raise unrendered(kind[0] if whole else name, f" in turns of the role {kind[0]}{several}")
                notes.append("unread_" + re.sub(r"\W", "_", name)[:40])
        return notes

    def _unread_of(self, kind: _Kind) -> list[str]:
        if kind not in self._unread:
            role, fields, text, several = kind
            words = {name: f"zqjx{chr(97 + i)}zqjx" for i, name in enumerate(("content", *fields))}
            message = {"role": role, "content": words["content"] if text else "",
                       **{name: _value(name, words[name]) for name in fields}}
            if several:  # the word is then that of the last one
                message["tool_calls"] = [*_value("tool_calls", "b"), *message["tool_calls"]]
            names = [*(["content"] if text else []), *fields]
            try:
                written = template_text(self._tokenizer, _around(role, message), generation=False).lower()
                self._unread[kind] = [name for name in names if words[name] not in written]
            except TemplateRefused:  # of the probe; the messages themselves may do, if the template knows the names
                self._unread[kind] = [name for name in fields if not self._names(name)]
        return self._unread[kind]

    def _reads_tools(self) -> bool:
        if self._tools is None:
            schema = {"name": "zqjx", "description": "zqjx", "parameters": {"type": "object", "properties": {}}}
            tool = {"type": "function", **schema, "function": schema}  # templates read either form
            try:
                self._tools = "zqjx" in template_text(self._tokenizer, [{"role": "user", "content": "a"}],
                                                      generation=True, tools=[tool])
            except TemplateRefused:
                self._tools = self._names("tools")
        return self._tools

    def _names(self, name: str) -> bool:
        """Whether the template's text has this word."""
        return re.search(rf"\b{re.escape(name)}\b", template_of(self._tokenizer)) is not None


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str]:
    """Names that a template takes from outside, those that it sets where they are not given among them."""
    from jinja2 import Environment, TemplateError, meta

    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)  # transformers' own tag
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        return frozenset(meta.find_undeclared_variables(parsed))
    except TemplateError as error:
        raise BadRow("template_refused", f"the chat template cannot be read: {error}") from error


def unrendered(name: str, where: str = "") -> BadRow:
    """The fault of a row of which the model would not be shown the part `name`."""
    other = "give it the role system" if name == "developer" else "take it out of the data"
    return BadRow(f"{name}_not_rendered", f"the chat template does not write {name!r}{where}, so the model would not "
                                          "see what this row says; use a template that does (chat_template_path), or "
                                          f"{other}")


def _kind(message: Message) -> _Kind:
    fields = sorted(name for name in message if name not in ("role", "content", TRAIN))
    return message["role"], tuple(fields), bool(message["content"].strip()), len(message.get("tool_calls", ())) > 1


def _value(name: str, word: str) -> Any:
    """A value that a field of this name may have, with `word` in it."""
    if name == "tool_calls":
        call = {"name": word, "arguments": {}}
        return [{"type": "function", "id": "zqjxzqjxz", **call, "function": call}]
    return {"name": word, "arguments": "{}"} if name == "function_call" else word


def _around(role: str, message: dict[str, Any]) -> list[dict[str, Any]]:
    """The shortest conversation in which a message of this role may stand."""
    user = {"role": "user", "content": "a"}
    call = {"role": "assistant", "content": "", "tool_calls": _value("tool_calls", "b")}
    around = {"assistant": [user, message], "tool": [user, call, message]}
    return [message, user] if role in SYSTEM_ROLES else around.get(role, [message])
