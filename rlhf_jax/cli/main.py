"""`rlhf-jax VERB --config x.yaml --key value`."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from rlhf_jax.cli.config_file import read_config
from rlhf_jax.cli.help import print_help
from rlhf_jax.cli.parser import show
from rlhf_jax.cli.verbs import ABSENT, ELSEWHERE, VERBS, named
from rlhf_jax.version import __version__


def main() -> None:
    """Entry point of the console script."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        with _as_far_as_read():
            print("usage: rlhf-jax VERB [--config x.yaml] [--key value ...]   (rlhf-jax VERB --help lists the keys)\n")
            print("\n".join(f"  {name:<11} {verb.help}" for name, verb in VERBS.items()))
            print("\nverbs that write something take --dry-run: print the resolved config, the model, the data funnel "
                  "and three examples")
        raise SystemExit(0)
    if args[0] in ("--version", "version"):
        print(__version__)
        raise SystemExit(0)
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint = f"It is called {ELSEWHERE[verb]} here. " if verb in ELSEWHERE else hint
        hint = f"It is not here; {ABSENT[verb]}. " if verb in ABSENT else hint
        print(f"rlhf-jax: no verb {verb!r}. {hint}Known are: {', '.join(VERBS)}", file=sys.stderr)
        raise SystemExit(2)
    if asked := next((word for word in rest if word in ("-h", "--help") or word.endswith(".help")), None):
        with _as_far_as_read():
            _help(verb, asked.strip("-").removesuffix(".help").replace("-", "_") if asked.endswith(".help") else "")
        raise SystemExit(0)
    dry_run = "--dry-run" in rest
    rest = [arg for arg in rest if arg != "--dry-run"]
    prepare_environment()
    from rlhf_jax.cli.terminal import printable
    from rlhf_jax.parallel.preemption import EXIT_PREEMPTED, Preempted

    try:
        _do(verb, rest, dry_run)
    except Preempted as notice:
        print(f"rlhf-jax {verb}: {notice}", file=sys.stderr)
        raise SystemExit(EXIT_PREEMPTED) from notice
    except KeyboardInterrupt:
        print(f"\nrlhf-jax {verb}: interrupted; what is finished is kept, the same command continues", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        # the message of these says it all; of any other, in a user's function or here, the traceback is needed
        expected = isinstance(error, ValueError | RuntimeError | OSError)
        if expected and not os.environ.get("RLHF_JAX_TRACEBACK"):
            print(printable(f"rlhf-jax {verb}: {error}"), file=sys.stderr)
            print("(set RLHF_JAX_TRACEBACK=1 to see where)", file=sys.stderr)
        else:
            traceback.print_exception(error)
        _fail_together()
        raise SystemExit(1) from error


@contextmanager
def _as_far_as_read() -> Iterator[None]:
    """For text that is printed into a pipe whose reader, say `head`, may have enough of it: no error then."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit


def _help(name: str, section: str) -> None:
    verb = VERBS[name]
    with resources.as_file(resources.files("rlhf_jax.cli") / verb.config) as first:
        given = read_config(str(first)) if verb.config else None
    print_help(name, named(verb.options), section, dry_run=verb.preview is not None, given=given)


def _fail_together() -> None:
    """One process of several that fails ends at once: an orderly exit would wait for the others, which wait for it."""
    import jax

    if jax.distributed.is_initialized():
        print(f"process {jax.process_index()} of {jax.process_count()} stops, and so do the others; if it lost the "
              "connection to another one, see the log of that one. The same command continues the run", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def prepare_environment() -> None:
    """Quiet libraries and a compilation cache that outlives the process; both can be overridden from outside."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rlhf_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _do(name: str, words: list[str], dry_run: bool) -> None:
    verb = VERBS[name]
    if dry_run and verb.preview is None:
        raise ValueError(f"{name} changes nothing in the first place, so --dry-run means nothing; leave it out")
    if verb.subject and words and not words[0].startswith("-"):
        words = [f"--{verb.subject}", *words]
    with resources.as_file(resources.files("rlhf_jax.cli") / verb.config) as first:
        command = named(verb.read)(named(verb.options), name, [*(["--config", str(first)] if verb.config else []),
                                                               *words])
    if dry_run and verb.preview is not None:
        print(show(command))
        named(verb.preview)(name, command)
    else:
        named(verb.run)(name, command)


if __name__ == "__main__":
    main()
