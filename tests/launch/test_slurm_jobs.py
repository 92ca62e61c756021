"""run.sbatch under a real SLURM: processes, preemptions, an end, a death. Skipped where SLURM cannot be started."""

import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PREEMPTED_ONCE = """
import os, signal, sys, time
task, start = int(os.environ["SLURM_PROCID"]), os.environ.get("SLURM_RESTART_COUNT", "0")
if start == "1":
    print(f"task {task} continued and finished", flush=True)
    sys.exit(0)
def save(*_):
    time.sleep(8 * task)  # the second saves for longer than SLURM lets a killed task live
    print(f"task {task} saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print(f"task {task} at work", flush=True)
time.sleep(600)
"""

DYING = """
import os, signal, sys, time
if os.environ["SLURM_PROCID"] == "1":
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # the survivor takes its end for a preemption
time.sleep(600)
"""


@pytest.fixture
def submit(slurm, launch, tmp_path):
    """Submits a Python program, or other words for Python, by `python -m launch.slurm` as two tasks on the one node.

    Returns the job's number and a function that reads its log.
    """

    def run(program="", words=""):
        (tmp_path / "program.py").write_text(program)
        submitted = launch("slurm", f"COMMAND={sys.executable} {words or tmp_path / 'program.py'}",
                           f"RUN_FOLDER={tmp_path}/run", "NODES=1", "GPUS_PER_NODE=0", "TASKS_PER_NODE=2",
                           "CPUS_PER_TASK=1", "TIME_LIMIT=10", "SETUP=", PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu",
                           XLA_FLAGS="", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"), **slurm.environment)
        assert submitted.returncode == 0, submitted.stderr
        number = submitted.stdout.split()[-1]
        return number, lambda: log.read_text() if (log := tmp_path / "run" / f"slurm-{number}.log").is_file() else ""

    return run


def ended(slurm, number, seconds):
    slurm.until(lambda: slurm.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), "the job has ended",
                seconds)
    return slurm.job(number)


def test_two_processes_find_each_other(slurm, submit):
    number, log = submit((Path(__file__).parent / "two_processes.py").read_text())
    job = ended(slurm, number, 180)
    assert job["JobState"] == "COMPLETED", log()
    assert "process 0 of 2: sum 3.0" in log()
    assert "process 1 of 2: sum 3.0" in log()
    small = os.cpu_count() < 16
    assert ("NPROC 16" in log()) == small or "NPROC" in os.environ


@pytest.mark.parametrize("by", ["time limit", "urgent job"])
def test_a_preempted_job_saves_is_requeued_and_finishes(slurm, submit, by):
    number, log = submit(PREEMPTED_ONCE)
    slurm.until(lambda: log().count("at work") == 2, "both tasks are at work", 60)
    if by == "time limit":
        slurm.ask("scancel", "--signal=TERM", number)  # as --signal=TERM@120 does it: to the tasks only
    else:
        slurm.ask("sbatch", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
    slurm.until(lambda: slurm.job(number).get("Restarts") == "1", "the job is requeued", 60)
    assert log().count("saved") == 2, log()
    job = ended(slurm, number, 180)
    assert job["JobState"] == "COMPLETED", log()
    assert log().count("continued and finished") == 2
    assert not list((Path(job["StdOut"]).parent).glob(".ended*"))


def test_a_preempted_run_goes_on_where_it_was(slurm, submit, tmp_path):
    config = Path(__file__).parent / "micro_run.yaml"
    number, log = submit(words=f"-m rlhf_jax.cli.main iterate --config {config} --output_dir $RUN_FOLDER")
    slurm.until(lambda: list(tmp_path.glob("run/stages/sft-*/checkpoints/*")), f"sft has a checkpoint: {log()}", 200)
    slurm.ask("scancel", "--signal=TERM", number)
    slurm.until(lambda: slurm.job(number).get("Restarts") == "1", f"the job is requeued: {log()}", 100)
    assert "stopping on SIGTERM; step " in log()
    job = ended(slurm, number, 300)
    assert job["JobState"] == "COMPLETED", log()
    assert (tmp_path / "run" / "report.html").is_file()
    assert "scratch: already done" in log()


def test_a_cancelled_job_saves_and_stays_away(slurm, submit):
    number, log = submit(PREEMPTED_ONCE.replace("8 * task", "task"))  # both are done before SLURM kills the script
    slurm.until(lambda: log().count("at work") == 2, "both tasks are at work", 60)
    slurm.ask("scancel", number)
    job = ended(slurm, number, 60)
    assert job["JobState"] == "CANCELLED"
    time.sleep(10)  # longer than a requeued job would wait
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), log()
    assert log().count("saved\n") == 2
    assert "run.sbatch: saved; SLURM has ended the job" in log()


def test_one_dead_task_ends_the_job(slurm, submit):
    number, log = submit(DYING)
    job = ended(slurm, number, 60)
    assert job["JobState"] == "FAILED"
    assert job["Restarts"] == "0"
    assert "run.sbatch: ended with status 137" in log()
