"""`dpo` on single responses, each desirable or not: rows of a completion and a label, or pairs that are split."""

import json
import math

import pytest

from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.workflow.stages.dpo import as_read

TRAIN = {"train_batch_size": 4, "micro_rows": 8, "row_length": 256, "learning_rate": 1e-3, "max_steps": 2,
         "logging_steps": 1, "warmup_steps": 0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "unpaired.jsonl"
    write_jsonl_atomic(path, ({"prompt": f"Say {word}.", "completion": word * (1 + i % 3), "label": i % 2 == 0}
                              for i, word in enumerate(("sea", "sky", "sun", "sand", "salt", "sail", "star", "stone"))))
    return str(path)


@pytest.fixture
def dpo(do_verb, model, tmp_path):
    def train(name="out", **options):
        stage = do_verb("dpo", tmp_path / name, model_name_or_path=str(model), **{**TRAIN, **options})
        log = json.loads((stage.folder / "model" / "trainer_state.json").read_text())["log_history"]
        return stage, [row for row in log if "loss" in row]

    return train


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "more", "first"), [
    ("kto", {"desirable_weight": 1.5}, (0.5 * 1.5 + 0.5) / 2), ("bco", {}, math.log(2)),
    ("apo_zero_unpaired", {}, 0.5)])
def test_rows_of_a_completion_and_a_label(loss, more, first, dpo, rows):
    stage, log = dpo(dataset_name=rows, loss_type=loss, train_batch_size=8, eval_dataset_name=f"{rows}[:4]", **more)
    assert log[0]["loss"] == pytest.approx(first, abs=1e-5)  # the policy is the reference
    assert log[1]["loss"] < log[0]["loss"]
    assert log[1]["rewards/chosen"] > log[1]["rewards/rejected"]
    assert ("kl" in log[1]) == (loss == "kto")
    assert stage.report["funnel"]["kept"] == 8
    assert stage.report["groups"] == 8
    assert stage.report["eval"]["eval_loss"] < first


@pytest.mark.slow
def test_pairs_are_split_on_request(dpo, world):
    stage, log = dpo(dataset_name=f"{world / 'preference.jsonl'}[:8]", loss_type="kto", split_pairs=True)
    assert stage.report["groups"] == 8
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert log[1]["loss"] < 0.5


def test_a_batch_that_must_be_cut_is_refused(dpo, rows):
    with pytest.raises(ValueError, match="the loss looks across a whole batch, and this batch needs"):
        dpo(dataset_name=rows, loss_type="kto", train_batch_size=8, micro_rows=1, row_length=64)


def test_one_prompt_alone_is_refused(dpo, tmp_path):
    write_jsonl_atomic(tmp_path / "one.jsonl", ({"prompt": "p", "completion": c, "label": True} for c in "abc"))
    with pytest.raises(ValueError, match="all rows have the same prompt"):
        dpo(dataset_name=str(tmp_path / "one.jsonl"), loss_type="kto")


def test_pairs_of_a_file_or_a_round_become_labelled_responses_with_answers_to_other_prompts(make_groups):
    groups = make_groups(4, k=(2, 2))
    options = PreferenceOptions(PreferenceLoss("kto"), split_pairs=True)
    found = as_read(options, groups)
    assert [sorted(name for r in group.responses for name in r.scores) for group in found] == [
        ["label", "label", "mismatched", "mismatched"]] * 4
    assert options.responses == 4
    assert as_read(PreferenceOptions(), groups) == groups
    assert not as_read(options, [])
