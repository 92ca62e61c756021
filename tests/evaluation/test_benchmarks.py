"""Benchmarks of reward models: their authors' own rules and rows, intervals that cluster, what is refused."""

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.data.funnel import Funnel, TooManyBadRows
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.rows import ParseOptions
from rlhf_jax.evaluation.benchmarks import BENCHMARKS, JudgedRow, measured_rows, rewardbench, rewardbench2, rm_bench
from rlhf_jax.evaluation.benchmarks.base import incomplete, mean_of, over_units
from rlhf_jax.evaluation.statistics import Coverage
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.benchmarking import check_subsets, find_benchmark, incomplete_sentences, missing_sentences
from rlhf_jax.workflow.stages.evaluate import evaluate_scorer, rows_of


def test_one_right_answer_of_four(judged):
    assert [rewardbench2.best_of(judged("Math", *gaps), "half") for gaps in (
        (1.0, 2.0, 3.0), (0.0, 2.0, 3.0), (0.0, 0.0, 0.0), (0.0, -1.0, 3.0))] == [1.0, 0.5, 0.25, 0.0]
    assert rewardbench2.best_of(judged("Math", 0.0, 2.0, 3.0), "strict") == 0.0
    assert rewardbench2.best_of(judged("Math", 0.0, None, 3.0), "half") is None


def ties_by_its_authors(right, wrong):
    """The rule of rewardbench/utils.py over (ref, tied) scores of each prompt, in numpy."""
    gap = {k: np.array([min(r) - max(w) for r, w in zip(right[k], wrong[k], strict=True)]) for k in right}
    spread = np.array([max(r) - min(r) for r in right["tied"]])
    both = np.minimum(gap["ref"], gap["tied"])
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(both / spread - 1), nan=0.0)
    return (0.3 * (gap["tied"] > 0).mean() + 0.3 * (gap["ref"] > 0).mean() + 0.2 * (gap["tied"] > spread).mean()
            + 0.2 * (both > spread).mean() + 0.01 * closeness.mean())


def test_ties_are_scored_as_their_authors_do(judged):
    rng = np.random.default_rng(0)
    right = {"ref": rng.normal(1.5, 1, (40, 1)).tolist(), "tied": rng.normal(1.5, 0.6, (40, 3)).tolist()}
    wrong = {kind: rng.normal(0, 1, (40, 4)).tolist() for kind in right}
    right["tied"][0], wrong["tied"][0], right["ref"][0] = [1.0] * 3, [1.0, 0.0, 0.0, 0.0], [5.0]
    right["tied"][1], wrong["tied"][1] = [1.0] * 3, [0.5, 0.0, 0.0, 0.0]
    rows = []
    for kind in right:
        for number in range(40):
            good, bad = right[kind][number], wrong[kind][number]
            pairs = tuple((i, len(good) + j) for i in range(len(good)) for j in range(4))
            gaps = [good[i] - bad[j - len(good)] for i, j in pairs]
            rows.append(judged("Ties", *gaps, pairs=pairs, name=f"{kind}:{number}", prompt=f"{kind}{number}",
                               scores=dict(enumerate(good + bad))))
    found = measured_rows(BENCHMARKS["rewardbench2"], rows, resamples=50)["Ties"]
    assert found.value == pytest.approx(ties_by_its_authors(right, wrong), abs=1e-12)
    assert found.count == 40
    six = rows + [judged(name, 1.0, 1.0, 1.0, prompt=f"{name}{i}", name=f"{name}{i}")
                  for name in rewardbench2.BEST_OF_FOUR for i in range(20)]
    total = measured_rows(BENCHMARKS["rewardbench2"], six, resamples=50)["score"]
    assert total.value == pytest.approx((5 + found.value) / 6)
    assert total.low < total.value < total.high


def test_a_scorer_that_compares_has_no_ties(judged):
    rows = [judged(name, 0.1, 0.1, 0.1) for name in rewardbench2.BEST_OF_FOUR] + [judged("Ties", 0.1, name="tied:1")]
    found = measured_rows(BENCHMARKS["rewardbench2"], rows)
    assert "Ties" not in found
    assert "score" not in found
    assert missing_sentences("rewardbench2", rows) == [
        "rewardbench2 has no Ties, nor a number that Ties is part of: it is read off scores, and this scorer compares"]


def matrix_row(chosen, rejected, subset="chat", name="r"):
    scores = dict(enumerate([*chosen, *rejected]))
    pairs = tuple((i, 3 + j) for i in range(3) for j in range(3))
    return JudgedRow(name, name, subset, pairs, tuple(scores[i] - scores[j] for i, j in pairs), scores)


def test_rm_bench_is_its_authors_matrix():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (50, 2, 3)).astype(float)
    rows = [matrix_row(*pair, subset="chat" if i % 2 else "math", name=f"r{i}") for i, pair in enumerate(scores)]
    won = (scores[:, 0, :, None] > scores[:, 1, None, :]).mean(axis=0)
    found = measured_rows(BENCHMARKS["rm_bench"], rows, resamples=50)
    assert found["hard"].value == pytest.approx(np.triu(won, 1).sum() / 3)
    assert found["normal"].value == pytest.approx(np.diag(won).mean())
    assert found["easy"].value == pytest.approx(np.tril(won, -1).sum() / 3)
    assert {"Chat", "Math", "chat/hard"} < found.keys()
    assert "leaderboard/overall" not in found
    every = [matrix_row(*pair, subset=subset, name=f"{subset}{i}") for i, pair in enumerate(scores)
             for subset in ("chat", "math", "code", "safety-refuse", "safety-response")]
    found = measured_rows(BENCHMARKS["rm_bench"], every, resamples=50)
    domains = np.mean([found[name].value for name in rm_bench.DOMAINS])
    levels = np.mean([found[f"leaderboard/{name}"].value for name in rm_bench.LEVELS])
    assert found["leaderboard/overall"].value == pytest.approx(domains) == pytest.approx(levels)
    (official,) = rm_bench.official(rows[:1], "strict", "m").values()
    assert official == [{"id": "r0", "domain": "math", "score_chosen": scores[0, 0].tolist(),
                         "score_rejected": scores[0, 1].tolist()}]


def test_rows_of_which_a_pair_failed_count_where_pairs_do_and_not_in_a_matrix():
    whole = matrix_row((1, 1, 1), (0, 0, 0))
    row = JudgedRow("r", "r", "chat", whole.pairs, (None, *whole.gaps[1:]))
    assert measured_rows(BENCHMARKS["rm_bench"], [row]) == {}
    assert missing_sentences("rm_bench", [row])[0].endswith("no row of chat was judged")
    assert measured_rows(BENCHMARKS["preference"], [row])["subset/chat"].value == 1.0
    assert measured_rows(BENCHMARKS["preference"], [JudgedRow("r", "r", "chat", ((0, 1),), (None,))]) == {}


def failed(row):
    """The same row with its first pair failed."""
    return dataclasses.replace(row, gaps=(None, *row.gaps[1:]), scores={})


def test_numbers_with_rows_that_were_not_judged_say_of_how_many_they_are():
    rows = [matrix_row((1, 1, 1), (0, 0, 0), name=f"r{i}") for i in range(5)]
    rows += [matrix_row((1, 1, 1), (0, 0, 0), subset="math", name=f"m{i}") for i in range(2)]
    assert incomplete(BENCHMARKS["rm_bench"], rows) == {}
    found = incomplete(BENCHMARKS["rm_bench"], [rows[0], *map(failed, rows[1:5]), *rows[5:]])
    assert found == {**dict.fromkeys(("hard", "normal", "easy"), Coverage(3, 7)),
                     **dict.fromkeys(("Chat", "chat/hard", "chat/normal", "chat/easy"), Coverage(1, 5))}


def test_a_number_over_ties_that_fell_says_so_and_so_does_the_score(judged):
    scores = dict(enumerate((1.0, 0.0)))
    ties = [judged("Ties", 1.0, name=name, prompt=name, scores=scores) for name in ("ref:1", "tied:1", "tied:2")]
    others = [judged(name, 1.0, 1.0, 1.0, name=name, prompt=name) for name in rewardbench2.BEST_OF_FOUR]
    found = incomplete(BENCHMARKS["rewardbench2"], [*others, *ties[:2], failed(ties[2])])
    assert found == {"Ties": Coverage(2, 3), "score": Coverage(7, 8)}


def test_a_scorer_that_compares_has_its_fallen_rows_counted_too(judged):
    rows = [judged("Chat", 0.1), judged("Chat", None), judged("Chat", 0.2, None, name="in part")]
    assert incomplete(BENCHMARKS["preference"], rows) == {"subset/Chat": Coverage(1, 3)}


def test_equal_texts_of_a_matrix_tie():
    row = matrix_row((1, 1, 1), (0, 0, 0))
    cut = JudgedRow("r", "r", "chat", row.pairs[1:], row.gaps[1:], row.scores)
    assert rm_bench.matrix(cut, "strict")[0, 0] == 0.0
    assert rm_bench.matrix(cut, "half")[0, 0] == 0.5


@pytest.mark.longer
def test_intervals_over_prompts_cover_the_truth_and_those_over_rows_do_not():
    rng = np.random.default_rng(0)
    covered = {"prompts": 0, "rows": 0}
    for _ in range(200):
        values = (rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, 4))).ravel()  # the truth is 0
        for name, units in (("prompts", [str(i // 4) for i in range(120)]), ("rows", [str(i) for i in range(120)])):
            found = over_units(mean_of(values.tolist()), units, 0, 0.95, 200)
            covered[name] += found.low <= 0 <= found.high
    assert 182 <= covered["prompts"] <= 198  # 190 expected, binomial standard error 3
    assert covered["rows"] < 150


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


TWINS = {
    "auto_j": [{"scenario": "s", "label": 0, "prompt": "a", "response 1": "long", "response 2": "no"},
               {"scenario": "s", "label": 1, "prompt": "b", "response 1": "long", "response 2": "no"},
               {"scenario": "s", "label": 2, "prompt": "c", "response 1": "long", "response 2": "no"}],
    "hhh": [{"subset": "honest", "input": "a", "target_scores": {"no": 0, "long": 1}},
            {"subset": "honest", "input": "a\n\nAssistant: b\n\nHuman: c", "target_scores": {"no": 1, "long": 0}}],
    "judgebench": [{"pair_id": "1", "source": "mmlu-pro-law", "question": "a", "response_A": "long", "response_B": "no",
                    "label": "A>B"},
                   {"pair_id": "2", "source": "mmlu-pro-law", "question": "b", "response_A": "long", "response_B": "no",
                    "label": "B>A"}],
    "llmbar": [{"subset": "LLMBar/Natural", "input": "a", "output_1": "long", "output_2": "no", "label": 1},
               {"subset": "LLMBar/Natural", "input": "b", "output_1": "long", "output_2": "no", "label": 2}],
    "pandalm": [{"instruction": "a", "input": "", "response1": "True", "response2": True, "annotators": [1, 1, 0]},
                {"instruction": "b", "input": "c", "response1": "long", "response2": "", "annotators": [1, 1, 1]},
                {"instruction": "b", "input": "c", "response1": "long", "response2": "", "annotator1": 2,
                 "annotator2": 2, "annotator3": 0},
                {"instruction": "b", "input": "c", "response1": "a", "response2": "b", "annotators": [0, 1, 2]}],
    "rewardbench": [{"id": i, "prompt": f"q{i}", "chosen": "long" if i % 2 else "no", "rejected": "no!", "subset": name}
                    for name in rewardbench.SECTIONS["Chat"] for i in range(2)],
    "rewardbench2": [{"id": str(i), "prompt": f"q{i}", "chosen": ["long" if i else "no"],
                      "rejected": ["a", "ab", "abc"], "subset": "Math"} for i in range(2)],
    "rm_bench": [{"id": i, "prompt": f"q{i}", "chosen": ["a", "ab", "abc"], "rejected": ["b", "ba", "bac"],
                  "domain": "chat"} for i in range(2)],
}
EXPECTED = {"auto_j": ("all", 0.5), "hhh": ("honest", 0.5), "judgebench": ("Knowledge", 0.5),
            "llmbar": ("subset/LLMBar/Natural", 0.5), "pandalm": ("all", 0.5), "rewardbench": ("Chat", 0.5),
            "rewardbench2": ("Math", 0.5), "rm_bench": ("easy", 1.0)}


def read(name, path):
    return load_examples(str(path), "preference", converter=BENCHMARKS[name].converter, max_bad_rows=0.0,
                         options=ParseOptions(to_judge=True))


@pytest.mark.parametrize("name", TWINS)
def test_rows_as_their_authors_publish_them(name, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, TWINS[name])))
    examples, funnel = read(name, tmp_path / "rows.jsonl")
    check_subsets(name, examples)
    report, _ = evaluate_scorer(FunctionScorer(length, name="proxy"), examples, funnel, 0, name)
    number, value = EXPECTED[name]
    assert report.benchmark[number].value == value
    assert all(example.prompt[0]["role"] == "user" for example in examples)
    assert report.preference.tie_rule == BENCHMARKS[name].tie_rule


def test_turns_of_the_prior_sets_are_the_users_and_the_assistants_in_turn():
    turns = [{"role": "human", "content": text} for text in "abc"]
    row = {"id": 1, "prompt": turns, "chosen": "x", "rejected": "y", "subset": "shp"}
    assert [(m["role"], m["content"]) for m in rewardbench.row(row)["prompt"]] == [
        ("user", "a"), ("assistant", "b"), ("user", "c")]


@pytest.mark.parametrize(("name", "change"), [
    ("judgebench", {"label": "C"}), ("llmbar", {"label": 3}), ("hhh", {"target_scores": {"a": 1}}),
    ("auto_j", {"label": 5}), ("rm_bench", {"chosen": ["a"]}), ("pandalm", {"annotators": [7, 7, 7]}),
    ("rewardbench2", {"rejected": None})])
def test_rows_that_are_not_a_benchmarks_are_named(name, change, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(TWINS[name][0] | change))
    with pytest.raises(TooManyBadRows, match="cannot be used"):
        read(name, tmp_path / "rows.jsonl")


def test_rows_of_another_benchmark_are_missing_its_columns(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(TWINS["llmbar"][0]))
    with pytest.raises(TooManyBadRows, match="the converter needs the column 'source'"):
        read("judgebench", tmp_path / "rows.jsonl")


def example(**extra):
    return types.SimpleNamespace(extra=extra)


def test_subsets_that_a_benchmark_lacks_or_needs_are_named(judged):
    with pytest.raises(ValueError, match=r"'Ties' are none of rewardbench; rewardbench2 has such a subset, so set"):
        check_subsets("rewardbench", [example(subset="Ties")])
    with pytest.raises(ValueError, match=r"no part of rewardbench is complete: Chat lacks alpacaeval-length,"):
        check_subsets("rewardbench", [example(subset="alpacaeval-easy")])
    with pytest.raises(ValueError, match=r"no benchmark 'rewardbnch', did you mean rewardbench\? known ones are a"):
        find_benchmark("rewardbnch")
    check_subsets("preference", [example(subset="anything")])
    rows = [judged(subset, 1.0) for subset in rewardbench.SECTIONS["Chat"]]
    said = missing_sentences("rewardbench", rows)
    assert len(said) == 4
    assert said[2].startswith("rewardbench has no Reasoning, nor a number that Reasoning is part of: no row of math-p")
    assert set(measured_rows(BENCHMARKS["rewardbench"], rows)) == {
        "Chat", *(f"subset/{name}" for name in rewardbench.SECTIONS["Chat"])}


def test_numbers_of_few_rows_are_named_together_with_the_reasons():
    coverage = {"hard": Coverage(1, 100), "accuracy": Coverage(1, 400), "Chat": Coverage(1, 100)}
    assert incomplete_sentences("rm_bench", coverage, {"too_long": 593, "no_score": 1}) == [
        "warning: not all rows of rm_bench were judged in full, and these numbers are of what was, as is its authors' "
        "file: hard, Chat (1 of 100 rows); accuracy (1 of 400 rows). Responses or comparisons without a verdict: "
        "too_long 593, no_score 1"]
    assert "authors" not in incomplete_sentences("preference", {"accuracy": Coverage(1, 2)}, {"too_long": 1})[0]
    assert incomplete_sentences("rm_bench", {}, {}) == []


class Judge(FunctionScorer):
    """Compares two answers by their lengths."""

    def compare(self, games, progress=None):
        return [0.9 if len(first) > len(second) else 0.1 for _, first, second in games]


def test_a_scorer_that_compares_meets_every_pair(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, TWINS["rewardbench2"])))
    examples, _ = read("rewardbench2", tmp_path / "rows.jsonl")
    report, verdicts = evaluate_scorer(Judge(length, name="proxy"), examples, Funnel(read=2), 0, "rewardbench2")
    assert len(verdicts) == 6
    assert report.benchmark["Math"].value == 0.5
    assert not rows_of(verdicts)[0].scores


@pytest.mark.longer
def test_the_interval_of_the_real_rm_bench_is_over_prompts(shared):
    """As if pairs were independent, the standard error of `normal` would be 0.0112."""
    examples, funnel = read("rm_bench", shared / "preference/rm-bench/dev.jsonl.gz")
    report, _ = evaluate_scorer(FunctionScorer(length, name="proxy"), examples, funnel, 0, "rm_bench")
    normal = report.benchmark["normal"]
    assert normal.standard_error == pytest.approx(0.0154, abs=0.0006)
    assert math.sqrt(normal.value * (1 - normal.value) / (3 * 636)) == pytest.approx(0.0112, abs=1e-4)


def test_every_benchmark_has_rows_of_its_own_a_page_and_a_source():
    page = (Path(__file__).parents[2] / "docs" / "evaluating.md").read_text()
    assert TWINS.keys() | {"preference"} == BENCHMARKS.keys()
    for name, benchmark in BENCHMARKS.items():
        assert f"`{name}`" in page, name
        assert not set(benchmark.scored) - benchmark.parts.keys()
        if benchmark.row is not None:
            assert "Source: " in sys.modules[benchmark.row.__module__].__doc__
