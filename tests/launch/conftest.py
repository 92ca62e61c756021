"""Running a launcher as a user does, and a SLURM cluster of one machine."""

import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch():
    """`launch("gke", "tpu", "--dry-run", ...)` runs `python -m launch.gke tpu --dry-run ...`."""

    def run(launcher, *args, **environment):
        return subprocess.run([sys.executable, "-m", f"launch.{launcher}", *map(str, args)], cwd=ROOT,
                              env=os.environ | environment, capture_output=True, text=True, timeout=120)

    return run


class OneMachineSlurm:
    """munged, slurmctld and slurmd, started in a folder of their own, and what tests ask of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Starts the three daemons and waits for the node; raises RuntimeError or OSError where that fails."""
        for name in ("munge", "controller", "node"):
            (self.folder / name).mkdir()
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        text = string.Template((Path(__file__).parent / "slurm.conf").read_text()).substitute(
            folder=self.folder, hostname=socket.gethostname().split(".")[0], controller_port=_free_port(),
            node_port=_free_port())
        (self.folder / "slurm.conf").write_text(text)
        version = float(".".join(self.ask("slurmd", "-V").split()[-1].split(".")[:2]))
        # older versions know no "disabled" and load this one without using it
        plugin = "disabled" if version >= 23.11 else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        # --force: the folders above belong to a test and are open to others, which munged would not have
        self.ask("munged", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
                 f"--seed-file={munge}/seed", f"--log-file={munge}/log")
        self.ask("slurmctld")
        self.ask("slurmd")
        self.until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t"), "the node is idle", 30)

    def stop(self) -> None:
        """Ends what was started, by its process id, and waits for the end."""
        files = [self.folder / name for name in ("slurmd.pid", "slurmctld.pid", "munge/pid")]
        running = [int(file.read_text()) for file in files if file.is_file()]
        for process in running:
            os.kill(process, signal.SIGTERM)
        end = time.monotonic() + 10
        while any(Path(f"/proc/{process}/cmdline").exists() for process in running) and time.monotonic() < end:
            time.sleep(0.1)

    def ask(self, *command: str) -> str:
        """Runs a command against this cluster."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.ask("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, holds, what: str, seconds: float) -> None:
        """Waits until `holds()`; RuntimeError names `what` did not come true, with the daemons' last words."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                logs = "".join(f"\n{log}: {(self.folder / log).read_text()[-1500:]}" for log in
                               ("slurmctld.log", "slurmd.log") if (self.folder / log).is_file())
                raise RuntimeError(f"after {seconds} s it is not so that {what}{logs}")
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The cluster, or a skipped test and the reason."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid():
        pytest.skip("SLURM's daemons are started as root, and this is another user")
    cluster = OneMachineSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except (RuntimeError, OSError) as error:
        cluster.stop()
        pytest.skip(f"SLURM does not start here: {error}")
    yield cluster
    cluster.stop()
