"""Renders one chat template; run as a script, a process that does nothing else, within limits of time and memory.

A template of a model folder is a stranger's program. The script reads one JSON request a line and writes one JSON
answer per line (see `templates`); it ends with its input.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

SECONDS = 5
"""Processor time of one rendering; ordinary ones take thousandths of a second."""
BYTES = 1 << 30
"""Memory of the whole process."""
CHARACTERS = 1_000_000
"""Length of what is rendered, where it is more than ten times as long as what it is rendered from."""


def render(tokenizer: Any, arguments: Mapping[str, Any], size: int) -> dict[str, str]:
    """{"text": what `apply_chat_template` makes of the arguments}, or {"error": why it makes nothing of them}.

    size: characters of the arguments.
    """
    try:
        text = tokenizer.apply_chat_template(**arguments, tokenize=False)
    except Exception as error:  # a program may raise anything, and whatever it raises is its answer
        return {"error": f"{error}" if type(error).__module__.startswith("jinja2") else
                f"{type(error).__name__}: {error}"}
    if len(text) > max(CHARACTERS, 10 * size):
        return {"error": f"it makes {len(text):,} characters of {size:,}"}
    return {"text": text}


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests {"special": special tokens by name, "arguments": ...} until there are no more."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    class Bare(PreTrainedTokenizerBase):
        """As much of a tokenizer as rendering needs."""

        special_tokens_map: Any = None
        chat_template: Any = None

        def __init__(self) -> None:
            pass

    tokenizer = Bare()
    _limit(resource.RLIMIT_DATA, BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    for line in requests:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + SECONDS)
        request = json.loads(line)
        tokenizer.special_tokens_map = request["special"]
        answers.write(json.dumps(render(tokenizer, request["arguments"], len(line))).encode() + b"\n")
        answers.flush()


def _limit(what: int, most: int) -> None:
    """Sets a limit that can be raised again; at that of the processor the system ends the process with SIGXCPU."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command that asks
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)  # what a library may print is no answer
        serve(sys.stdin.buffer, pipe)
