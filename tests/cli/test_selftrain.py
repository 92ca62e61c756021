"""`rlhf-jax selftrain` on the command line: what it shows, what it leaves, and that it goes on where it stopped."""

import json

import pytest

TRAIN = ["--train_batch_size", "4", "--row_length", "384", "--max_steps", "2", "--max_length", "380",
         "--learning_rate", "1e-3"]


@pytest.mark.longer
def test_a_run_leaves_rounds_a_model_and_a_page(world, rlhf_jax, tmp_path):
    rows = world / "preference_eval.jsonl"

    def given(folder, unlabelled=f"{rows}[4:8]"):
        return ["selftrain", "--model_name_or_path", world / "long", "--dataset_name", f"{rows}[:4]", "--rounds", "1",
                "--unlabelled_dataset_name", unlabelled, *TRAIN, "--output_dir", tmp_path / folder]

    command = given("s")
    status, out, err = rlhf_jax(*command, "--dry-run")
    assert status == 0, err
    assert "[RESPONSE A]" in out
    assert not (tmp_path / "s" / "rounds.json").exists()
    status, out, err = rlhf_jax(*command)
    assert status == 0, err
    rounds = json.loads((tmp_path / "s/rounds.json").read_text())
    assert [found["round"] for found in rounds] == [0, 1]
    assert rounds[1]["compared"] == 4
    assert (tmp_path / "s/model/config.json").is_file()
    assert "round-1/label" in (tmp_path / "s/report.html").read_text()
    status, out, err = rlhf_jax(*command)
    assert status == 0, err
    assert "already done" in out
    status, _, err = rlhf_jax(*given("t", tmp_path / "none.jsonl"))
    assert status != 0
    assert "none.jsonl" in err
