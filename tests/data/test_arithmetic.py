"""The arithmetic corner: every label is the truth about its step, no problem stands in two sets, the judge knows."""

import random
import re

import pytest

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.arithmetic import (
    BYTES,
    SLIPS,
    answer_judge,
    arithmetic_rows,
    problem_of,
    question,
    solve,
    values,
    written_twice,
)
from rlhf_jax.data.chat import Renderer, load_tokenizer
from rlhf_jax.data.rows import parse_row
from rlhf_jax.data.world import write_world
from rlhf_jax.scoring.process import sign_ids

SMALL = WorldConfig(subject="arithmetic", sft_rows=60, preference_rows=200, prompt_rows=20, eval_prompts=10)


@pytest.fixture(scope="module")
def rows():
    return arithmetic_rows(SMALL)


def test_a_problem_by_hand():
    problem = (26, 8, -5, 6)
    assert question(problem) == "What is 26 + 8 - 5 + 6?"
    assert problem_of(question(problem)) == problem
    assert values(problem) == [34, 29, 35]
    steps, right = solve(random.Random(0), problem, 0.0)
    assert steps == ["26 + 8 = 34", "34 - 5 = 29", "29 + 6 = 35\n#### 35"]
    assert right == [True, True, True]
    asked = [[{"role": "user", "content": question(problem)}]] * 3
    assert answer_judge(asked, ["\n\n".join(steps), "#### 34", "no answer"]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("value", "written"), [(34, 344), (7, 77), (0, 0), (-12, -122)])
def test_a_last_digit_written_twice(value, written):
    assert written_twice(value) == written


def test_half_of_the_slips_are_of_the_pen_and_half_sums_off_by_a_little():
    rng, off = random.Random(0), []
    for _ in range(2000):
        steps, right = solve(rng, (26, 8, 5), 1.0)
        assert not any(right[:1])
        off.append(int(steps[0].split("= ")[1]) - 34)
    assert set(off) == {344 - 34, *SLIPS}
    assert 0.47 < off.count(344 - 34) / len(off) < 0.53


def test_every_label_is_the_truth_of_its_step(rows):
    """By an independent reading: the value a step ends with against the sum of what the problem says so far."""
    for row in rows["steps"]:
        text = row["prompt"][0]["content"].removeprefix("What is ").rstrip("?")
        parts = re.findall(r"[+-]? ?\d+", text)
        truths = [eval("".join(parts[:n])) for n in range(2, len(parts) + 1)]
        said = [int(step.split("\n")[0].split("= ")[1]) for step in row["steps"]]
        assert row["labels"] == ["+" if a == b else "-" for a, b in zip(said, truths, strict=True)]
        assert row["label"] == (said[-1] == truths[-1])
        assert row["answer"] == str(truths[-1])
    assert 0.35 < sum(row["label"] for row in rows["steps"]) / len(rows["steps"]) < 0.7


def test_sets_are_disjoint_seeded_and_of_our_layouts(rows):
    prompts = {name: {row["prompt"][0]["content"] for row in some} for name, some in rows.items()}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == sum(map(len, rows.values()))
    assert arithmetic_rows(SMALL) == rows
    kinds = {"sft": "sft", "steps": "steps", "steps_eval": "steps", "preference_eval": "preference",
             "prompts": "prompt", "eval_prompts": "prompt"}
    for name, kind in kinds.items():
        for row in rows[name]:
            assert parse_row(row, kind).extra["answer"] == row["answer"]
    for row in rows["preference_eval"]:
        assert answer_judge([row["prompt"]] * 2, [row["chosen"], row["rejected"]]) == [1.0, 0.0]


def test_its_tokenizer_reads_digits_and_signs_one_by_one(tmp_path):
    write_world(tmp_path, SMALL)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    assert len(tokenizer) == BYTES
    assert len(tokenizer("26 + 8", add_special_tokens=False)["input_ids"]) == 6
    sign_ids(Renderer(tokenizer))
    with pytest.raises(ValueError, match=r"label_noise = 0\.5 has no effect with subject = 'arithmetic'"):
        WorldConfig(subject="arithmetic", label_noise=0.5)
