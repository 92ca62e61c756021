"""Prompts that benchmarks ask too."""

import json

import pytest

from rlhf_jax.data.decontaminate import benchmark_index, contaminated, contamination, word_runs
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.prompt_text import asked, user_turns
from rlhf_jax.data.rows import parse_row

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def chat(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def index_of(tmp_path, *rows):
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmark_index([str(path)])


def test_runs_of_thirteen_words():
    assert list(word_runs([LONG])) == [LONG.rsplit(" ", 1)[0], LONG.split(" ", 1)[1]]
    assert list(word_runs(["Tell me, please."])) == ["tell me please"]
    assert list(word_runs([LONG, "And shorter?"])) == list(word_runs([LONG]))  # a later turn is no question of its own
    assert list(word_runs([" ", LONG])) == list(word_runs([LONG]))


def test_the_benchmarks_row_is_kept(tmp_path):
    index = index_of(tmp_path, {"instruction": "Name a bird."}, {"turns": ["Hi", "now " + LONG]},
                     {"question": [{"role": "user", "content": "What is it?"}], "answer": "x"})
    shared, question = contamination(["So: " + LONG.upper() + "!"], index)
    assert (shared, question.row_number, question.text) == (LONG.rsplit(" ", 1)[0], 2, "Hi")
    assert contamination(["name a  bird"], index)[1].row_number == 1
    assert contamination(["what is it"], index)[1].row_number == 3
    assert contamination(["Name a bird that sings."], index) is None
    assert contamination(["Hello", "name a bird"], index) is None


def test_a_benchmark_that_is_missing_or_asks_nothing(tmp_path):
    with pytest.raises(SourceError, match="there is no file"):
        benchmark_index([str(tmp_path / "none.jsonl")])
    with pytest.raises(SourceError, match="row 1 holds no question of a benchmark: it has the columns answer"):
        index_of(tmp_path, {"answer": "x"})


def test_prompts_that_a_benchmark_asks_are_counted_and_said(tmp_path):
    index = index_of(tmp_path, {"instruction": LONG})
    prompts = ["something else", [{"role": "user", "content": f"Now: {LONG}"}], LONG]
    found = contaminated(prompts, index)
    assert (found.prompts, found.found) == (3, 2)
    assert found.warning.startswith("warning: 2 of 3 prompts are asked by a benchmark too")
    assert "row 1" in found.warning
    assert contaminated(prompts[:1], index) == (1, 0, None)
    assert contaminated(prompts[:1], index).warning == ""


@pytest.mark.parametrize(("row", "turns"), [
    ({"messages": chat("a", "b", "c", "d")}, ["a", "c"]),
    ({"prompt": "a", "completion": chat("", "b", "c", "d")[1:]}, ["a", "c"]),
    ({"prompt": "a", "completion": "a"}, ["a"]),
    ({"text": "once upon a time"}, ["once upon a time"]),
])
def test_what_is_asked_stands_in_prompts_responses_and_texts(row, turns):
    assert user_turns(asked(parse_row(row, "sft"))) == turns


@pytest.fixture(scope="module")
def published(shared):
    return benchmark_index([str(shared / "eval" / name) for name in (
        "alpaca-eval/instructions.jsonl.gz", "mt-bench/question.jsonl", "arena-hard/v0.1_question.jsonl.gz",
        "gsm8k/test.jsonl.gz")])


@pytest.mark.longer
@pytest.mark.parametrize(("source", "converter", "count", "found"), [
    ("preference/alpacaeval-graded/train.jsonl.gz", "alpacaeval_graded", 573, 573),
    ("sft/gpteacher/codegen.jsonl.gz", "alpaca", 4535, 2),
])
def test_counts_in_the_shared_files(shared, published, source, converter, count, found):
    kind = "graded" if "graded" in source else "sft"
    examples, _ = load_examples(str(shared / source), kind, converter=converter)
    assert (len(examples), sum(contamination(user_turns(e.prompt), published) is not None for e in examples)) == (
        count, found)
