"""The parameters of a launcher: NAME=value lines of one file, each checked, some replaced on the command line."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

Check = Callable[[str], str]
"""Returns what is wrong with a value, or nothing."""

Parameters = dict[str, str]


def text(value: str) -> str:
    """Anything but nothing."""
    return "" if value else "must not be empty"


def optional(value: str) -> str:
    """Anything, and nothing too: the flag it stands for is then left out."""
    return ""


def whole_number(least: int) -> Check:
    """A whole number of at least `least`."""

    def check(value: str) -> str:
        fits = value.isascii() and value.isdigit() and int(value) >= least
        return "" if fits else f"must be a whole number of at least {least}"

    return check


def one_of(*choices: str) -> Check:
    """One of a few words."""
    return lambda value: "" if value in choices else f"must be one of {', '.join(choices)}"


def run_name(value: str) -> str:
    """A name that clouds and clusters accept, short enough for what they append to it."""
    fits = re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", value)
    return "" if fits else "must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter"


def folder(value: str) -> str:
    """An absolute path: a relative one would mean another folder on another machine."""
    return "" if value.startswith("/") else "must be an absolute path on storage that every process sees"


_OF_THE_SHELL = {"!", "time", "{", "[[", "if", "for", "while", "until", "case", "select", "function", "coproc", "exec",
                 "eval", "source", ".", "cd", "export"}
"""Words that only a shell understands at the beginning of a command: no program is called so, or none that would do."""


def one_command(value: str) -> str:
    """A single command: it takes the shell's place, so that the notice of a preemption (SIGTERM) reaches it.

    NAME=value before it is of its environment.
    """
    lexer = shlex.shlex(value, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        return f"is no shell command ({error})"
    if not words:
        return "must not be empty"
    if "\n" in value or any(word and set(word) <= set(";&|") for word in words):
        return "must be a single command; put several into a script of your own"
    program = next((word for word in words if not re.match(r"[A-Za-z_]\w*=", word)), None)
    if program is None:
        return "sets variables and names no program; write NAME=value before a command"
    if program in _OF_THE_SHELL or words[0].startswith("("):
        return (f"begins with {program}, which only a shell can run, and the command takes the shell's place; leave it "
                "out, or put it into a script of your own")
    return ""


def in_the_shells_place(command: str) -> str:
    """A shell's text that goes on as this command, with the environment that is set before it."""
    return f"exec env {command}"


def read(launcher: str, checks: Mapping[str, Check], file: Path, replaced: Sequence[str] = ()) -> Parameters:
    """The parameters in `file` with `replaced` ("NAME=value") in their place; ends the program where one is wrong.

    The file's syntax is the shell's, without expansion: NAME=value, quotes where a value has spaces, # for comments.
    """

    def stop(words: str) -> NoReturn:
        print(f"{launcher}: {words}", file=sys.stderr)
        raise SystemExit(2)

    if not file.is_file():
        stop(f"there is no file {file}; copy the launcher's own parameter file, edit it and name it here")
    given: list[tuple[str, str]] = []  # where it was said, and NAME=value
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            stop(f"{file}, line {number}: {line!r} cannot be read ({error}); write NAME='value'")
        if len(words) > 1:
            stop(f"{file}, line {number}: {line!r} has several words; put a value with spaces in quotes")
        given += [(f"{file}, line {number}", word) for word in words]
    found: Parameters = {}
    for where, assignment in [*given, *(("the command line", word) for word in replaced)]:
        name, equals, value = assignment.partition("=")
        if not equals:
            stop(f"{where}: {assignment!r} is no parameter; write NAME=value")
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(checks)}"
            stop(f"{where}: there is no parameter {name!r}; {hint}")
        found[name] = value
    for name, check in checks.items():
        remedy = f"in {file}, or give {name}=... on the command line"
        if name not in found:
            stop(f"{name} is missing; set it {remedy}")
        if wrong := check(found[name]):
            stop(f"{name} {wrong}; given was {found[name]!r}. Change it {remedy}")
    return found


def command_line(launcher: str, describe: str, verbs: Mapping[str, str]) -> argparse.Namespace:
    """The command line all launchers share: [verb] [--dry-run] [--parameters FILE] [NAME=value ...]."""
    parser = argparse.ArgumentParser(prog=f"python -m {launcher}", description=describe,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    if verbs:
        parser.add_argument("verb", choices=verbs, help="; ".join(f"{verb}: {words}" for verb, words in verbs.items()))
    parser.add_argument("replaced", nargs="*", metavar="NAME=value", help="a parameter in place of the file's")
    parser.add_argument("--parameters", type=Path, metavar="FILE", help="the file of parameters (default: the one "
                        "beside the launcher)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, exactly, and run nothing")
    return parser.parse_intermixed_args()


def shown(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command as a line that a shell reads back to the same words."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()),
                     shlex.join(command)])


def replace_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> NoReturn:
    """Goes on as `command`; ends the program with a clear word where it is not installed."""
    try:
        os.execvpe(command[0], list(command), os.environ | dict(environment or {}))
    except FileNotFoundError:
        print(f"{command[0]} is not installed here; --dry-run prints what would run", file=sys.stderr)
        raise SystemExit(2) from None
