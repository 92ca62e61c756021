"""`rlhf-jax plan`: which programs a config compiles, whether they fit an accelerator, how long they take."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from rich.console import Console
from rich.table import Table

from rlhf_jax.cli.parser import merged_tree, parse_tree
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.plan import PlannedVerb, PlanOptions
from rlhf_jax.fields import declared

_OWN = {field.name for field in declared(PlanOptions)}


def verb_of(tree: Mapping[str, Any]) -> str:
    """The one verb that takes all keys of a config, or the one that takes them without another `kind`; keys that no
    verb has are left for its parser to name.

    Raises:
      ValueError: if no verb does, or several do.
    """
    verbs = {verb: named(VERBS[verb].options) for verb in get_args(PlannedVerb)}
    known = set(tree) & set().union(*(_names(options) for options in verbs.values()))
    for kinds in (None, 1):
        found = [verb for verb, options in verbs.items() if known <= _names(options, kinds)]
        if len(found) == 1:
            return found[0]
    raise ValueError("the config's keys do not tell which verb it is for; add --verb sft (or iterate, reward, dpo, "
                     "generate, score)")


def _names(options: type, kinds: int | None = None) -> set[str]:
    """Keys on the first level; of alternatives those of so many, the default first, None for all."""
    inside = (_names(kind, kinds) for field in declared(options) if field.flat for kind in field.kinds[:kinds])
    return {field.name for field in declared(options) if not field.flat}.union(*inside)


def _beside(args: Sequence[str]) -> str | None:
    """The folder `model` beside one of the config files, the last one that has it."""
    files = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--config"]
    files += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    folders = [Path(file).expanduser().parent / "model" for file in files]
    return next((str(folder) for folder in reversed(folders) if (folder / "config.json").is_file()), None)


_NO_MODEL = ("function", "judge", "reward_server", "combine")
"""Kinds of scorers whose weights, if they have any, lie elsewhere."""


def _places(kind: Any, model: str) -> dict[str, str]:
    """Where a scorer's weights are taken to lie; only their shape is looked at."""
    if kind in _NO_MODEL:
        return {}
    return {"model_name_or_path": model, **({"reference_model": model} if kind == "implicit" else {})}


def _completed(tree: dict[str, Any], verb: str, model: str) -> dict[str, Any]:
    """The config with what a run needs and a plan does not: where data lie and results go."""
    tree = {"output_dir": "unused", **tree}
    if verb == "score":
        place = _places(tree.get("kind"), model)
        return {"input": "unused", **place, **tree}
    if "scratch" not in tree:
        tree = {"model_name_or_path": model, **tree}
    if verb == "iterate":
        tree = {"prompts": {}, **tree}
        if "reward" not in tree:
            scorer = {"kind": "bradley_terry", **tree.get("scorer", {})}
            place = _places(scorer["kind"], model)
            tree["scorer"] = {**place, **scorer}
    elif verb == "dpo" and "pairs" not in tree:
        tree = {"dataset_name": "unused", **tree}
    return tree


class Read(NamedTuple):
    """The plan's own options, the config it is about, and the folder of its model's shape."""

    options: PlanOptions
    command: Any
    model: str


def read(options: type[PlanOptions], name: str, words: Sequence[str]) -> Read:
    """Takes the plan's own keys apart from those of the config it is about."""
    tree = merged_tree(words)
    own = parse_tree(options, name, {key: tree.pop(key) for key in _OWN & set(tree)})
    verb = own.verb or verb_of(tree)
    model = tree.get("model_name_or_path") or _beside(words)
    if model is None:
        raise ValueError("a plan needs the shape of a model: --model_name_or_path FOLDER, which may hold config.json "
                         "alone, or a folder `model` beside the config")
    return Read(own, parse_tree(named(VERBS[verb].options), verb, _completed(tree, verb, model)), model)


def plan(verb: str, given: Read) -> None:
    """Compiles and prints; or proves the layouts of the devices here."""
    del verb
    options = given.options
    if options.prove_layout:
        from rlhf_jax.cli.prove import prove_layout

        prove_layout(options, given.command, given.model)
        return
    assert options.accelerator is not None  # one of the two is given
    from rlhf_jax.parallel import topology

    topology.prepare()
    from rlhf_jax.plan.report import write_json
    from rlhf_jax.plan.reports import make_optimised, make_reports

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if options.optimise:
        best, report = make_optimised(given.command, given.model, options.accelerator, options.stage_names,
                                      assume=options.assume, examples=options.examples, tries=options.tries)
        if options.output:
            write_json(Path(options.output), [report])
        show_optimised(console, best, given.command, options)
        show(console, [report])
        return
    reports = make_reports(given.command, given.model, options.accelerator, options.stage_names, assume=options.assume,
                           examples=options.examples, tries=0 if options.sweep else options.tries, sweep=options.sweep)
    if options.output:
        write_json(Path(options.output), reports)
    show(console, reports)


def show_optimised(console: Console, best: Any, command: Any, options: PlanOptions) -> None:
    """What was compiled for each stage, and the keys of what was chosen; these also into the file `keys`."""
    from rlhf_jax.plan import optimise

    for place, tried in best.tried.items():
        console.print(f"{best.chosen[place].candidate.task.stage.name}: compiled {len(tried)}")
        _print(console, optimise.TRIED_COLUMNS, optimise.tried_rows(tried, best.chosen[place]))
    tree = optimise.as_tree(best, command, whole=not options.stage_names)
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=False)  # {} where the config's own form is best
    if options.keys:
        Path(options.keys).parent.mkdir(parents=True, exist_ok=True)
        Path(options.keys).write_text(text)
    console.print(f"{text}\n{'written to ' + options.keys if options.keys else 'as a config: give --keys FILE'}\n")


def show(console: Console, reports: Sequence[Any]) -> None:
    """Tables on a terminal: the meshes of a sweep, then the best plan."""
    from rlhf_jax.plan import report

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
