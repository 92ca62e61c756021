"""What is wrong with a parameter is said with its name, what was given, and what to do."""

import os
import subprocess

import pytest

from launch.parameters import in_the_shells_place, one_command

LAUNCHERS = [("slurm", []), ("gke", ["tpu"]), ("gke", ["gpu"]), ("gke", ["xpk"]), ("tpu_vm", ["run"])]


def refused(launched, *words):
    assert launched.returncode == 2
    assert not launched.stdout
    for word in words:
        assert word in launched.stderr


@pytest.mark.parametrize(("launcher", "verb"), LAUNCHERS)
def test_a_missing_parameter(launch, tmp_path, launcher, verb):
    (tmp_path / "my.env").write_text("# nothing but\nNAME=a  # a name\n")
    refused(launch(launcher, *verb, "--dry-run", "--parameters", tmp_path / "my.env"),
            f"launch.{launcher}", "COMMAND is missing", "my.env", "COMMAND=... on the command line")


@pytest.mark.parametrize(("launcher", "verb"), LAUNCHERS)
@pytest.mark.parametrize(("given", "words"), [
    ("NAME=My Run", ["NAME", "'My Run'", "lower-case"]),
    ("RUN_FOLDER=runs/a", ["RUN_FOLDER", "'runs/a'", "absolute path"]),
    ("COMMAND=rlhf-jax sft && rlhf-jax dpo", ["COMMAND", "single command", "script"]),
    ("COMMAND=rlhf-jax sft 'unfinished", ["COMMAND", "no shell command"]),
    ("COMMAND=", ["COMMAND", "must not be empty"]),
    ("COMMAND=(rlhf-jax sft)", ["COMMAND begins with (", "only a shell can run"]),
    ("COMMAND=! rlhf-jax sft", ["COMMAND begins with !", "only a shell can run"]),
    ("COMMAND=A=1 time rlhf-jax sft", ["COMMAND begins with time", "a script of your own"]),
    ("COMMAND=NCCL_DEBUG=INFO", ["COMMAND sets variables and names no program"]),
    ("RUN_FOLDERS=/a", ["the command line", "'RUN_FOLDERS'", "did you mean RUN_FOLDER?"]),
    ("--replace", ["unrecognized arguments"]),
    ("RUN_FOLDER", ["'RUN_FOLDER' is no parameter", "NAME=value"]),
])
def test_a_bad_value(launch, launcher, verb, given, words):
    refused(launch(launcher, *verb, "--dry-run", given), *words)


@pytest.mark.parametrize(("text", "words"), [
    ("COMMAND=rlhf-jax sft\n", ["line 1", "several words", "quotes"]),
    ("\nCOMMAND='rlhf-jax\n", ["line 2", "cannot be read"]),
    ("NODES 2\n", ["several words"]),
])
def test_a_bad_line(launch, tmp_path, text, words):
    (tmp_path / "my.env").write_text(text)
    refused(launch("slurm", "--dry-run", "--parameters", tmp_path / "my.env"), "my.env", *words)


def test_no_file(launch, tmp_path):
    refused(launch("slurm", "--dry-run", "--parameters", tmp_path / "my.env"), "there is no file", "my.env")


def test_a_pipe_inside_quotes_is_one_command(launch):
    assert launch("slurm", "--dry-run", "COMMAND=python3 -c 'print(1 | 2); print(3)' 2>&1").returncode == 0


@pytest.mark.parametrize(("launcher", "args", "tool"), [
    ("slurm", [], "sbatch"), ("gke", ["tpu"], "kubectl"), ("gke", ["xpk"], "xpk"), ("tpu_vm", ["delete"], "gcloud")])
def test_without_the_platforms_tool(launch, tmp_path, launcher, args, tool):
    folder = [f"RUN_FOLDER={tmp_path}"] if launcher == "slurm" else []
    launched = launch(launcher, *args, *folder, PATH=str(tmp_path))
    assert launched.returncode == 2
    assert f"{tool} is not installed here" in launched.stderr
    assert "--dry-run" in launched.stderr


@pytest.mark.parametrize("command", [
    "rlhf-jax sft", "NCCL_DEBUG=INFO A='b c' rlhf-jax sft", "rlhf-jax sft --name ''", "A=$RUN_FOLDER rlhf-jax sft 2>&1",
    "$HOME/bin/rlhf-jax sft --name $(hostname)"])
def test_what_env_can_run_is_a_command(command):
    assert one_command(command) == ""


def test_a_variable_before_the_command_is_of_its_environment_and_the_shell_is_gone():
    told = in_the_shells_place("GREETING='good day' bash -c 'echo $GREETING of $PPID'")
    shell = subprocess.run(["bash", "-c", told], capture_output=True, text=True, check=True)
    assert shell.stdout == f"good day of {os.getpid()}\n"
