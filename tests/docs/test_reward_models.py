"""docs/results/reward-models.md is what the command makes of what was measured; its measures by hand."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.data.rows import parse_row

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "reward_models"))
try:
    import measures
    import page
    import settings
finally:
    sys.path.pop(0)


def group(prompt, *answers):
    """An answer is its text and its numbers."""
    nothing = np.zeros(0, np.int32)
    return PromptGroup(prompt, nothing, tuple(
        Response(nothing, np.zeros(0, bool), text=text, scores=scores) for text, scores in answers), prompt=prompt)


GROUPS = [
    group("p", ("a", {"truth": 3.0, "x": 1.0, "y": 0.0}), ("bb", {"truth": 2.0, "x": 2.0, "y": 0.0}),
          ("ccc", {"truth": 1.0, "x": 3.0, "y": 2.0})),
    group("q", ("aa", {"truth": 1.0, "x": 5.0, "y": 5.0}), ("b", {"truth": 0.0, "x": 4.0})),
    group("p", ("aa", {"truth": 1.0, "x": 5.0}), ("b", {"truth": 1.0, "x": 4.0})),  # equal: no pair
    group("r", ("aa", {"x": 5.0}), ("b", {"truth": 1.0, "x": 4.0})),  # nobody says which is better
]


def test_the_page_is_written_by_the_command():
    found = {file.stem: json.loads(file.read_text())
             for file in sorted((ROOT / "benchmarks/results/reward-models").glob("*.json"))}
    assert (ROOT / "docs/results/reward-models.md").read_text() == page.page(found)


def test_accuracy_counts_pairs_that_differ_in_truth_and_have_scores():
    estimate, pairs = measures.accuracy(GROUPS, "truth", "x")
    assert (estimate.value, pairs, estimate.count) == (0.25, 4, 2)  # of prompts p and q
    estimate, pairs = measures.accuracy(GROUPS, "truth", "y")
    assert (estimate.value, pairs) == (pytest.approx(0.5 / 3), 3)  # a tie is half right
    assert measures.accuracy(GROUPS, "nothing", "x") is None


def test_a_difference_is_taken_over_the_pairs_of_both():
    assert measures.difference(GROUPS, "truth", "y", "x").value == pytest.approx((0.5 + 0 + 0) / 3 - 0)
    assert measures.difference(GROUPS, "truth", "x", "y").value == pytest.approx(-0.5 / 3)


def test_scores_of_several_scorers_stand_together():
    sides = [[group("p", ("a", {"truth": 1.0, name: value}))] for name, value in (("x", 1.0), ("y", 2.0))]
    assert measures.merged(sides)[0].responses[0].scores == {"truth": 1.0, "x": 1.0, "y": 2.0}


def test_length_is_followed_within_prompts_of_three_answers():
    assert measures.follows_length(GROUPS, "x").value == pytest.approx(1.0)
    assert measures.follows_length(GROUPS[1:], "x") is None


def test_a_regressed_rating_is_held_against_a_constant():
    found = measures.regressed(GROUPS, "truth", "x")
    truth, said = np.array([3, 2, 1, 1, 0, 1, 1, 1.0]), np.array([1, 2, 3, 5, 4, 5, 4, 4.0])
    assert found.answers == 8
    assert found.error == pytest.approx(np.sqrt(np.mean((said - truth) ** 2)))
    assert found.of_constant == pytest.approx(truth.std())
    assert found.r2.value == pytest.approx(1 - found.error**2 / truth.var())
    assert found.rank < 0


def test_graded_sets_become_objectives_with_holes(tmp_path):
    cells = [{"text": f"answer {i}", "score": float(i), "model": "m"} for i in (1, 2, 3)]
    rows = {"alpacaeval-graded": {"index": 0, "dataset": "d", "prompt": "p", "baseline": "b",
                                  "responses": [{**cell, "score": cell["score"] / 4} for cell in cells]},
            "bon-tulu2-dpo-13b": {"prompt": "p", "baseline": {}, "samples": [
                {"k": 0, "text": "s", "score": 0.5}, {"k": 1, "text": "t", "score": 1.0},
                {"k": 2, "text": "u", "score": None}]},
            "arena-bench-graded": {"question_id": 1, "prompt": "q", "reference": "r", "responses": [
                {"text": "a", "score": 1.0}, {"text": "x" * 200, "score": 3.0}, {"text": "b", "score": 10.0}]},
            "webgpt": {"prompt": "w", "responses": [{"text": "a", "score": 0.0}, {"text": "b", "score": 2.0}]}}
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        for part in ("train", "valid"):
            with gzip.open(tmp_path / name / f"{part}.jsonl.gz", "wt") as lines:
                lines.write(json.dumps(row) + "\n")
    setting = settings.graded(tmp_path / "runs", tmp_path, Path("backbone"), prompts=5, answers=2, characters=100)
    found = {row["id"].split("-")[0]: row["responses"] for row in read_jsonl(setting.rated)}
    assert set(found) == set(settings.SOURCES)
    assert all(len(answers) == 2 for answers in found.values())
    assert {answer["text"]: answer["scores"]["arena"] for answer in found["arena"]} == {"a": 0.05, "b": 0.95}
    assert sorted(answer["scores"]["webgpt"] for answer in found["webgpt"]) == pytest.approx([1 / 6, 5 / 6])
    for name, answers in found.items():
        assert all(set(answer["scores"]) == {name, "verbosity"} for answer in answers)
        assert all(answer["scores"]["verbosity"] == len(answer["text"]) / 100 for answer in answers)
    for row in read_jsonl(setting.held_out):
        assert len(parse_row(row, "preference").pairs) == 1
    with pytest.raises(ValueError, match="has 2 short answers, and 50 are to be timed"):
        settings.graded_answers("alpacaeval", tmp_path, 50, 2)
