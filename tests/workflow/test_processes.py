"""Two processes are one run: the same samples and weights as one process, whichever of them dies and whenever."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.arithmetic import arithmetic_rows

TRAIN = {"train_batch_size": 8, "micro_rows": 1, "row_length": 160, "learning_rate": 1e-3, "save_steps": 2}
WORLD = {"sft_rows": 40, "preference_rows": 24, "prompt_rows": 16, "eval_prompts": 8}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def start(micro_run, launch, home):
    """start(name, processes, devices of each): the run, on a mesh of all devices."""
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(micro_run(TRAIN, slots=8, shard_size=2, world=WORLD, report_to="tensorboard")))
    return lambda name, processes=2, devices=4: launch(config, home / name, processes, devices)


@pytest.fixture(scope="module")
def by_two(start, home):
    """The run in two processes of four devices each."""
    start("two").finish()
    return home / "two"


def stages(folder):
    return {path.name.rsplit("-", 1)[0]: path for path in (folder / "stages").iterdir()}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_only_one_of_two_processes_writes_to_a_tracker(by_two):
    trained = {name for name, folder in stages(by_two).items() if (folder / "model" / "trainer_state.json").is_file()}
    written = [path.parent.name.rsplit("-", 1)[0] for path in by_two.rglob("events.out.tfevents.*")]
    assert sorted(written) == sorted(trained)


@pytest.mark.parametrize("devices", [8, 1])
def test_one_process_gives_the_same_samples_pairs_losses_and_weights(devices, start, home, by_two):
    start(f"one-of-{devices}", 1, devices).finish()
    ours, theirs = stages(by_two), stages(home / f"one-of-{devices}")
    assert sorted(ours) == sorted(theirs)
    compared = set()
    for name, folder in ours.items():
        for path in (p for p in folder.rglob("*") if p.is_file()):
            other = theirs[name] / path.relative_to(folder)
            if path.name == "model.safetensors":
                found, expected = load_file(path), load_file(other)
                for key in expected:
                    np.testing.assert_allclose(found[key], expected[key], atol=1e-5, rtol=0, err_msg=f"{name} {key}")
            elif path.name == "trainer_state.json":
                found, expected = (json.loads(p.read_text())["log_history"] for p in (path, other))
                assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
            elif path.suffix == ".jsonl" and path.name not in ("sft.jsonl", "preference.jsonl", "prompts.jsonl"):
                for mine, its in zip(rows(path), rows(other), strict=True):
                    assert [r["ids"] for r in mine.get("responses", [])] == [r["ids"] for r in its.get("responses", [])]
                    assert mine.get("pairs") == its.get("pairs")
            else:
                continue
            compared.add(path.name)
    assert {"model.safetensors", "trainer_state.json", "pairs.jsonl", "judged.jsonl", "shard-00003.jsonl"} <= compared


def test_each_process_makes_its_own_shards_and_weights_are_handed_over_in_memory(by_two):
    record = json.loads((stages(by_two)["online-round-1-sample"] / "stage.json").read_text())["report"]
    assert record["hand_over"]["mesh"] == {"data": 4, "fsdp": 1, "context": 1, "tensor": 1}
    weights = sum(x.nbytes for x in load_file(stages(by_two)["sft"] / "model/model.safetensors").values())
    assert record["hand_over"]["bytes"] >= 4 * weights  # whole on each of a process's four devices
    assert record["hand_over"]["seconds"] > 0


MOMENTS = {
    "mid-checkpoint": ("stages/sft-*/checkpoints/*orbax-checkpoint-tmp*", 1),
    "mid-sampling": ("stages/online-round-1-sample-*/shard-*", 0),
    "mid-export": ("stages/online-round-1-dpo-*/.model.partial", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_the_death_of_one_the_same_command_ends_in_the_same_bytes(moment, start, home, by_two, products):
    pattern, victim = MOMENTS[moment]
    run = start(moment)
    _until(home / moment, pattern)
    run.processes[victim].send_signal(signal.SIGKILL)
    statuses = run.wait(timeout=240)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] not in (0, 75)
    survivor = run.logs[1 - victim].read_text()
    assert re.search("so do the others|tasks have crashed|oordination service", survivor), survivor[-2000:]
    start(moment).finish()
    expected, found = products(by_two), products(home / moment)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.parametrize("pattern", ["stages/sft-*/checkpoints/*", "stages/online-round-1-sample-*/shard-*"])
def test_a_notice_to_one_ends_all_with_the_status_of_preemption(pattern, start, home, by_two, products):
    name = "noticed-" + ("training" if "sft" in pattern else "sampling")
    run = start(name)
    _until(home / name, pattern)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait(timeout=120) == [75, 75], run.output()[-3000:]
    start(name).finish()
    assert products(home / name) == products(by_two)


def test_an_export_by_two_is_the_export_by_one(launch, home, model):
    """In files small enough that both processes write some."""
    command = ["export", model, "--dtype", "float32", "--max_shard_size", "1e-5"]
    ours, theirs = (home / f"export-by-{processes}" for processes in (2, 1))
    for folder, processes in ((ours, 2), (theirs, 1)):
        launch(home / "config.yaml", folder, processes, 1, command).finish()
    expected = {path.name: path.read_bytes() for path in (theirs / "model").iterdir() if path.name != "README.md"}
    found = {path.name: path.read_bytes() for path in (ours / "model").iterdir() if path.name != "README.md"}
    assert len(list((theirs / "model").glob("*.safetensors"))) > 2
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []


def test_features_and_a_probe_by_two_are_those_by_one(launch, home, world, model):
    pairs = [json.loads(line) for line in (world / "preference.jsonl").read_text().splitlines()]
    (home / "graded.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"], "responses": [
        {"text": row["chosen"], "score": 1}, {"text": row["rejected"], "score": 0}]}) + "\n" for row in pairs))
    found = {}
    for processes in (2, 1):
        rated, made = home / f"features-by-{processes}", home / f"probe-by-{processes}"
        features = ["features", "--model_name_or_path", model, "--kind", "preference", "--shard_size", 4,
                    "--dataset_name", home / "graded.jsonl"]
        launch(home / "config.yaml", rated, processes, 1, features).finish()
        probe = ["probe", "--model_name_or_path", model, "--ratings", rated, "--pairs", rated, "--objectives",
                 '["data"]', "--few_rows", "true", "--gate_hidden", 8, "--gate_steps", 20]
        launch(home / "config.yaml", made, processes, 1, probe).finish()
        paths = [*rated.glob("shard-*"), *(path for path in (made / "model").iterdir() if path.name != "README.md")]
        found[processes] = {path.name: path.read_bytes() for path in paths}
    assert len([name for name in found[1] if name.startswith("shard-")]) == 8
    assert sorted(found[1]) == sorted(found[2])
    assert [name for name in found[1] if found[1][name] != found[2][name]] == []


def test_steps_labelled_by_two_are_those_by_one(launch, home, model):
    problems = arithmetic_rows(WorldConfig(subject="arithmetic", prompt_rows=6))["prompts"]
    (home / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    found = {}
    for processes in (2, 1):
        folder = home / f"steps-by-{processes}"
        launch(home / "config.yaml", folder, processes, 1, [
            "steps", "--model_name_or_path", model, "--dataset_name", home / "sums.jsonl", "--num_generations", 2,
            "--completions", 2, "--max_new_tokens", 8, "--slots", 2, "--block", 4, "--shard_size", 2,
            "--step_separator", "e", "--answers", "gsm8k_flexible"]).finish()
        found[processes] = {path.name: path.read_bytes() for path in folder.glob("s*-0*.jsonl")}
    assert len(found[1]) == 6
    assert found[1] == found[2]


BUG = """
import jax

def reward(prompts, completions, **columns):
    if jax.process_index() == {process}:
        raise KeyError("no such key")
    return [1.0] * len(completions)
"""


@pytest.mark.parametrize("process", [0, 1])
def test_an_error_of_any_kind_on_one_ends_all(process, launch, home, by_two, monkeypatch):
    (home / f"bug_on_{process}.py").write_text(BUG.format(process=process))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(home), os.environ.get("PYTHONPATH", ""))))
    command = ["score", "--input", stages(by_two)["online-round-1-sample"], "--kind", "function", "--function",
               f"bug_on_{process}:reward"]
    run = launch(home / "config.yaml", home / f"failed-{process}", 2, 1, command)
    statuses = run.wait(timeout=120)
    assert statuses[process] == 1
    assert statuses[1 - process] not in (0, 75)
    assert "KeyError: 'no such key'" in run.logs[process].read_text()


def test_folders_that_are_not_one_are_told_at_once(launch, home, model):
    folders = [home / "here", home / "there"]
    run = launch(home / "config.yaml", home / "unshared", 2, 1, ["export", model], folders=folders)
    assert 0 not in run.wait()  # far less than the 600 seconds of a checkpoint's barrier
    assert "is not one folder for all processes: what process 0 writes there, process 1 does not find" in run.output()
    assert [path for folder in folders for path in folder.iterdir()] == []


WAITING = """
import os, time
from rlhf_jax.parallel import gather, initialize

initialize()
assert gather(os.environ["JAX_PROCESS_ID"]) == ["0", "1"]
os.environ["RLHF_JAX_BARRIER_SECONDS"] = "2"
if os.environ["JAX_PROCESS_ID"] == "1":
    time.sleep(600)
gather("here")
"""


def test_a_process_that_does_not_come_is_named_by_the_one_that_waits(xla_flags):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2", "NPROC": "16",
           "JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    waits, sleeps = (subprocess.Popen([sys.executable, "-c", WAITING], env={**env, "JAX_PROCESS_ID": str(i)},
                                      stderr=subprocess.PIPE, text=True) for i in range(2))
    try:
        said = waits.communicate(timeout=300)[1]
    finally:
        for process in (waits, sleeps):
            process.kill()
            process.communicate()
    assert "process 0 of 2 has waited 2 seconds for process 1; see the log of that one" in said
    assert waits.returncode == 1


def _until(folder, pattern):
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} never came"
        time.sleep(0.001)
