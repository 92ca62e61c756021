import shlex
import subprocess
from pathlib import Path

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
    assert flags == {"job-name": "my-run", "nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8",
                     "cpus-per-task": "8", "time": "24:00:00", "signal": "TERM@120", "partition": "h100",
                     "output": "/shared/runs/my-run/slurm-%j.log", "export": "ALL"}
    assert environment == {
        "COMMAND": "rlhf-jax iterate --config configs/chat/iterate.yaml --model_name_or_path MODEL "
                   "--scorer.model_name_or_path REWARD_MODEL --prompts.dataset_name PROMPTS "
                   "--evaluation.data.dataset_name HELD_OUT --output_dir $RUN_FOLDER",
        "RUN_FOLDER": "/shared/runs/my-run",
        "SETUP": "source /shared/rlhf_jax/.venv/bin/activate", "GPUS_PER_NODE": "8"}


def test_cpu_nodes(launch):
    _, flags = submitted(launch("slurm", "--dry-run", "GPUS_PER_NODE=0", "TASKS_PER_NODE=2", "SETUP=", "ACCOUNT=us"))
    assert flags["ntasks-per-node"] == "2"
    assert flags["account"] == "us"
    assert "gpus-per-node" not in flags
    assert "partition" not in flags


def test_one_task_for_each_gpu(launch):
    launched = launch("slurm", "--dry-run", "GPUS_PER_NODE=8", "TASKS_PER_NODE=1")
    assert launched.returncode == 2
    assert "TASKS_PER_NODE must equal GPUS_PER_NODE" in launched.stderr
    assert "1 and 8" in launched.stderr


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
