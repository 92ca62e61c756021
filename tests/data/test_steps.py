"""Rows of steps: what they may hold, and every fault by its name."""

import pytest

from rlhf_jax.data.rows import BadRow, parse_row
from rlhf_jax.data.steps import split_steps

ROW = {"prompt": "Q", "steps": ["a", " b "], "labels": ["+", "-"], "answer": "3"}


def test_a_row_of_steps_keeps_them_as_they_were_checked():
    example = parse_row(ROW, "steps")
    assert example.responses == ("a\n\nb",)
    assert example.extra == {"steps": ["a", "b"], "labels": [1.0, 0.0], "answer": "3"}
    assert parse_row({**ROW, "labels": [True, 0.25]}, "steps").extra["labels"] == [1.0, 0.25]


def test_the_outcome_is_the_label_or_that_of_the_last_step():
    assert parse_row(ROW, "unpaired").scores == ({"label": 0.0},)
    assert parse_row({**ROW, "label": True}, "unpaired").scores == ({"label": 1.0},)
    assert parse_row({**ROW, "completion": "c", "label": True}, "unpaired").responses == ("c",)


def test_scorers_read_steps_with_and_without_labels():
    bare = {"prompt": "Q", "steps": ["a", "b"]}
    assert parse_row(bare, "answered").extra == {"steps": ["a", "b"]}
    assert parse_row(ROW, "answered").scores == ()
    assert parse_row({**ROW, "label": 1}, "answered").scores == ({"label": 1.0},)


@pytest.mark.parametrize(("changes", "kind", "reason"), [
    ({"steps": []}, "steps", "no_steps"), ({"steps": "a"}, "steps", "no_steps"),
    ({"steps": None}, "steps", "missing_column"),
    ({"steps": ["a", 3]}, "steps", "not_text_steps"), ({"steps": ["a", " "]}, "steps", "empty_step"),
    ({"labels": ["+"]}, "steps", "unequal_lists"), ({"labels": "+-"}, "steps", "unequal_lists"),
    ({"labels": None}, "steps", "missing_column"), ({"labels": ["+", "good"]}, "steps", "bad_step_label"),
    ({"labels": ["+", 1.5]}, "steps", "bad_step_label"), ({"labels": ["+", float("nan")]}, "steps", "bad_step_label"),
    ({"labels": None}, "unpaired", "missing_column"), ({"labels": ["+", 0.5]}, "unpaired", "bad_label"),
    ({"prompt_ids": [1], "responses": []}, "steps", "bad_group"),
])
def test_a_fault_is_named(changes, kind, reason):
    with pytest.raises(BadRow) as error:
        parse_row({**ROW, **changes}, kind)
    assert error.value.reason == reason


def test_sampled_rows_hold_no_labelled_steps():
    row = {"prompt_id": "p", "prompt": "Q", "prompt_ids": [1], "responses": [{"ids": [2], "text": "a"}]}
    with pytest.raises(BadRow, match="`rlhf-jax steps` writes rows of labelled steps"):
        parse_row(row, "steps")


def test_a_text_is_cut_at_the_separator_alone():
    assert split_steps("Step 1: a\n\n\nStep 10: b\n\n", "\n\n") == ["Step 1: a", "Step 10: b"]
    assert split_steps("a ки\nb ки\n", "ки") == ["a", "b"]
    assert split_steps(" \n\n ", "\n\n") == []
