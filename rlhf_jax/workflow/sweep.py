"""Several runs of one config in one folder: cells of a grid times seeds, which share the stages they have in common."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from rlhf_jax.config.run import ExperimentConfig, reseeded
from rlhf_jax.config.sweep import Cell, SweepCommand, WorthCommand
from rlhf_jax.evaluation.frontier import at_equal_kl, frontier
from rlhf_jax.evaluation.results import Results
from rlhf_jax.evaluation.sequential import Verdict, verdict
from rlhf_jax.parallel import is_main_process
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.products import RESULTS
from rlhf_jax.workflow.results import gather_results
from rlhf_jax.workflow.stage import Run, write_json_atomic


def one_run(config: ExperimentConfig, seed: int, name: str, context: Context) -> Results:
    """A run with its seeds shifted, in RUNS/NAME/seed-N of the context's folder; its stages lie with all others'."""
    folder = context.run.folder / "runs" / name / f"seed-{seed}"
    config = dataclasses.replace(reseeded(config, seed), output_dir=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, config, announce=context.run.announce, begins=context.run.begins, shared=context.run.folder)
    context.run.announce(f"{name}, seed {seed}")
    outcome = Experiment(config, dataclasses.replace(context, run=run)).run()
    run.write_manifest()
    results = gather_results(run, outcome, title=config.title, gold="gold" if config.gold else None,
                             seed=config.evaluation.seed if config.evaluation else 0)
    if is_main_process():
        write_json_atomic(folder / RESULTS, results.to_json())
    return results


def folder_name(number: int, cell: Cell) -> str:
    """A cell's folder: its number and its name in the letters of a path."""
    return f"{number:02d}-" + re.sub(r"[^\w.=+-]+", "-", cell.name)[:80]


class CellRun(NamedTuple):
    """A finished run of a sweep."""

    cell: Cell
    seed: int
    results: Results


def sweep(command: SweepCommand, context: Context) -> Iterator[CellRun]:
    """All runs of a sweep: every cell with one seed before any with the next, so that early tables hold all cells."""
    for seed in range(command.seeds):
        for number, cell in enumerate(command.cells):
            yield CellRun(cell, seed, one_run(cell.config, seed, folder_name(number, cell), context))


@dataclasses.dataclass(frozen=True)
class Worth:
    """What is known of online against its matched control after some seeds.

    Attributes:
      measure: of reward: gold, or proxy without a gold judge.
      differences: online minus the control, seed by seed.
      kl: nats per answer at which each was read; empty where the last policies were compared as they are.
      verdict: above, below, or open.
    """

    measure: str
    differences: tuple[float, ...] = ()
    kl: tuple[float, ...] = ()
    verdict: Verdict = "open"


def worth(command: WorthCommand, context: Context) -> Iterator[Worth]:
    """Seed after seed until the sign is decided or the seeds are used up; what is known after each.

    Raises:
      ValueError: the evaluation measured no divergence, at which the methods are to be compared.
    """
    measure = "gold" if command.matched.gold else "proxy"
    known = Worth(measure)
    for seed in range(command.max_seeds):
        results = one_run(command.matched, seed, "matched", context)
        difference, kl = _difference(results, measure, command.at)
        differences = (*known.differences, difference)
        known = Worth(measure, differences, (*known.kl, kl) if kl is not None else (),
                      verdict(differences, command.max_seeds, command.error_rate))
        yield known
        if known.verdict != "open":
            return


def _difference(results: Results, measure: str, at: str) -> tuple[float, float | None]:
    """Online minus its control in one run, and where both were read."""
    online, control = results.policies[-1], next(p for p in results.policies if p.family.startswith("matched_"))
    if at == "last":
        return online.estimates[measure].value - control.estimates[measure].value, None
    ours, theirs = (frontier(results.policies, (policy.family,), measure) for policy in (online, control))
    if ours is None or theirs is None:
        raise ValueError(f"{' '.join(results.notes)} Or give at: last, which compares the last policies as they are")
    found = at_equal_kl(ours, theirs)
    return found.difference, found.kl


def preview_sweep(command: SweepCommand | WorthCommand, context: Context) -> Preview:
    """What a dry run shows: the data of the first run."""
    config = command.cells[0].config if isinstance(command, SweepCommand) else command.matched
    return Experiment(config, context).preview()
