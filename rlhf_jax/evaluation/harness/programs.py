"""Running programs that a model wrote: each in a process of its own, within limits. This is no sandbox.

A program gets an empty folder, an empty environment, its own session, limits of processor time, memory, file size,
open files and processes, and no network where the system lets an ordinary process give it up (Linux with user
namespaces; `can_cut_network` says). It may read what this user may read. Run what is not trusted in a container.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

SECONDS = 3.0
"""That a program may take, as in HumanEval's own runner."""
BYTES = 4 << 30
"""Of memory that it may have (address space)."""

_LAUNCHER = """
import ctypes, os, resource, sys
seconds, memory, word = int(sys.argv[1]), int(sys.argv[2]), sys.stdin.readline()
program = sys.stdin.read()
answers = os.dup(1)
cut = False
try:
    cut = ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000) == 0  # CLONE_NEWUSER | CLONE_NEWNET
except (OSError, AttributeError):
    pass
os.write(answers, b"cut\\n" if cut else b"network\\n")
for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 1 << 24),
                    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(limit)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))
nowhere = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
exec(compile(program, "program", "exec"), {})
os.write(answers, word.encode())
os._exit(0)
"""
"""Says whether it has no network, and a secret word once the program has come to its end: leaving early is no pass."""


def passes(program: str, seconds: float = SECONDS, memory: int = BYTES) -> bool:
    """Whether a Python program comes to its end without an error, within so many seconds and bytes of memory."""
    word = secrets.token_hex(16)
    return _said(f"{word}\n{program}", seconds, memory).endswith(f"\n{word}\n")


def all_pass(programs: list[str], seconds: float = SECONDS, memory: int = BYTES) -> list[bool]:
    """`passes` of each, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: passes(program, seconds, memory), programs))


@functools.cache
def can_cut_network() -> bool:
    """Whether the system lets a program be started without a network."""
    return _said("\n", 10.0, BYTES).startswith("cut\n")


def _said(text: str, seconds: float, memory: int) -> str:
    """What the launcher says of a secret word and a program, "" where it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-c", _LAUNCHER, str(int(seconds) + 1), str(memory)]
        quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # threads are processes
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              cwd=folder, env=quiet, start_new_session=True) as process:
            try:
                said = process.communicate(text.encode("utf-8", "surrogateescape"), timeout=seconds)[0]
            except subprocess.TimeoutExpired:
                said = b""
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return said.decode()
