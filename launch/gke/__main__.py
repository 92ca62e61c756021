"""GKE, and Kubernetes with JobSet: `python -m launch.gke {tpu,gpu,xpk} [--dry-run] [NAME=value ...]`."""

from __future__ import annotations

import json
import math
import re
import string
import subprocess
import sys
from pathlib import Path

from launch import parameters

HERE = Path(__file__).parent
LAUNCHER = "launch.gke"
VERBS = {
    "tpu": "apply tpu.yaml, a JobSet on TPU node pools",
    "gpu": "apply gpu.yaml, a JobSet on GPU nodes",
    "xpk": "the same on TPU node pools by xpk",
}


def topology(value: str) -> str:
    """2x2, 4x4, 2x2x4 ..."""
    return "" if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", value) else "must be spelled like 4x4 or 2x2x4"


EVERYWHERE = {
    "NAME": parameters.run_name,
    "COMMAND": parameters.one_command,
    "IMAGE": parameters.text,
    "RUN_FOLDER": parameters.folder,
    "ACCELERATOR": parameters.text,
    "GRACE_SECONDS": parameters.whole_number(1),
    "MAX_RESTARTS": parameters.whole_number(0),
}
VOLUME = {"VOLUME_CLAIM": parameters.text, "MOUNT_FOLDER": parameters.folder}
CHECKS = {
    "tpu": EVERYWHERE | VOLUME | {"TOPOLOGY": topology, "CHIPS_PER_HOST": parameters.whole_number(1),
                                  "SLICES": parameters.whole_number(1)},
    "gpu": EVERYWHERE | VOLUME | {"NODES": parameters.whole_number(1), "GPUS_PER_NODE": parameters.whole_number(1)},
    "xpk": EVERYWHERE | {"PROJECT": parameters.text, "ZONE": parameters.text, "CLUSTER": parameters.text,
                         "STORAGE": parameters.text, "SLICES": parameters.whole_number(1)},
}
NUMBERS = ("GRACE_SECONDS", "MAX_RESTARTS", "CHIPS_PER_HOST", "SLICES", "NODES", "GPUS_PER_NODE", "HOSTS_PER_SLICE")


def stop(words: str) -> None:
    """Ends the program because of a parameter."""
    print(f"{LAUNCHER}: {words}", file=sys.stderr)
    raise SystemExit(2)


def shell_command(given: parameters.Parameters) -> str:
    """COMMAND in the shell's place: else the shell would get the notice of a preemption, and keep it to itself."""
    return parameters.in_the_shells_place(given["COMMAND"])


def jobset(verb: str, given: parameters.Parameters) -> str:
    """The YAML of `verb` with the parameters in it."""
    if not given["RUN_FOLDER"].startswith(given["MOUNT_FOLDER"].rstrip("/") + "/"):
        stop(f"RUN_FOLDER must lie in MOUNT_FOLDER, where all pods see it; given were {given['RUN_FOLDER']!r} and "
             f"{given['MOUNT_FOLDER']!r}")
    # Kubernetes would put variables of its own in the place of $(...), which is the shell's
    values = given | {"SHELL_COMMAND": shell_command(given).replace("$(", "$$(")}
    if verb == "tpu":
        chips, per_host = math.prod(map(int, given["TOPOLOGY"].split("x"))), int(given["CHIPS_PER_HOST"])
        if chips % per_host:
            stop(f"CHIPS_PER_HOST must divide the {chips} chips of TOPOLOGY {given['TOPOLOGY']}; given was {per_host}")
        values["HOSTS_PER_SLICE"] = str(chips // per_host)
    # JSON's strings are YAML's, so that no value can be taken for anything but itself
    quoted = {name: value if name in NUMBERS else json.dumps(value) for name, value in values.items()}
    inside = {"JOBSET": given["NAME"], "PROCESSES": given.get("NODES", "")}  # for use within a quoted string
    return string.Template((HERE / f"{verb}.yaml").read_text()).substitute(quoted | inside)


def xpk(given: parameters.Parameters) -> list[str]:
    """The xpk command line."""
    flags = {
        "workload": given["NAME"],
        "project": given["PROJECT"],
        "zone": given["ZONE"],
        "cluster": given["CLUSTER"],
        "tpu-type": given["ACCELERATOR"],
        "num-slices": given["SLICES"],
        "docker-image": given["IMAGE"],
        "storage": given["STORAGE"],
        "env": f"RUN_FOLDER={given['RUN_FOLDER']}",
        "termination-grace-period-seconds": given["GRACE_SECONDS"],
        "max-restarts": given["MAX_RESTARTS"],
        "restart-on-exit-codes": "75",
        "command": shell_command(given),
    }
    return ["xpk", "workload", "create", *(f"--{name}={value}" for name, value in flags.items())]


def main() -> None:
    """Prints or runs the one command."""
    options = parameters.command_line(LAUNCHER, __doc__, VERBS)
    verb = options.verb
    given = parameters.read(LAUNCHER, CHECKS[verb], options.parameters or HERE / f"{verb}.env", options.replaced)
    if verb == "xpk":
        if options.dry_run:
            print(parameters.shown(xpk(given)))
        else:
            parameters.replace_process(xpk(given))
        return
    command, rendered = ["kubectl", "apply", "--filename=-"], jobset(verb, given)
    if options.dry_run:
        print(f"# | {parameters.shown(command)}\n{rendered}", end="")
        return
    try:
        raise SystemExit(subprocess.run(command, input=rendered, text=True).returncode)
    except FileNotFoundError:
        stop("kubectl is not installed here; --dry-run prints what it would be given")


if __name__ == "__main__":
    main()
