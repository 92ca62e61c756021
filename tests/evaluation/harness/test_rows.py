"""A user's files in each layout that is read, and what is said of missing and other ones."""

import json

import pytest

from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.evaluation.harness.rows import DATA, find_files, splits


def written(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_answers_of_mmlu_become_places_and_each_subject_its_own_rows(tmp_path):
    rows = [{"subject": subject, "question": "q", "choices": ["a", "b", "c", "d"], "answer": answer}
            for subject, answer in (("anatomy", "C"), ("anatomy", 1), ("virology", "A"))]
    written(tmp_path, "mmlu/dev.jsonl", rows)
    written(tmp_path, "mmlu/test.jsonl", rows)
    found = splits(benchmark="mmlu", data_dir=tmp_path, part="anatomy", version=1.0)
    assert set(found) == {"dev", "test"}
    assert found["test"]["answer"] == [2, 1]
    with pytest.raises(SourceError, match="holds no row of mmlu's 'law'"):
        splits(benchmark="mmlu", data_dir=tmp_path, part="law")


@pytest.mark.parametrize("row", [{"choices": {"A": "red", "B": "blue"}, "answer": "B"},
                                 {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"}])
def test_choices_of_arc_are_read_as_pairs_and_as_the_hub_has_them(row, tmp_path):
    written(tmp_path, "arc-challenge/test.jsonl", [{"question": "q", **row}])
    assert splits(benchmark="arc_challenge", data_dir=tmp_path)["test"][0] == {
        "question": "q", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "answerKey": "B"}


def test_right_answers_of_truthfulqa_come_first_as_its_task_wants_them(tmp_path):
    targets = {"no": 0, "yes": 1, "never": 0}
    written(tmp_path, "truthfulqa/mc_task.jsonl", [{"question": "q", "mc1_targets": targets, "mc2_targets": {
        "choices": ["a", "b"], "labels": [0, 1]}}])
    row = splits(benchmark="truthfulqa", data_dir=tmp_path)["validation"][0]
    assert row["mc1_targets"] == {"choices": ["yes", "no", "never"], "labels": [1, 0, 0]}
    assert row["mc2_targets"] == {"choices": ["b", "a"], "labels": [1, 0]}


def test_mbpp_is_its_500_tests(tmp_path):
    rows = [{"task_id": i, "text": "t", "code": "c", "test_list": ["a"]} for i in (2, 10, 11, 510, 511)]
    written(tmp_path, "mbpp/mbpp.jsonl", rows)
    assert splits(benchmark="mbpp", data_dir=tmp_path, part="test")["test"]["task_id"] == [11, 510]


def test_types_of_math_are_the_hubs_parts(tmp_path):
    written(tmp_path, "math/test.jsonl", [{"problem": "p", "solution": "s", "type": "Counting & Probability"}])
    assert len(splits(benchmark="math", data_dir=tmp_path, part="counting_and_probability")["test"]) == 1


def test_a_file_that_is_missing_or_holds_other_rows_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"holds no gsm8k/train \(.jsonl, .*\), the train rows of gsm8k; put them"):
        find_files("gsm8k", tmp_path)
    written(tmp_path, "truthfulqa/mc_task.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(SourceError, match="row 1 is no row of truthfulqa: KeyError: 'mc1_targets'; its columns are qu"):
        splits(benchmark="truthfulqa", data_dir=tmp_path)
    (tmp_path / "truthfulqa/mc_task.jsonl").write_text("{")
    with pytest.raises(SourceError, match="row 1: the line is not whole JSON"):
        splits(benchmark="truthfulqa", data_dir=tmp_path)


@pytest.mark.parametrize(("benchmark", "rows"), [
    ("gsm8k", {"test": 1319, "train": 7473}), ("mmlu", {"dev": 285, "test": 14042, "validation": 1531}),
    ("arc_challenge", {"test": 1226}), ("truthfulqa", {"validation": 817}), ("humaneval", {"test": 164})])
def test_real_files_are_read_whole(benchmark, rows, shared):
    found = splits(benchmark=benchmark, data_dir=shared / "eval")
    assert {split: len(some) for split, some in found.items()} == rows
    assert set(rows) <= set(DATA[benchmark].files)
