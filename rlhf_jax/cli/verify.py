"""`rlhf-jax verify`: published figures recomputed from the files of a folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_jax.config.evaluation import VerifyCommand
from rlhf_jax.workflow.published import CHECKS, Figure
from rlhf_jax.workflow.stage import write_json_atomic


def verify(verb: str, command: VerifyCommand) -> None:
    """Prints ours beside theirs, and what could not be checked; exits with 1 if a figure is off.

    Raises:
      ValueError: the folder is not there, or holds the files of no check.
    """
    del verb
    folder, console = Path(command.data).expanduser(), Console(highlight=False, width=160)
    if not folder.is_dir():
        raise ValueError(f"data = {command.data!r}: there is no such folder")
    lacking = {name: missing for name, check in CHECKS.items() if (missing := check.missing(folder))}
    if len(lacking) == len(CHECKS):
        raise ValueError(f"{folder} holds the files of no check; a first one would be "
                         f"{next(iter(CHECKS.values())).files[0]}")
    found: dict[str, list[Figure]] = {}
    for name, check in CHECKS.items():
        if name in lacking:
            continue
        found[name] = list(check.figures(folder))
        table = Table(title=f"{name} ({check.source})", title_justify="left", box=None, pad_edge=False)
        for column in ("figure", "ours", "theirs", "may differ by", ""):
            table.add_column(column)
        for figure in found[name]:
            table.add_row(figure.name, f"{figure.ours:.6g}", f"{figure.theirs:.6g}", f"{figure.tolerance:g}",
                          "" if figure.holds else "OFF")
        console.print(table, "")
    for name, missing in lacking.items():
        console.print(f"not checked: {name}, which reads {', '.join(missing)}")
    figures = [figure for rows in found.values() for figure in rows]
    off = sum(not figure.holds for figure in figures)
    if command.output is not None:
        write_json_atomic(Path(command.output).expanduser(), {
            name: [{**row._asdict(), "holds": row.holds} for row in rows] for name, rows in found.items()})
    console.print(f"{len(figures)} figures, {off} off")
    if off:
        raise SystemExit(1)
