"""kill -9 at any moment, give the command again: the end is the same, to the byte. SIGTERM: saved, and said so."""

import random
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml

TRAIN = {"train_batch_size": 4, "micro_rows": 2, "row_length": 160, "learning_rate": 1e-3, "save_steps": 2}
WORLD = {"sft_rows": 40, "preference_rows": 24, "prompt_rows": 16, "eval_prompts": 4}
KILLS = 10


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def start(micro_run, launch, home):
    """start(folder name): the run, in one process."""
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(micro_run(TRAIN, slots=2, shard_size=2, world=WORLD)))
    return lambda name: launch(config, home / name)


@pytest.fixture(scope="module")
def whole(start, products, home):
    """What a run that nobody disturbed makes."""
    start("whole").finish()
    return products(home / "whole")


def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(start, products, home, whole):
    begin = time.monotonic()
    start("whole").finish()  # how long a start takes that finds everything done
    nothing = time.monotonic() - begin
    rng, killed, patience = random.Random(0), 0, 1.3
    while killed < KILLS:
        run = start("killed")
        try:
            run.processes[0].wait(timeout=rng.uniform(0.4, 1.0) * patience * nothing)
        except subprocess.TimeoutExpired:
            run.processes[0].send_signal(signal.SIGKILL)
            run.processes[0].wait()
            killed += 1
            continue
        run.finish()
        if killed >= 3:
            break
        shutil.rmtree(home / "killed")  # the machine was faster than when it was timed
        killed, patience = 0, patience / 2
    start("killed").finish()
    found = products(home / "killed")
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if whole[name] != found[name]] == []


def test_a_stage_without_its_record_is_done_again_whatever_lies_there(start, products, home, whole):
    folder = home / "whole"
    pairs = next((folder / "stages").glob("online-round-1-pairs-*"))
    (pairs / "stage.json").unlink()
    (pairs / "pairs.jsonl").write_text('{"half": ')
    shard = next((folder / "stages").glob("online-round-2-sample-*")) / "shard-00001.jsonl"
    (shard.parent / "stage.json").unlink()
    shard.rename(shard.with_name(f".{shard.name}.1.tmp"))
    start("whole").finish()
    assert products(folder) == whole


@pytest.mark.parametrize(("when", "what"), [
    ("stages/sft-*/checkpoints/*", r"step \d+ of \d+ is saved"),
    ("stages/online-round-1-sample-*/shard-*", "finished shards are kept")])
def test_a_run_that_is_asked_to_leave_saves_says_so_and_continues(when, what, start, products, home, whole):
    name = "asked-in-" + ("training" if "sft" in when else "sampling")
    run = start(name)
    deadline = time.monotonic() + 120
    while not list((home / name).glob(when)) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait() == [75]
    assert re.search(what + r"\. Give the same command again to continue", run.output())
    start(name).finish()
    assert products(home / name) == whole
