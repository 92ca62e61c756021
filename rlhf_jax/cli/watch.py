"""`rlhf-jax watch RUN`: the stages of a run and what they found, seen from another terminal; reads files alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rlhf_jax.cli.terminal import printable
from rlhf_jax.config.commands import WatchCommand
from rlhf_jax.workflow.findings import found
from rlhf_jax.workflow.progress import AtWork, ago, at_work, finished_stages


def watch(verb: str, command: WatchCommand) -> None:
    """Shows the run until no command is at work in its folder; in a pipe, one table at the end."""
    del verb
    folder = Path(command.run).expanduser()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    now = at_work(folder)
    if console.is_terminal and not command.once:
        with Live(stages_table(folder, now), console=console, auto_refresh=False) as live:
            while now is not None:
                time.sleep(command.every)
                now = at_work(folder)
                live.update(stages_table(folder, now), refresh=True)
    else:
        while now is not None and not command.once:
            time.sleep(command.every)
            now = at_work(folder)
        console.print(stages_table(folder, now))
    if now is None:
        page = folder / "report.html"
        console.print(f"no command is at work here{f'; report: {page}' if page.is_file() else ''}")


def stages_table(folder: Path, now: AtWork | None) -> Table:
    """The finished stages with their times and findings, and the one at work."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "time", "found"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    for stage in finished_stages(folder):
        table.add_row(printable(stage["name"]), ago(stage["seconds"]), printable(found(stage["report"])))
    if now is not None:
        counts = f"{now.done:,} of {now.total:,}" if now.total else ""
        told = ", ".join(filter(None, (counts, now.words, f"seen {ago(time.time() - now.seen)} ago")))
        table.add_row(f"[bold]{printable(now.stage)}[/]", ago(time.time() - now.since), f"at work: {printable(told)}")
    return table
