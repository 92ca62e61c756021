"""The gcloud commands, the loop over preemptions with a gcloud that plays a script, and worker.sh for real."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "launch" / "tpu_vm"

GCLOUD = """#!{python}
import json, sys
from pathlib import Path
folder = Path({folder!r})
verb, words = sys.argv[4], sys.argv[1:]
what = "worker" if any("worker.sh" in word for word in words) else verb
answers = json.loads((folder / "answers.json").read_text())
with open(folder / "calls", "a") as calls:
    print(what, file=calls)
answer = answers[what].pop(0) if answers.get(what) else 0
(folder / "answers.json").write_text(json.dumps(answers))
if verb == "list" and answer:
    print("another-run\\tFAILED\\nmy-run\\t" + answer)
sys.exit(answer if isinstance(answer, int) else 0)
"""


@pytest.fixture
def gcloud(launch, tmp_path):
    """`gcloud(verb, answers)`: what was called and the result, with `answers` a list for each gcloud verb."""

    def run(verb, answers, *given):
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        (tmp_path / "gcloud").write_text(GCLOUD.format(python=sys.executable, folder=str(tmp_path)))
        (tmp_path / "gcloud").chmod(0o755)
        done = launch("tpu_vm", verb, "POLL_SECONDS=0", *given, PATH=f"{tmp_path}:{os.environ['PATH']}")
        return (tmp_path / "calls").read_text().split(), done

    return run


def printed(launched):
    assert launched.returncode == 0, launched.stderr
    return [shlex.split(line) for line in launched.stdout.splitlines() if not line.startswith("#")]


def test_one_slice(launch):
    _, create, _ = printed(launch("tpu_vm", "create", "--dry-run"))
    assert create == ["gcloud", "compute", "tpus", "queued-resources", "create", "my-run", "--project=my-project",
                      "--zone=us-east5-a", "--accelerator-type=v5litepod-16",
                      "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=my-run", "--spot"]


def test_several_slices(launch):
    _, create, _ = printed(launch("tpu_vm", "create", "--dry-run", "SLICES=4", "CAPACITY=on-demand", "NAME=big"))
    assert create[-2:] == ["--node-count=4", "--node-prefix=big"]
    assert "--reserved" in printed(launch("tpu_vm", "create", "--dry-run", "CAPACITY=reserved"))[1]


def test_install_and_run_reach_all_workers_at_once(launch):
    archive, copy, unpack = printed(launch("tpu_vm", "install", "--dry-run"))
    assert archive[:1] + archive[3:4] == ["git", "archive"]
    assert copy[4:7] == ["scp", "/tmp/rlhf_jax.tar.gz", "my-run:rlhf_jax.tar.gz"]
    *_, run, delete = printed(launch("tpu_vm", "run", "--dry-run", "COMMAND=rlhf-jax sft --name 'a b'"))
    for command in (copy, unpack, run):
        assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(command)
    remote = shlex.split(run[-1].removeprefix("--command="))
    assert remote[-2:] == ["bash", "rlhf_jax/launch/tpu_vm/worker.sh"]
    environment = dict(word.split("=", 1) for word in remote[:-2])
    assert environment["COMMAND"] == "rlhf-jax sft --name 'a b'"
    assert environment["RUN_FOLDER"] == "/mnt/shared/runs/my-run"
    assert delete[4:6] == ["delete", "my-run"]
    assert {"--force", "--quiet"} <= set(delete)


@pytest.mark.parametrize(("given", "words"), [
    ("SLICES=0", "SLICES must be a whole number of at least 1; given was '0'"),
    ("CAPACITY=cheap", "CAPACITY must be one of spot, reserved, on-demand; given was 'cheap'"),
    ("RUN_FOLDER=/home/run", "RUN_FOLDER must lie in MOUNT_FOLDER"),
])
def test_bad_parameters(launch, given, words):
    launched = launch("tpu_vm", "run", "--dry-run", given)
    assert launched.returncode == 2
    assert words in launched.stderr


def test_a_preemption_after_saving_runs_again(gcloud):
    calls, done = gcloud("run", {"list": ["ACTIVE", "ACTIVE", "ACTIVE"], "worker": [75, 75, 0]})
    assert done.returncode == 0, done.stderr
    assert calls == ["list", "worker"] * 3


def test_lost_machines_are_asked_for_again(gcloud):
    calls, done = gcloud("run", {
        "list": ["ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDING", "SUSPENDED", "", "ACCEPTED", "ACTIVE"],
        "worker": [255, 0]})
    assert done.returncode == 0, done.stderr
    assert calls == ["list", "worker", "list", "list", "list", "list", "delete", "list", "create", "list", "list",
                     "scp", "ssh", "worker"]


def test_run_creates_and_installs_what_is_missing(gcloud):
    calls, done = gcloud("run", {"list": ["", "", "PROVISIONING", "ACTIVE"], "worker": [0]})
    assert done.returncode == 0, done.stderr
    assert calls == ["list", "list", "create", "list", "list", "scp", "ssh", "worker"]


def test_machines_without_an_installation_get_one(gcloud):
    calls, done = gcloud("run", {"list": ["ACTIVE"] * 3, "worker": [127, 0]})
    assert done.returncode == 0, done.stderr
    assert calls == ["list", "worker", "list", "list", "scp", "ssh", "worker"]


def test_a_real_failure_is_tried_again_so_many_times_and_then_reported(gcloud):
    calls, done = gcloud("run", {"list": ["ACTIVE"] * 9, "worker": [1, 1, 1]}, "MAX_RESTARTS=1")
    assert done.returncode == 1
    assert calls.count("worker") == 2
    assert "restart 1 of 1" in done.stderr
    assert "ended with status 1" in done.stderr


def test_a_refused_request_ends_the_launch(gcloud):
    calls, done = gcloud("create", {"list": ["", "FAILED"]})
    assert done.returncode == 1
    assert calls == ["list", "create", "list"]
    assert "my-run is FAILED" in done.stderr
    assert "describe my-run" in done.stderr


@pytest.fixture
def worker(tmp_path):
    """Starts worker.sh with a command, as launch number so and so."""

    def start(command, number):
        environment = os.environ | {"HOME": str(tmp_path), "COMMAND": command, "RUN_FOLDER": str(tmp_path),
                                    "MOUNT_FOLDER": "/proc", "MOUNT_COMMAND": "false", "LAUNCH": str(number)}
        return subprocess.Popen(["bash", SCRIPTS / "worker.sh"], env=environment, stdout=subprocess.PIPE, text=True)

    return start


def test_worker_runs_the_command_and_ends_with_its_status(worker, tmp_path):
    first = worker("bash -c 'echo $RUN_FOLDER $RLHF_JAX_CLUSTER; exit 75'", 1)
    output, _ = first.communicate(timeout=300)
    assert output == f"{tmp_path} 1\n"
    assert first.returncode == 75


def test_worker_sets_what_stands_before_the_command(worker):
    run = worker("GREETING='good day' bash -c 'echo $GREETING; exit 3'", 1)
    assert run.communicate(timeout=300)[0] == "good day\n"
    assert run.returncode == 3


@pytest.mark.longer
def test_worker_outlives_its_connection(worker, tmp_path):
    command = (f"bash -c 'echo once >> {tmp_path}/starts; echo at work; "
               f"until [ -e {tmp_path}/enough ]; do sleep 0.1; done; echo done'")
    connection = worker(command, 1)
    assert connection.stdout.readline() == "at work\n"
    connection.send_signal(signal.SIGKILL)
    connection.wait()
    second = worker("false", 2)  # another launch, while that runs: it is followed, and nothing is started
    assert second.stdout.readline() == "at work\n"
    (tmp_path / "enough").touch()
    assert second.communicate(timeout=300)[0] == "done\n"
    assert second.returncode == 0
    again = worker("false", 1)  # gcloud repeats the first call once it can connect again
    assert again.communicate(timeout=300)[0] == "at work\ndone\n"
    assert again.returncode == 0
    assert (tmp_path / "starts").read_text() == "once\n"


def test_worker_mounts_first(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "COMMAND": "true", "RUN_FOLDER": str(tmp_path), "LAUNCH": "1",
                                "MOUNT_FOLDER": str(tmp_path), "MOUNT_COMMAND": f"touch {tmp_path}/mounted && false"}
    assert subprocess.run(["bash", SCRIPTS / "worker.sh"], env=environment).returncode != 0
    assert (tmp_path / "mounted").exists()
    time.sleep(0.1)
    assert not list(tmp_path.glob(".rlhf_jax_run/*/launch"))


@pytest.mark.parametrize("script", ["install.sh", "worker.sh"])
def test_scripts_are_shell(script):
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
