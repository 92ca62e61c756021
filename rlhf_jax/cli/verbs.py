"""The verbs of the command line: one row each."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """A row of `VERBS`. Functions and classes are named "module:name" and imported when the verb is given.

    Attributes:
      help: what it does, in a line.
      options: the class of its options.
      run: options -> None; does it, with what a person sees of it.
      preview: options -> None; what --dry-run shows beyond the options. None where a dry run means nothing.
      subject: the key of the one thing it is about, which may stand behind the verb without a flag.
      config: a YAML of this package that is read first.
      read: (class of options, verb, words of the command line) -> the options.
    """

    help: str
    options: str
    run: str
    preview: str | None = "rlhf_jax.cli.run:preview"
    subject: str = ""
    config: str = ""
    read: str = "rlhf_jax.cli.parser:parse"


_COMMANDS, _STAGE = "rlhf_jax.config.commands", "rlhf_jax.cli.run:stage"
_PROBE, _EVALUATION = "rlhf_jax.config.probe", "rlhf_jax.config.evaluation"
_RUN, _WHOLE = "rlhf_jax.config.run:ExperimentConfig", "rlhf_jax.cli.run:experiment"

VERBS: dict[str, Verb] = {
    "quickstart": Verb("the whole workflow on the embedded default: minutes on two CPU cores, no network", _RUN,
                       _WHOLE, config="quickstart.yaml"),
    "iterate": Verb("SFT -> reward model -> (sample, score, pair, train) x rounds -> evaluation -> report", _RUN,
                    _WHOLE),
    "data": Verb("mix data sets: convert, de-duplicate, decontaminate, cap, mix, split, with every loss counted",
                 "rlhf_jax.config.mixes:DataCommand", _STAGE),
    "sft": Verb("supervised fine-tuning", f"{_COMMANDS}:SftCommand", _STAGE),
    "reward": Verb("train a reward model: of pairs, of ratings, or of solutions", f"{_COMMANDS}:RewardCommand", _STAGE),
    "selftrain": Verb("train a pairwise preference model on few labels and on pairs that it labels itself (SSRM)",
                      "rlhf_jax.config.self_training:SelfTrainingCommand", "rlhf_jax.cli.run:self_training"),
    "generate": Verb("sample n continuations of every prompt", f"{_COMMANDS}:GenerateCommand", _STAGE),
    "score": Verb("score sampled responses", f"{_COMMANDS}:ScoreCommand", _STAGE),
    "pairs": Verb("choose preference pairs from scored responses", f"{_COMMANDS}:PairsCommand", _STAGE),
    "dpo": Verb("train on preference pairs (the DPO family)", "rlhf_jax.config.preference:DpoCommand", _STAGE),
    "evaluate": Verb("evaluate a reward or preference model on held-out pairs, or a policy on academic tasks",
                     f"{_EVALUATION}:EvaluateCommand", _STAGE),
    "compare": Verb("compare a policy with a baseline on held-out prompts", f"{_COMMANDS}:CompareCommand",
                    "rlhf_jax.cli.run:comparison"),
    "agreement": Verb("hold judges against each other and against the pairs' labels: agreement and kappa",
                      f"{_EVALUATION}:AgreementCommand", _STAGE),
    "verify": Verb("recompute the published figures that the files in a folder allow, ours beside theirs",
                   f"{_EVALUATION}:VerifyCommand", "rlhf_jax.cli.verify:verify", None, "data"),
    "features": Verb("store the hidden states of answers and prompts, for probes", f"{_PROBE}:FeaturesCommand",
                     _STAGE),
    "probe": Verb("make a reward model of stored features: regressed ratings, ArmoRM's gate or a tree over them",
                  f"{_PROBE}:ProbeCommand", _STAGE),
    "steps": Verb("label the steps of sampled solutions: roll each step out, check the answers",
                  "rlhf_jax.config.steps:StepsCommand", _STAGE),
    "benchmark": Verb("AlpacaEval 2, Arena-Hard or MT-Bench: generate, judge, score",
                      "rlhf_jax.config.benchmark:BenchmarkCommand", "rlhf_jax.cli.run:benchmark"),
    "sweep": Verb("a grid over any keys of a run x seeds: shared stages, tables with intervals, equal divergence",
                  "rlhf_jax.config.sweep:SweepCommand", "rlhf_jax.cli.sweep:run_sweep", "rlhf_jax.cli.sweep:preview"),
    "worth": Verb("is online worth it here? seeds of the rounds and their matched control until the sign is decided",
                  "rlhf_jax.config.sweep:WorthCommand", "rlhf_jax.cli.sweep:run_worth", "rlhf_jax.cli.sweep:preview"),
    "export": Verb("write a model as a Hugging Face folder: adapter merged, dtype chosen, files of a given size",
                   f"{_COMMANDS}:ExportCommand", _STAGE, subject="model_name_or_path"),
    "inspect": Verb("what a checkpoint is: family, head, tensors, memory per device; nothing is loaded",
                    f"{_COMMANDS}:InspectCommand", "rlhf_jax.cli.checkup:inspect", None, "model_name_or_path"),
    "doctor": Verb("check template, BOS, stop token, padding and the loss before any training",
                   f"{_COMMANDS}:DoctorCommand", "rlhf_jax.cli.checkup:doctor", None, "model_name_or_path"),
    "plan": Verb("compile a config's programs for an accelerator that is not here: memory, traffic, hours",
                 "rlhf_jax.config.plan:PlanOptions", "rlhf_jax.cli.plan:plan", None,
                 read="rlhf_jax.cli.plan:read"),
    "convert": Verb("TRL's YAML as one of ours, with what has no counterpart", f"{_COMMANDS}:ConvertCommand",
                    "rlhf_jax.cli.convert:convert", None, "file"),
    "watch": Verb("follow a run from another terminal, or once it is over", f"{_COMMANDS}:WatchCommand",
                  "rlhf_jax.cli.watch:watch", None, "run"),
    "report": Verb("draw the report of a finished run again", f"{_COMMANDS}:ReportCommand", "rlhf_jax.cli.run:report",
                   None, "run"),
}

ELSEWHERE = {"sample": "generate", "train": "sft, reward or dpo", "eval": "evaluate", "merge": "export",
             "rm": "reward", "online": "iterate", "online_dpo": "iterate", "kto": "dpo --loss_type kto",
             "orpo": "dpo --loss_type orpo", "cpo": "dpo --loss_type cpo", "simpo": "dpo --loss_type simpo"}
"""What others call a verb, and its name here."""

ABSENT = dict.fromkeys(("ppo", "grpo", "rloo"), "`iterate` does online DPO")
"""What others have a verb for and we do not, and what comes nearest."""


def named(path: str) -> Any:
    """The object called "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
