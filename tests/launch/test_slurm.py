import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm" / "run.sbatch"


def submitted(launched):
    """The environment and the flags of the printed sbatch command."""
    assert launched.returncode == 0, launched.stderr
    folder, line = launched.stdout.splitlines()
    assert shlex.split(folder)[:2] == ["mkdir", "-p"]
    words = shlex.split(line)
    at = words.index("sbatch")
    environment = dict(word.split("=", 1) for word in words[:at])
    assert words[-1] == str(SCRIPT)
    return environment, dict(word.removeprefix("--").split("=", 1) for word in words[at + 1 : -1])


def test_gpu_nodes(launch):
    environment, flags = submitted(launch("slurm", "--dry-run", "NODES=4", "PARTITION=h100"))
    assert flags == {"job-name": "my-run", "nodes": "4", "ntasks-per-node": "1", "gpus-per-node": "8",
                     "cpus-per-task": "64", "time": "24:00:00", "signal": "TERM@120", "partition": "h100",
                     "output": "/shared/runs/my-run/slurm-%j.log", "export": "ALL"}
    assert environment == {
        "COMMAND": "rlhf-jax iterate --config configs/chat/iterate.yaml --model_name_or_path MODEL "
                   "--scorer.model_name_or_path REWARD_MODEL --prompts.dataset_name PROMPTS "
                   "--evaluation.data.dataset_name HELD_OUT --output_dir $RUN_FOLDER",
        "RUN_FOLDER": "/shared/runs/my-run",
        "SETUP": "source /shared/rlhf_jax/.venv/bin/activate", "GPUS_PER_NODE": "8",
        "TASKS_PER_NODE": "1"}


def test_cpu_nodes(launch):
    _, flags = submitted(launch("slurm", "--dry-run", "GPUS_PER_NODE=0", "TASKS_PER_NODE=2", "SETUP=", "ACCOUNT=us"))
    assert flags["ntasks-per-node"] == "2"
    assert flags["account"] == "us"
    assert "gpus-per-node" not in flags
    assert "partition" not in flags


@pytest.mark.parametrize("tasks", [3, 16])
def test_tasks_share_the_gpus_of_a_node_evenly(launch, tasks):
    launched = launch("slurm", "--dry-run", "GPUS_PER_NODE=8", f"TASKS_PER_NODE={tasks}")
    assert launched.returncode == 2
    assert "TASKS_PER_NODE must divide GPUS_PER_NODE" in launched.stderr
    assert f"{tasks} and 8" in launched.stderr


SRUN = """#!/bin/bash
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % TASKS_PER_NODE)) bash -c "${!#}" || exit
done
"""


@pytest.fixture
def told(tmp_path):
    """What each task of run.sbatch is told, one line each, on nodes that are played."""

    def run(nodes, tasks, gpus):
        for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\nprintf 'node-1\\nnode-2\\n'\n")):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        command = "WORD='two words' bash -c 'echo $JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID " \
                  "$JAX_LOCAL_DEVICE_IDS $WORD'"
        given = {"COMMAND": command, "RUN_FOLDER": str(tmp_path), "GPUS_PER_NODE": str(gpus), "SLURM_JOB_ID": "4097",
                 "TASKS_PER_NODE": str(tasks), "SLURM_NTASKS": str(nodes * tasks), "SLURM_JOB_NODELIST": "node-[1-2]"}
        done = subprocess.run(["bash", SCRIPT], env=given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[:-1]

    return run


def test_one_process_a_node_has_all_of_its_gpus(told):
    assert told(nodes=2, tasks=1, gpus=4) == [
        "node-1:61441 2 0 0,1,2,3 two words", "node-1:61441 2 1 0,1,2,3 two words"]


def test_several_processes_a_node_share_its_gpus(told):
    assert told(nodes=1, tasks=2, gpus=4) == [
        "node-1:61441 2 0 0,1 two words", "node-1:61441 2 1 2,3 two words"]


def test_without_gpus_and_alone_nothing_is_told_that_is_not_so(told):
    assert told(nodes=2, tasks=1, gpus=0) == ["node-1:61441 2 0 two words", "node-1:61441 2 1 two words"]
    assert told(nodes=1, tasks=1, gpus=0) == ["0 two words"]


def test_the_script_is_requeued_and_ends_with_its_first_dead_task():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    lines = SCRIPT.read_text().splitlines()
    directives = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert directives == ["--requeue", "--open-mode=append"]
    assert any(line.startswith("srun") and "--kill-on-bad-exit=1" in line for line in lines)


def test_the_script_alone_says_how_it_is_submitted(tmp_path):
    alone = subprocess.run(["bash", SCRIPT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert alone.returncode != 0
    assert "COMMAND: is missing: submit this script by python -m launch.slurm" in alone.stderr
