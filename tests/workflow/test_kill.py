"""kill -9 at any moment, give the command again: the end is the same, to the byte. SIGTERM: saved, and said so.

Every verb is killed just before changes of files that a seed chooses, trainings also behind a checkpoint. With
RLHF_JAX_SOAK=1 there are a hundred interruptions, of variants of the trainings too; RLHF_JAX_SOAK_SEED chooses others.
"""

import json
import os
import random
import re
import shutil
import signal
import time

import pytest
import yaml

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.arithmetic import arithmetic_rows

RUN = {"train_batch_size": 4, "micro_rows": 2, "row_length": 160, "learning_rate": 1e-3, "save_steps": 2}
WORLD = {"sft_rows": 40, "preference_rows": 24, "prompt_rows": 16, "eval_prompts": 4}
TRAIN = ["--train_batch_size", 2, "--micro_rows", 2, "--row_length", 192, "--learning_rate", 1e-3, "--max_steps", 6,
         "--save_steps", 2]
LORA = ["--use_peft", "true", "--lora_r", 2, "--lora_target_modules", '["q_proj","down_proj"]']
BFLOAT16 = ["--dtype", "bfloat16"]
SAMPLING = ["--num_generations", 2, "--slots", 2, "--block", 4, "--max_new_tokens", 8]
SOAK, SEED = os.environ.get("RLHF_JAX_SOAK") == "1", os.environ.get("RLHF_JAX_SOAK_SEED", "0")
SECONDS = {"seconds", "tokens_per_second", "tflops_per_device", "compiled_programs", "products"}
"""What differs between two runs that are the same: times, and hashes of files that hold some."""
PAGE = ("manifest.json", "results.json", "report.html", "report.md", "figures")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def start(micro_run, launch, home, world):
    """start(folder, command, dying): `rlhf-jax iterate`, or another command, in one process."""
    config = home / "config.yaml"
    judge = {"kind": "function", "function": "rlhf_jax.data.world:gold_judge"}
    choice = {"data": {"dataset_name": f"{world / 'prompts.jsonl'}[16:20]"}, "judge": judge, "patience": None,
              "sampling": {"num_generations": 2, "max_new_tokens": 8, "slots": 2, "block": 2}}
    config.write_text(yaml.safe_dump(micro_run(RUN, slots=2, shard_size=2, world=WORLD, selection=choice)))
    return lambda folder, command=None, dying=None: launch(config, home / folder, command=command, dying=dying)


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in SECONDS}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def made(folder):
    """Every file below a folder, what a killed run might leave behind included; times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file() or name.split("/")[0] in PAGE:
            continue
        timed = path.name in ("stage.json", "trainer_state.json")
        found[name] = timeless(json.loads(path.read_text())) if timed else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def commands(home, world, model, make_model):
    """Name -> the command; of the results of others it reads those of `whole`."""
    rows = {name: world / f"{name}.jsonl" for name in ("sft", "preference", "preference_eval", "prompts")}
    reward_model = make_model(home / "reward-model", 1, num_labels=1, tie_embeddings=False)
    bt = ["--kind", "bradley_terry", "--model_name_or_path"]
    pairs = [json.loads(line) for line in rows["preference"].read_text().splitlines()]
    (home / "graded.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"], "responses": [
        {"text": row["chosen"], "score": 1}, {"text": row["rejected"], "score": 0}]}) + "\n" for row in pairs))

    (home / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in arithmetic_rows(
        WorldConfig(subject="arithmetic", prompt_rows=6))["prompts"]))

    def of(verb, start, data, *more):
        return [verb, "--model_name_or_path", start, "--dataset_name", data, *more]

    def result(name):
        return home / "whole" / name

    return {
        "sft": of("sft", model, rows["sft"], *TRAIN, "--eval_dataset_name", f"{rows['sft']}[:4]", "--eval_steps", 3),
        "sft-lora": of("sft", model, rows["sft"], *TRAIN, *LORA, *BFLOAT16),
        "reward": of("reward", model, rows["preference"], *TRAIN),
        "reward-again": of("reward", reward_model, rows["preference"], *TRAIN, *BFLOAT16),
        "reward-lora": of("reward", model, rows["preference"], *TRAIN, *LORA),
        "pairwise": of("reward", model, rows["preference"], "--kind", "pairwise", *TRAIN),
        "regression": of("reward", model, home / "graded.jsonl", "--kind", "regression", "--objectives", "[data]",
                         *TRAIN),
        "generate": of("generate", model, rows["prompts"], *SAMPLING, "--shard_size", 4),
        "score": ["score", *bt, result("reward") / "model", "--input", result("generate")],
        "pairs": ["pairs", "--input", result("score")],
        "dpo": ["dpo", "--model_name_or_path", model, "--pairs", result("pairs") / "pairs.jsonl", *TRAIN],
        "dpo-lora": of("dpo", model, rows["preference"], *TRAIN, *LORA, *BFLOAT16),
        "evaluate": ["evaluate", "--scorer.kind", "bradley_terry", "--scorer.model_name_or_path",
                     result("reward") / "model", "--dataset_name", rows["preference_eval"]],
        "agreement": ["agreement", "--verdicts", f"[{result('evaluate')}, {result('evaluate') / 'rows.jsonl'}]"],
        "features": of("features", model, home / "graded.jsonl", "--kind", "preference", "--shard_size", 8),
        "steps": of("steps", model, home / "sums.jsonl", *SAMPLING, "--completions", 2, "--shard_size", 2,
                    "--step_separator", "e", "--answers", "gsm8k_flexible"),
        "probe": ["probe", "--model_name_or_path", model, "--ratings", result("features"), "--pairs",
                  result("features"), "--few_rows", "true", "--gate_hidden", 8, "--gate_steps", 20],
        "compare": [
            "compare", "--scorer.kind", "function", "--scorer.function", "rlhf_jax.data.world:gold_judge",
            "--dataset_name", world / "eval_prompts.jsonl", "--model_name_or_path", result("dpo") / "model",
            "--baseline_model", model, *(f"--sampling.{x.removeprefix('--')}" if str(x).startswith("--") else x
                                         for x in SAMPLING)],
        "data": ["data", "--sources", f"[{rows['preference']}, {rows['preference_eval']}]", "--valid_percent", 20,
                 "--benchmarks", rows["preference_eval"], "--near_duplicates", "null", "--shard_size", 5],
        "export": ["export", result("sft-lora") / "model" / "adapter", "--max_shard_size", "1e-5"],
        "export-checkpoint": ["export", model, "--checkpoint", result("unfinished")],
        "iterate": None,
    }


NEEDS = {"score": ["generate", "reward"], "pairs": ["score"], "dpo": ["pairs"], "evaluate": ["reward"],
         "agreement": ["evaluate"], "compare": ["dpo"], "export": ["sft-lora"],
         "export-checkpoint": ["unfinished"], "probe": ["features"]}
TRAININGS = {"sft", "sft-lora", "reward", "reward-again", "reward-lora", "pairwise", "regression", "dpo", "dpo-lora"}
NAMES = ["sft", "sft-lora", "reward", "reward-again", "reward-lora", "pairwise", "regression", "generate", "score",
         "pairs", "dpo", "dpo-lora", "evaluate", "agreement", "features", "steps", "probe", "compare", "data",
         "export", "export-checkpoint", "iterate"]
VARIANTS = {"reward-again", "reward-lora", "pairwise", "regression", "dpo-lora"}
"""Trainings that save and go on as others do: only the long form kills them."""
KILLED = [name for name in NAMES if SOAK or name not in VARIANTS]


def behind_a_checkpoint(changes):
    """Numbers of the changes that follow right on a finished checkpoint."""
    return [number + 2 for number, change in enumerate(changes[:-1])
            if re.fullmatch(r"os.rename (stages/[^/]+/)?checkpoints/\d+", change)]


@pytest.fixture(scope="module")
def whole(start, commands, home):
    """whole(name): what a run of this command makes that nobody disturbed, and the changes of files it takes."""
    found = {}

    def run(name):
        if name in found:
            return found[name]
        for other in NEEDS.get(name, ()):
            run(other)
        (home / "whole").mkdir(exist_ok=True)
        log = home / f"changes-{name}"
        if name == "unfinished":  # at its second checkpoint
            start("whole/unfinished", commands["sft"], {"KILL_AT": str(behind_a_checkpoint(run("sft")[1])[1])}).wait()
            return found.setdefault(name, None)
        start(f"whole/{name}", commands[name], {"CHANGES": str(log)}).finish()
        return found.setdefault(name, (made(home / "whole" / name), log.read_text().splitlines()))

    return run


def interruptions(name):
    if SOAK:
        return 10 if name == "iterate" else 6
    return 4 if name == "iterate" else 1 + (name in TRAININGS)


@pytest.mark.parametrize("name", KILLED)
def test_a_command_killed_at_changes_of_its_files_ends_in_the_same_bytes(name, start, commands, home, whole):
    expected, changes = whole(name)
    rng, killed, tries = random.Random(f"{name} {SEED}"), [], 0
    places = [rng.choice(behind_a_checkpoint(changes))] if name in TRAININGS else []
    (home / "killed").mkdir(exist_ok=True)

    def end():
        start(f"killed/{name}", commands[name]).finish()
        found = made(home / "killed" / name)
        assert sorted(found) == sorted(expected), killed
        assert [file for file in expected if found[file] != expected[file]] == [], killed

    while len(killed) < interruptions(name):
        place, torn = places.pop() if places else rng.randint(1, len(changes)), rng.random() < 0.5
        dying = {"KILL_AT": str(place)} | ({"KILL_TORN": "1"} if torn else {})
        run = start(f"killed/{name}", commands[name], dying)
        status, = run.wait()
        killed.append((place, torn))
        tries += 1
        if status == -signal.SIGKILL:
            continue
        assert status == 0, (killed, run.output()[-4000:])  # there was less to do than to this place
        killed.pop()
        end()
        shutil.rmtree(home / "killed" / name)
        assert tries < 50
    end()


def test_every_verb_and_every_kind_of_training_is_killed(commands):
    from rlhf_jax.workflow.verbs import STAGES

    assert list(commands) == NAMES
    assert {commands[name][0] for name in KILLED if commands[name]} == {*STAGES, "compare"}
    assert sum(map(interruptions, KILLED)) >= (100 if SOAK else 20)


def test_a_stage_without_its_record_is_done_again_whatever_lies_there(start, home, whole):
    expected = whole("iterate")[0]
    shutil.copytree(home / "whole" / "iterate", home / "unrecorded" / "iterate", symlinks=True)
    folder = home / "unrecorded" / "iterate"
    pairs = next((folder / "stages").glob("online-round-1-pairs-*"))
    (pairs / "stage.json").unlink()
    (pairs / "pairs.jsonl").write_text('{"half": ')
    shard = next((folder / "stages").glob("online-round-2-sample-*")) / "shard-00001.jsonl"
    (shard.parent / "stage.json").unlink()
    shard.rename(shard.with_name(f".{shard.name}.tmp"))
    start("unrecorded/iterate").finish()
    assert made(folder) == expected


@pytest.mark.parametrize(("when", "what"), [
    ("stages/sft-*/checkpoints/*", r"step \d+ of \d+ is saved"),
    ("stages/online-round-1-sample-*/shard-*", "finished shards are kept")])
def test_a_run_that_is_asked_to_leave_saves_says_so_and_continues(when, what, start, home, whole):
    name = "asked-in-" + ("training" if "sft" in when else "sampling")
    (home / name).mkdir()
    run = start(f"{name}/iterate")
    deadline = time.monotonic() + 120
    while not list((home / name / "iterate").glob(when)) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.wait() == [75]
    assert re.search(what + r"\. Give the same command again to continue", run.output())
    start(f"{name}/iterate").finish()
    assert made(home / name / "iterate") == whole("iterate")[0]
