"""`rlhf-jax VERB --config x.yaml --key value`."""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import resources
from pathlib import Path

VERB_HELP = {
    "quickstart": "the whole workflow on the embedded default: minutes on two CPU cores, no network",
    "iterate": "SFT -> reward model -> (sample, score, pair, train) x rounds -> evaluation -> report",
    "sft": "supervised fine-tuning",
    "reward": "train a Bradley-Terry or a pairwise preference model",
    "generate": "sample n continuations of every prompt",
    "score": "score sampled responses",
    "pairs": "choose preference pairs from scored responses",
    "dpo": "train on preference pairs (the DPO family)",
    "evaluate": "evaluate a scorer on held-out pairs, or a policy against a baseline",
    "export": "write a model as a Hugging Face folder: adapter merged, dtype chosen, files of a given size",
    "inspect": "what a checkpoint is: family, head, tensors, memory per device; nothing is loaded",
    "doctor": "check template, BOS, stop token, padding and the loss before any training",
    "plan": "compile a config's programs for an accelerator that is not here: memory, traffic, hours",
    "report": "draw the report of a finished run again",
}

ELSEWHERE = {"sample": "generate", "train": "sft, reward or dpo", "eval": "evaluate", "merge": "export",
             "rm": "reward", "online": "iterate"}
"""What others call a verb, and its name here."""


def main() -> None:
    """Entry point of the console script."""
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print("usage: rlhf-jax VERB [--config x.yaml] [--key value ...]   (rlhf-jax VERB --help lists the keys)\n")
        print("\n".join(f"  {verb:<11} {text}" for verb, text in VERB_HELP.items()))
        print("\nevery verb takes --dry-run: print the resolved config, the model, the data funnel and three examples")
        raise SystemExit(0)
    verb, rest = args[0], _named(args[0], args[1:])
    if verb not in VERB_HELP:
        import difflib

        near = difflib.get_close_matches(verb, VERB_HELP, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        hint = f"It is called {ELSEWHERE[verb]} here. " if verb in ELSEWHERE else hint
        print(f"rlhf-jax: no verb {verb!r}. {hint}Known are: {', '.join(VERB_HELP)}", file=sys.stderr)
        raise SystemExit(2)
    dry_run = "--dry-run" in rest
    rest = [arg for arg in rest if arg != "--dry-run"]
    prepare_environment()
    from rlhf_jax.cli.terminal import printable
    from rlhf_jax.parallel import EXIT_PREEMPTED, Preempted

    try:
        _dispatch(verb, rest, dry_run)
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


def _fail_together() -> None:
    """One process of several that fails ends at once: an orderly exit would wait for the others, which wait for it."""
    import jax

    if jax.distributed.is_initialized():
        print(f"process {jax.process_index()} of {jax.process_count()} stops, and so do the others; if it lost the "
              "connection to another one, see the log of that one. The same command continues the run", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


SUBJECT = {"inspect": "model_name_or_path", "doctor": "model_name_or_path", "export": "model_name_or_path",
           "report": "run"}
"""Verbs that are about one thing, and the key it has: `rlhf-jax inspect MODEL` needs no flag before MODEL."""


def _named(verb: str, args: list[str]) -> list[str]:
    if verb in SUBJECT and args and not args[0].startswith("-"):
        return [f"--{SUBJECT[verb]}", *args]
    return args


def prepare_environment() -> None:
    """Quiet libraries and a compilation cache that outlives the process; both can be overridden from outside."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rlhf_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _dispatch(verb: str, args: list[str], dry_run: bool) -> None:
    from rlhf_jax.cli.parser import parse, show

    if verb == "plan":
        from rlhf_jax.cli.plan import plan

        plan(args)
        return
    if verb in ("report", "inspect", "doctor"):
        from rlhf_jax.cli.checkup import READERS

        if dry_run:
            raise ValueError(f"{verb} changes nothing in the first place, so --dry-run means nothing; leave it out")
        command, read = READERS[verb]
        read(parse(command, verb, args))
        return
    from rlhf_jax.workflow.experiment_config import ExperimentConfig
    from rlhf_jax.workflow.verbs import VERBS

    if verb in ("iterate", "quickstart"):
        with resources.as_file(resources.files("rlhf_jax.cli") / "quickstart.yaml") as default:
            first = ["--config", str(default)] if verb == "quickstart" else []
            command = parse(ExperimentConfig, verb, [*first, *args])
    else:
        command = parse(VERBS[verb][0], verb, args)

    from rlhf_jax.cli import run

    if dry_run:
        print(show(command))
        run.dry_run(command)
    elif isinstance(command, ExperimentConfig):
        run.experiment(command)
    elif getattr(command, "baseline_model", None):
        run.policy_evaluation(command)
    else:
        stage = run.single(verb, command)
        if not run.is_main_process():
            return
        print(json.dumps({key: value for key, value in stage.report.items() if key != "reliability"}, indent=1))
        print(f"\n{verb}: {'already done' if stage.reused else f'{stage.seconds:.1f} s'}, in {stage.folder}")


if __name__ == "__main__":
    main()
