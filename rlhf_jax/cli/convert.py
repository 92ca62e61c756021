"""`rlhf-jax convert trl.yaml --verb dpo`: the config as output or in a file, and notes on how it came about."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from rlhf_jax.cli.config_file import read_config
from rlhf_jax.config.build import build
from rlhf_jax.config.commands import ConvertCommand
from rlhf_jax.config.trl import COMMANDS, Converted
from rlhf_jax.config.trl import convert as converted

ASKED = ("model_name_or_path", "dataset_name", "output_dir")
"""Keys that a command cannot do without."""


def convert(verb: str, command: ConvertCommand) -> None:
    """Writes or prints the config; notes go to the error stream, so that the output can be a file."""
    del verb
    found = converted(command.verb, read_config(command.file), command.num_processes)
    missing = [key for key in ASKED if key not in found.config]
    build(COMMANDS[command.verb], {**dict.fromkeys(missing, "given"), **found.config})  # raises where it is no config
    text = f"# From {Path(command.file).name}, of `trl {command.verb}`:\n#   rlhf-jax {command.verb} --config THIS\n"
    text += yaml.safe_dump(found.config, sort_keys=False)
    if command.output is None:
        print(text, end="")
    else:
        Path(command.output).expanduser().write_text(text)
    print("\n".join(_notes(found, missing)), file=sys.stderr)


def _notes(found: Converted, missing: list[str]) -> list[str]:
    lost = [f"{key}: {instead}" for key, instead in found.lost.items()]
    sections = {"computed": found.said, "changes nothing here": found.idle, "HAS NO COUNTERPART": lost,
                "still to be given": missing}
    return [line for title, lines in sections.items() if lines
            for line in (f"\n{title}:", *(f"  {text}" for text in lines))]
