"""`rlhf-jax sweep` and `rlhf-jax worth`: several runs of one config, with their tables kept up to date as they end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rlhf_jax.cli.run import at_work, preview_of
from rlhf_jax.cli.terminal import printable
from rlhf_jax.config.sweep import SweepCommand, WorthCommand
from rlhf_jax.evaluation import Results, across_seeds
from rlhf_jax.parallel import is_main_process
from rlhf_jax.report import sweep_json, write_sweep
from rlhf_jax.workflow.results import versions
from rlhf_jax.workflow.stage import write_json_atomic
from rlhf_jax.workflow.sweep import Worth, preview_sweep, sweep, worth

WORDS = {"above": "yes: sampling anew in rounds is better than its matched one-round control",
         "below": "no: sampling anew in rounds is worse than its matched one-round control",
         "open": "not decided"}


def run_sweep(verb: str, command: SweepCommand) -> None:
    """Runs all cells and seeds; sweep.md and sweep.json are written anew after each run."""
    del verb
    with at_work(command.run) as context:
        folder, cells = context.run.folder, {cell.name: list[Results]() for cell in command.cells}
        for done in sweep(command, context):
            cells[done.cell.name].append(done.results)
            if is_main_process() and all(cells.values()):
                write_json_atomic(folder / "sweep.json", sweep_json(command.run.title, cells))
                text = write_sweep(command.run.title, cells) + "\n" + _circumstances(command, cells)
                for page in [folder / "sweep.md", *([Path(command.page).expanduser()] if command.page else [])]:
                    page.parent.mkdir(parents=True, exist_ok=True)
                    page.write_text(text)
    if is_main_process():
        print(printable((folder / "sweep.md").read_text()))
        print(f"sweep: {len(cells)} cell(s), {command.seeds} seed(s), in {folder}")


def _circumstances(command: SweepCommand, cells: dict[str, list[Results]]) -> str:
    """When, how long, and with which versions."""
    runs = [results for found in cells.values() for results in found]
    seconds = [sum(stage.seconds for stage in results.stages) for results in runs]
    return (f"Measured on {str(runs[-1].created)[:10]}; the stages of a run took {min(seconds):.0f} to "
            f"{max(seconds):.0f} s, those that several runs share counted in each. Versions: "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + f". Seeds 0 to {max(map(len, cells.values())) - 1} of `rlhf-jax sweep`.\n")


def run_worth(verb: str, command: WorthCommand) -> None:
    """Says after each seed what is known, and ends with the answer; worth.json holds it."""
    del verb
    with at_work(command.run) as context:
        known = Worth("")
        for known in worth(command, context):
            context.run.announce(told(known, command))
            if is_main_process():
                write_json_atomic(context.run.folder / "worth.json", {
                    **dataclasses.asdict(known), "at": command.at, "error_rate": command.error_rate,
                    "max_seeds": command.max_seeds})
    if is_main_process():
        print(f"Is online worth it here? {told(known, command)}")


def told(known: Worth, command: WorthCommand) -> str:
    """The answer so far, in a sentence with its error rate."""
    mean = across_seeds(known.differences)
    where = f" at {across_seeds(known.kl).value:.2f} nats per answer" if known.kl else ", at their last policies"
    each = ", ".join(f"{difference:+.3f}" for difference in known.differences)
    return (f"{WORDS[known.verdict]}. Online minus control in {known.measure} reward{where}: {mean.value:+.3f}, the "
            f"mean of {mean.count} seed(s) of at most {command.max_seeds} ({each}). Where there is no difference, such "
            f"a series names a sign in {100 * command.error_rate:g} of 100 cases (repeated t tests at Pocock's level).")


def preview(verb: str, command: SweepCommand | WorthCommand) -> None:
    """The first run's model, data and examples, and the cells."""
    if isinstance(command, SweepCommand):
        names = "\n".join(f"  {cell.name}" for cell in command.cells)
        print(f"{len(command.cells)} cell(s) x {command.seeds} seed(s):\n{names}\n")
    preview_of(command.run, lambda context: preview_sweep(command, context))
