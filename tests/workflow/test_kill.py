"""kill -9 at any moment, give the command again: the end is the same, to the byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

TRAIN = {"train_batch_size": 4, "micro_rows": 2, "row_length": 160, "learning_rate": 1e-3, "save_steps": 2}
WORLD = {"sft_rows": 40, "preference_rows": 24, "prompt_rows": 16, "eval_prompts": 4}
KILLS = 10


@pytest.fixture
def config_file(micro_run, tmp_path):
    """config.yaml, beside the run folders."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(micro_run(TRAIN, slots=2, shard_size=2, world=WORLD)))


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rlhf_jax.cli.main", "iterate", "--config", str(folder.parent / "config.yaml"),
               "--output_dir", str(folder)]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
           "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def products(folder: Path) -> dict[str, bytes]:
    """Everything a later stage or a user reads: samples, scores, pairs, weights."""
    wanted = ("pairs.jsonl", "model.safetensors", "judged.jsonl", "config.json")
    files = [p for p in (folder / "stages").rglob("*") if p.name in wanted or p.name.startswith("shard-")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if ".model.partial" not in str(p)}


@pytest.mark.slow
@pytest.mark.usefixtures("config_file")
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    begin = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0  # how long a start takes that finds everything done
    nothing = time.monotonic() - begin
    rng, killed, folder = random.Random(0), 0, tmp_path / "killed"
    while killed < KILLS:
        process = start(folder)
        try:
            process.wait(timeout=rng.uniform(0.5, 1.3) * nothing)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0, process.stderr.read()
        break
    assert killed >= 3, "the run finished before it could be killed; make the delays shorter"
    last = start(folder)
    assert last.wait() == 0, last.stderr.read()
    expected, found = products(tmp_path / "whole"), products(folder)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.slow
@pytest.mark.usefixtures("config_file")
def test_a_stage_without_its_record_is_done_again_whatever_lies_there(tmp_path):
    folder = tmp_path / "run"
    first = start(folder)
    assert first.wait() == 0, first.stderr.read()
    expected = products(folder)
    pairs = next((folder / "stages").glob("online-round-1-pairs-*"))
    (pairs / "stage.json").unlink()
    (pairs / "pairs.jsonl").write_text('{"half": ')
    shard = next((folder / "stages").glob("online-round-2-sample-*")) / "shard-00001.jsonl"
    (shard.parent / "stage.json").unlink()
    shard.rename(shard.with_name(f".{shard.name}.1.tmp"))
    again = start(folder)
    assert again.wait() == 0, again.stderr.read()
    assert products(folder) == expected
