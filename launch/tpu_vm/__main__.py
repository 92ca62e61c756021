"""TPU VMs as a queued resource: `python -m launch.tpu_vm VERB [--dry-run] [NAME=value ...]`.

`run` is all a run needs: it creates and installs what is missing, runs the command on all workers, and does all of it
again after a preemption, until the command ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from launch import parameters

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAUNCHER = "launch.tpu_vm"
PREEMPTED = 75
"""The status of a command that saved and wants to be run again (EX_TEMPFAIL)."""
NOT_INSTALLED = 127
"""The shell's status where there is no worker.sh."""

CAPACITY_FLAGS = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
"""States of a queued resource from which it becomes ACTIVE by itself."""
LEAVING = ("SUSPENDING", "DELETING")
"""States that end by themselves, and in which it cannot be deleted yet."""

CHECKS = {
    "NAME": parameters.run_name,
    "COMMAND": parameters.one_command,
    "RUN_FOLDER": parameters.folder,
    "MOUNT_FOLDER": parameters.folder,
    "MOUNT_COMMAND": parameters.text,
    "PROJECT": parameters.text,
    "ZONE": parameters.text,
    "ACCELERATOR": parameters.text,
    "RUNTIME_VERSION": parameters.text,
    "SLICES": parameters.whole_number(1),
    "CAPACITY": parameters.one_of(*CAPACITY_FLAGS),
    "MAX_RESTARTS": parameters.whole_number(0),
    "POLL_SECONDS": parameters.whole_number(0),
}
PASSED_ON = ("COMMAND", "RUN_FOLDER", "MOUNT_FOLDER", "MOUNT_COMMAND")
"""What worker.sh reads from its environment."""
VERBS = {
    "create": "ask for the machines and wait until they are there",
    "install": "install this checkout's last commit on all workers",
    "run": "run COMMAND on all workers until it ends, whatever is preempted meanwhile",
    "delete": "give the machines back",
}


class Commands:
    """The commands of one queued resource."""

    def __init__(self, given: parameters.Parameters) -> None:
        self.given = given
        self.where = [f"--project={given['PROJECT']}", f"--zone={given['ZONE']}"]

    def _queued_resource(self, verb: str, *words: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *words, *self.where]

    def _on_all_workers(self, verb: str, *words: str) -> list[str]:
        # gcloud serves 64 workers and begins with the next when those are done; a run needs all of them at once
        return [*self._queued_resource(verb, *words), "--node=all", "--worker=all", "--batch-size=all"]

    def create(self) -> list[str]:
        given = self.given
        one = given["SLICES"] == "1"
        nodes = ([f"--node-id={given['NAME']}"] if one else
                 [f"--node-count={given['SLICES']}", f"--node-prefix={given['NAME']}"])
        return [*self._queued_resource("create", given["NAME"]), f"--accelerator-type={given['ACCELERATOR']}",
                f"--runtime-version={given['RUNTIME_VERSION']}", *nodes, *CAPACITY_FLAGS[given["CAPACITY"]]]

    def states(self) -> list[str]:
        # all of them, because describe fails where there is nothing to describe
        return [*self._queued_resource("list"), "--format=value(name.basename(),state.state)"]

    def delete(self) -> list[str]:
        return [*self._queued_resource("delete", self.given["NAME"]), "--force", "--quiet"]

    def install(self, archive: str) -> Iterator[list[str]]:
        yield ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"]
        yield self._on_all_workers("scp", archive, f"{self.given['NAME']}:rlhf_jax.tar.gz")
        unpack = "rm -rf rlhf_jax && mkdir rlhf_jax && tar -xzf rlhf_jax.tar.gz -C rlhf_jax"
        script = "bash rlhf_jax/launch/tpu_vm/install.sh"
        yield [*self._on_all_workers("ssh", self.given["NAME"]), f"--command={unpack} && {script}"]

    def run(self, launch: str) -> list[str]:
        environment = {name: self.given[name] for name in PASSED_ON} | {"LAUNCH": launch}
        script = parameters.shown(["bash", "rlhf_jax/launch/tpu_vm/worker.sh"], environment)
        return [*self._on_all_workers("ssh", self.given["NAME"]), f"--command={script}"]


class Launcher:
    """Does what the verbs say, by running commands."""

    def __init__(self, given: parameters.Parameters) -> None:
        self.given = given
        self.commands = Commands(given)

    def say(self, words: str) -> None:
        """Tells the person what happens now."""
        print(f"{LAUNCHER}: {words}", file=sys.stderr, flush=True)

    def do(self, command: list[str]) -> None:
        """Runs a command that must work."""
        if status := subprocess.run(command).returncode:
            self.say(f"{command[0]} ended with status {status}: {parameters.shown(command)}")
            raise SystemExit(1)

    def state(self) -> str:
        """The queued resource's state; nothing where there is none."""
        answer = subprocess.run(self.commands.states(), stdout=subprocess.PIPE, text=True)
        if answer.returncode:
            self.say(f"gcloud could not tell the state of {self.given['NAME']}")
            raise SystemExit(1)
        states = dict(line.split() for line in answer.stdout.splitlines() if len(line.split()) == 2)
        return states.get(self.given["NAME"], "")

    def create(self) -> None:
        """Asks for the machines, and waits; a request that lies there already is waited for, a dead one replaced."""
        state = self._wait_while(LEAVING)
        if state and state not in (*WAITING, "ACTIVE"):
            self.say(f"{self.given['NAME']} is {state}: deleting it")
            self.delete()
            state = self._wait_while(LEAVING)
        if not state:
            self.do(self.commands.create())
        state = self._wait_while(WAITING)
        if state != "ACTIVE":
            self.say(f"{self.given['NAME']} is {state or 'gone'}, so no machines will come; gcloud compute tpus "
                     f"queued-resources describe {self.given['NAME']} says why")
            raise SystemExit(1)

    def _wait_while(self, states: tuple[str, ...]) -> str:
        while (state := self.state()) in states:
            self.say(f"{self.given['NAME']} is {state}; waiting")
            time.sleep(int(self.given["POLL_SECONDS"]))
        return state

    def install(self) -> None:
        """This checkout's last commit, on all workers."""
        if status := self._installed():
            self.say(f"the installation ended with status {status}")
            raise SystemExit(1)

    def _installed(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            commands = self.commands.install(f"{folder}/rlhf_jax.tar.gz")
            return next((status for command in commands if (status := subprocess.run(command).returncode)), 0)

    def delete(self) -> None:
        """Gives the machines back."""
        self.do(self.commands.delete())

    def run(self) -> None:
        """Runs the command on all workers until it ends by itself; after a preemption on new machines."""
        failures, bare = 0, False
        while True:
            if self.state() != "ACTIVE":
                self.create()
                bare = True
            status = self._installed() if bare else 0
            status = status or subprocess.run(self.commands.run(f"{time.time():.0f}")).returncode
            if status == 0:
                self.say("done")
                return
            time.sleep(int(self.given["POLL_SECONDS"]))  # a preemption takes a moment to show
            if status == PREEMPTED:
                self.say("saved after a notice; running again")
                continue
            bare = status == NOT_INSTALLED
            if self.state() != "ACTIVE":
                self.say("the machines were taken away; asking for new ones")
                continue
            failures += 1
            if failures > int(self.given["MAX_RESTARTS"]):
                self.say(f"ended with status {status}")
                raise SystemExit(status)
            self.say(f"ended with status {status} and not by a preemption; restart {failures} of "
                     f"{self.given['MAX_RESTARTS']}")


def dry_run(verb: str, commands: Commands) -> None:
    """Prints the commands of a verb, each as a line that a shell would run."""
    archive = "/tmp/rlhf_jax.tar.gz"
    install, run = [*commands.install(archive)], commands.run("1")
    printed: dict[str, list[list[str] | str]] = {
        "create": [commands.states(), commands.create(), "# until it is ACTIVE:", commands.states()],
        "install": [*install],
        "run": ["# unless the machines are there already:", commands.states(), commands.create(),
                "# until it is ACTIVE:", commands.states(), *install, "# the run:", run,
                "# after status 75: the run again. Machines gone: this, and all of the above:", commands.delete(),
                f"# any other status but 0: the run again, at most {commands.given['MAX_RESTARTS']} times"],
        "delete": [commands.delete()],
    }
    for line in printed[verb]:
        print(line if isinstance(line, str) else parameters.shown(line))


def main() -> None:
    """Does what the verb says, or prints the commands."""
    options = parameters.command_line(LAUNCHER, __doc__, VERBS)
    given = parameters.read(LAUNCHER, CHECKS, options.parameters or HERE / "parameters.env", options.replaced)
    if not given["RUN_FOLDER"].startswith(given["MOUNT_FOLDER"].rstrip("/") + "/"):
        print(f"{LAUNCHER}: RUN_FOLDER must lie in MOUNT_FOLDER, where all workers see it; given were "
              f"{given['RUN_FOLDER']!r} and {given['MOUNT_FOLDER']!r}", file=sys.stderr)
        raise SystemExit(2)
    if options.dry_run:
        dry_run(options.verb, Commands(given))
        return
    try:
        getattr(Launcher(given), options.verb)()
    except FileNotFoundError as error:
        print(f"{LAUNCHER}: {error.filename} is not installed here; --dry-run prints what would run", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
