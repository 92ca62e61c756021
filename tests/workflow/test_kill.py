"""kill -9 at any moment, give the command again: the end is the same, to the byte. SIGTERM: saved, and said so."""

import random
import re
import signal
import subprocess
import time

import pytest
import yaml

TRAIN = {"train_batch_size": 4, "micro_rows": 2, "row_length": 160, "learning_rate": 1e-3, "save_steps": 2}
WORLD = {"sft_rows": 40, "preference_rows": 24, "prompt_rows": 16, "eval_prompts": 4}
KILLS = 10


@pytest.fixture
def start(micro_run, launch, tmp_path):
    """start(folder name): the run, in one process."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(micro_run(TRAIN, slots=2, shard_size=2, world=WORLD)))
    return lambda name: launch(config, tmp_path / name)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(start, products, tmp_path):
    start("whole").finish()
    begin = time.monotonic()
    start("whole").finish()  # how long a start takes that finds everything done
    nothing = time.monotonic() - begin
    rng, killed = random.Random(0), 0
    while killed < KILLS:
        run = start("killed")
        try:
            run.processes[0].wait(timeout=rng.uniform(0.5, 1.3) * nothing)
        except subprocess.TimeoutExpired:
            run.processes[0].send_signal(signal.SIGKILL)
            run.processes[0].wait()
            killed += 1
            continue
        run.finish()
        break
    assert killed >= 3, "the run finished before it could be killed; make the delays shorter"
    start("killed").finish()
    expected, found = products(tmp_path / "whole"), products(tmp_path / "killed")
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []


@pytest.mark.slow
def test_a_stage_without_its_record_is_done_again_whatever_lies_there(start, products, tmp_path):
    folder = tmp_path / "run"
    start("run").finish()
    expected = products(folder)
    pairs = next((folder / "stages").glob("online-round-1-pairs-*"))
    (pairs / "stage.json").unlink()
    (pairs / "pairs.jsonl").write_text('{"half": ')
    shard = next((folder / "stages").glob("online-round-2-sample-*")) / "shard-00001.jsonl"
    (shard.parent / "stage.json").unlink()
    shard.rename(shard.with_name(f".{shard.name}.1.tmp"))
    start("run").finish()
    assert products(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("when", "what"), [
    ("stages/sft-*/checkpoints/*", r"step \d+ of \d+ is saved"),
    ("stages/online-round-1-sample-*/shard-*", "finished shards are kept")])
def test_a_run_that_is_asked_to_leave_saves_says_so_and_continues(when, what, start, products, tmp_path):
    start("whole").finish()
    run = start("asked")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "asked").glob(when)) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait() == [75]
    assert re.search(what + r"\. Give the same command again to continue", run.output())
    start("asked").finish()
    assert products(tmp_path / "asked") == products(tmp_path / "whole")
