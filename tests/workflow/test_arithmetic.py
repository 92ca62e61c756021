"""The arithmetic corner in reduced form: all its stages run, and the process model gives signs, if not right ones."""

import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "arithmetic" / "iterate.yaml"


def test_the_example_config_in_reduced_form(do_verb, launch, tmp_path):
    tree = yaml.safe_load(CONFIG.read_text())
    tree["world"] |= {"sft_rows": 400, "preference_rows": 400, "prompt_rows": 16, "eval_prompts": 8}
    tree["scratch"] |= {"embed": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 64}
    tree["sft"]["train"]["num_train_epochs"] = 4
    tree["reward"]["train"] |= {"num_train_epochs": 8, "learning_rate": 3e-3}
    del tree["pairs"]  # so little a model is never sure
    tree["loop"] |= {"prompts_per_round": 16, "shard_size": 8}
    for sampling in (tree["sampling"], tree["evaluation"]["sampling"]):
        sampling |= {"num_generations": 4, "max_new_tokens": 48, "slots": 8}
    (tmp_path / "reduced.yaml").write_text(yaml.safe_dump(tree))
    launch(tmp_path / "reduced.yaml", tmp_path / "run").finish()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [policy["label"] for policy in results["policies"]] == ["sft", "online-1"]
    assert 0 <= results["policies"][0]["gold"]["value"] <= 1
    assert results["reward_model"]["pairs"] == 100
    stages = tmp_path / "run" / "stages"
    (world,) = stages.glob("world-*")
    (reward,) = (path for path in stages.glob("reward-*") if (path / "model").is_dir())
    do_verb("score", tmp_path / "scored", kind="process", model_name_or_path=str(reward / "model"),
            dataset_name=str(world / "steps_eval.jsonl"))
    found = do_verb("evaluate", tmp_path / "found", input=str(tmp_path / "scored"), measure="steps")
    numbers = {name: estimate["value"] for name, estimate in found.report["step_accuracy"]["numbers"].items()}
    assert set(numbers) == {"accuracy", "f1", "first_error", "first_error/right", "first_error/wrong"}
    assert all(0 <= number <= 1 for number in numbers.values())
