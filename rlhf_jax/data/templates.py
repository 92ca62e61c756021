"""Chat templates: our own by name, and rendering, which strangers' templates get a process of their own for."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rlhf_jax.data import template_process
from rlhf_jax.data.template_date import at_fixed_date
from rlhf_jax.data.template_process import SECONDS, render
from rlhf_jax.data.world import CHAT_TEMPLATE

TEMPLATES = {
    "chatml": (
        "{% if bos_token and bos_token != '<|im_start|>' %}{{ bos_token }}{% endif %}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim"
        " + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{% if bos_token %}{{ bos_token }}{% endif %}"
        "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% if bos_token %}{{ bos_token }}{% endif %}"
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token"
        " + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "mistral": (
        "{% if bos_token %}{{ bos_token }}{% endif %}{% set before = namespace(text='') %}"
        "{% for message in messages %}{% if message['role'] in ('system', 'developer') %}"
        "{% set before.text = message['content'] | trim + '\n\n' %}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
        "{% else %}{{ '[INST] ' + before.text + message['content'] | trim + ' [/INST]' }}"
        "{% set before.text = '' %}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{% if bos_token %}{{ bos_token }}{% endif %}"
        "{% for message in messages %}{% if message['role'] in ('system', 'developer') %}"
        "{{ raise_exception('Gemma has no turns of the role ' + message['role']) }}{% endif %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "plain": (
        "{% if bos_token %}{{ bos_token }}{% endif %}"
        "{% for message in messages %}{{ message['role'] | capitalize + ':\n' + message['content'] | trim }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
    ),
}
"""Chat templates by name. `plain` needs no special token but EOS, so it suits base models. Mistral's models know no
system turn, and read the message before the first user's words; Gemma's (1 and 2) know none, and refuse it."""
_OURS = {*TEMPLATES.values(), CHAT_TEMPLATE}


class TemplateRefused(ValueError):
    """A chat template cannot render these messages."""


class _Process:
    """`template_process` as a script, started when it is first needed and again where a template ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> dict[str, str]:
        """The answer to a request; TemplateRefused if it ended the process, ValueError if by taking too long."""
        with self._lock:
            for _ in range(2):  # a process that something else ended is no fault of the template
                process = self._running or self._start()
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):  # seen below: nothing comes back
                    process.stdin.write(request + b"\n")
                    process.stdin.flush()
                if answer := process.stdout.readline():
                    return dict(json.loads(answer))
                self._running = None
                process.communicate()  # closes the pipes, whatever they still hold
                status = process.returncode
                if status == -signal.SIGXCPU:
                    raise ValueError(f"the chat template was stopped after {SECONDS} seconds of processor time over "
                                     "one conversation; it probably never ends. Set chat_template_path to another")
        raise TemplateRefused(f"the chat template ended the process that renders it (status {status})")

    def _start(self) -> subprocess.Popen[bytes]:
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._running = subprocess.Popen([sys.executable, "-P", template_process.__file__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env=os.environ | threads)
        return self._running

    def close(self) -> None:
        if self._running is not None:
            self._running.communicate()
            self._running = None


_PROCESS = _Process()
atexit.register(_PROCESS.close)


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of messages by the tokenizer's chat template, as transformers' `apply_chat_template`.

    Templates of ours are rendered here. All others are programs of strangers: they get a process with limits.

    Raises:
      TemplateRefused: the template does not take these messages, or goes beyond the limits of memory and length.
      ValueError: it takes too long.
    """
    template = at_fixed_date(tokenizer.get_chat_template(None, variables.get("tools")))
    arguments = {**variables, "conversation": messages, "chat_template": template}
    request = json.dumps({"special": tokenizer.special_tokens_map, "arguments": arguments},
                         default=lambda value: f"<{type(value).__name__}>").encode()
    answer = render(tokenizer, arguments, len(request)) if template in _OURS else _PROCESS.ask(request)
    if "error" in answer:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TemplateRefused(f"the chat template cannot render the turns {roles}: {answer['error']}")
    return answer["text"]
