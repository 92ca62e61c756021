"""Submits run.sbatch with the parameters of parameters.env: `python -m launch.slurm [--dry-run] [NAME=value ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

from launch import parameters

HERE = Path(__file__).parent
CHECKS = {
    "NAME": parameters.run_name,
    "COMMAND": parameters.one_command,
    "RUN_FOLDER": parameters.folder,
    "NODES": parameters.whole_number(1),
    "GPUS_PER_NODE": parameters.whole_number(0),
    "TASKS_PER_NODE": parameters.whole_number(1),
    "CPUS_PER_TASK": parameters.whole_number(1),
    "TIME_LIMIT": parameters.text,
    "GRACE_SECONDS": parameters.whole_number(1),
    "SETUP": parameters.optional,
    "PARTITION": parameters.optional,
    "ACCOUNT": parameters.optional,
}
PASSED_ON = ("COMMAND", "RUN_FOLDER", "SETUP", "GPUS_PER_NODE", "TASKS_PER_NODE")
"""What run.sbatch reads from its environment; sbatch hands the environment on."""


def command(given: parameters.Parameters) -> list[str]:
    """The sbatch command line."""
    flags = {
        "job-name": given["NAME"],
        "nodes": given["NODES"],
        "ntasks-per-node": given["TASKS_PER_NODE"],
        "cpus-per-task": given["CPUS_PER_TASK"],
        "gpus-per-node": given["GPUS_PER_NODE"] if int(given["GPUS_PER_NODE"]) else "",
        "time": given["TIME_LIMIT"],
        # without "B:" it goes to the tasks and not to the script, which must live on to requeue the job
        "signal": f"TERM@{given['GRACE_SECONDS']}",
        "partition": given["PARTITION"],
        "account": given["ACCOUNT"],
        "output": f"{given['RUN_FOLDER']}/slurm-%j.log",
        "export": "ALL",  # PASSED_ON, also where the cluster's default is to export nothing
    }
    return ["sbatch", *(f"--{name}={value}" for name, value in flags.items() if value), str(HERE / "run.sbatch")]


def main() -> None:
    """Prints or runs the one sbatch command."""
    options = parameters.command_line("launch.slurm", __doc__, {})
    given = parameters.read("launch.slurm", CHECKS, options.parameters or HERE / "parameters.env", options.replaced)
    if int(given["GPUS_PER_NODE"]) % int(given["TASKS_PER_NODE"]):
        print("launch.slurm: TASKS_PER_NODE must divide GPUS_PER_NODE, since a node's tasks share its GPUs evenly; "
              f"given were {given['TASKS_PER_NODE']} and {given['GPUS_PER_NODE']}. One task with all of them is best",
              file=sys.stderr)
        raise SystemExit(2)
    environment = {name: given[name] for name in PASSED_ON}
    if options.dry_run:
        print(parameters.shown(["mkdir", "-p", given["RUN_FOLDER"]]))
        print(parameters.shown(command(given), environment))
        return
    # SLURM opens the log before the script runs, so the folder must be there
    Path(given["RUN_FOLDER"]).mkdir(parents=True, exist_ok=True)
    parameters.replace_process(command(given), environment)


if __name__ == "__main__":
    main()
