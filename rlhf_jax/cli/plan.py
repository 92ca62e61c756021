"""`rlhf-jax plan`: which programs a config compiles, whether they fit an accelerator, how long they take."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from rlhf_jax.cli.parser import merged_tree, parse_tree
from rlhf_jax.workflow.plan.stages import Assumptions

Verb = Literal["iterate", "sft", "reward", "dpo", "generate", "score"]


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Compiling the programs of a config for an accelerator that need not be here: memory, traffic, time.

    All other keys are those of the config's own verb; its data are not read, and of its model only config.json, which
    may lie in the folder `model` beside the config.

    Attributes:
      accelerator: as its cloud spells it: v5p-16 (TensorCores, two a chip), v5e-64 and v6e-16 (chips), 2xv5e-256
        (slices), 8xH100, 4x8xH100 (hosts), cpu-8.
      verb: whose config it is; None to tell by its keys.
      stages: of sft, reward, pairwise, prefill, decode, score, reference, dpo; empty for all that the config has.
      sweep: try the sensible meshes and rank them, instead of the config's.
      tries: compilations spent on finding what makes a stage fit that does not.
      assume: what the data will look like.
      examples: rows of each data set, and prompts of a round, where the config does not say.
      output: JSON file for all numbers.
    """

    accelerator: str
    verb: Verb | None = None
    stages: str | tuple[str, ...] = ()
    sweep: bool = False
    tries: int = 6
    assume: Assumptions = dataclasses.field(default_factory=Assumptions)
    examples: int = 20_000
    output: str | None = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        given = self.stages.split(",") if isinstance(self.stages, str) else self.stages
        return tuple(name.strip() for name in given if name.strip())


_OWN = {field.name for field in dataclasses.fields(PlanOptions)}
_EXPERIMENT = {"prompts", "loop", "scorer", "sft", "reward", "scratch", "evaluation", "raft", "baselines", "sampling"}
_TELLING = {"dpo": {"beta", "loss_type", "pairs", "reference_model", "label_smoothing"},
            "reward": {"kind", "center_rewards_coefficient", "use_margin"},
            "generate": {"num_generations", "max_new_tokens", "temperature"}}


def verb_of(tree: dict[str, Any]) -> Verb:
    """The verb whose config this is, by keys that only it has.

    Raises:
      ValueError: if the keys do not tell.
    """
    if _EXPERIMENT & set(tree):
        return "iterate"
    found: list[Any] = [verb for verb, keys in _TELLING.items() if keys & set(tree)]
    if len(found) != 1:
        raise ValueError("the config's keys do not tell which verb it is for; add --verb sft (or iterate, reward, dpo, "
                         "generate, score)")
    return found[0]


def _beside(args: Sequence[str]) -> str | None:
    """The folder `model` beside one of the config files, the last one that has it."""
    files = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--config"]
    files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    folders = [Path(file).expanduser().parent / "model" for file in files]
    return next((str(folder) for folder in reversed(folders) if (folder / "config.json").is_file()), None)


def _completed(tree: dict[str, Any], verb: str, model: str) -> dict[str, Any]:
    """The config with what a run needs and a plan does not: where data lie and results go."""
    tree = {"output_dir": "unused", **tree}
    if verb == "score":
        return {"input": "unused", "model_name_or_path": model, **tree}
    if "scratch" not in tree:
        tree = {"model_name_or_path": model, **tree}
    if verb == "iterate":
        tree = {"prompts": {}, **tree}
        if "reward" not in tree:
            scorer = {"kind": "bradley_terry", **tree.get("scorer", {})}
            place = {} if scorer["kind"] == "function" else {"model_name_or_path": model}
            tree["scorer"] = {**place, **scorer}
    elif verb == "dpo" and "pairs" not in tree:
        tree = {"dataset_name": "unused", **tree}
    return tree


def read(args: Sequence[str]) -> tuple[PlanOptions, Any, str]:
    """The plan's own options, the config it is about, and the folder of its model's shape."""
    from rlhf_jax.workflow.experiment_config import ExperimentConfig
    from rlhf_jax.workflow.verbs import VERBS

    if {"-h", "--help"} & set(args):
        parse_tree(PlanOptions, "plan", None)
    tree = merged_tree(args)
    options: PlanOptions = parse_tree(PlanOptions, "plan", {key: tree.pop(key) for key in _OWN & set(tree)})
    verb = options.verb or verb_of(tree)
    model = tree.get("model_name_or_path") or _beside(args)
    if model is None:
        raise ValueError("a plan needs the shape of a model: --model_name_or_path FOLDER, which may hold config.json "
                         "alone, or a folder `model` beside the config")
    command = ExperimentConfig if verb == "iterate" else VERBS[verb][0]
    return options, parse_tree(command, verb, _completed(tree, verb, model)), model


def plan(args: Sequence[str]) -> None:
    """Compiles and prints."""
    from rlhf_jax.parallel import topology

    options, command, model = read(args)
    topology.prepare()
    from rlhf_jax.workflow.plan.report import write_json
    from rlhf_jax.workflow.plan.reports import make_reports

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    reports = make_reports(command, model, options.accelerator, options.stage_names, assume=options.assume,
                           examples=options.examples, tries=0 if options.sweep else options.tries, sweep=options.sweep)
    if options.output:
        write_json(Path(options.output), reports)
    show(console, reports)


def show(console: Console, reports: Sequence[Any]) -> None:
    """Tables on a terminal: the meshes of a sweep, then the best plan."""
    from rlhf_jax.workflow.plan import report

    if len(reports) > 1:
        _print(console, report.SWEEP_COLUMNS, report.sweep_rows(reports))
        return
    one = reports[0]
    console.print(f"{one.title}\n{one.accelerator}\nmesh: {one.mesh}\n")
    _print(console, report.STAGE_COLUMNS, [report.stage_row(s) for s in one.stages])
    _print(console, ("stage", "collective", "runs", "received, GiB"), report.collective_rows(one))
    _print(console, report.HOUR_COLUMNS, report.hour_rows(one))
    for line in (*report.notes(one), *(f"assumed: {words}" for words in one.assumptions)):
        console.print(f"- {line}")


def _print(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
