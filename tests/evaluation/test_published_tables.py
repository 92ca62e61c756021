"""Published tables of reward-model benchmarks, from their parts."""

import numpy as np
import pytest

from rlhf_jax.evaluation.benchmarks import BENCHMARKS, measured_rows, rewardbench, rewardbench2, rm_bench

README = {
    "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052631578947368, "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058, "hep-cpp": 0.6280487804878049, "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317, "hep-js": 0.6646341463414634, "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342, "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873, "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236, "llmbar-natural": 0.52, "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714, "mt-bench-hard": 0.5405405405405406, "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97, "refusals-offensive": 1.0, "xstest-should-refuse": 1.0, "xstest-should-respond": 0.284,
}
"""Of PKU-Alignment/beaver-7b-v1.0-cost, in the README of allenai/reward-bench."""
ROWS = {name: 447 if name == "math-prm" else weight
        for weights in rewardbench.SECTIONS.values() for name, weight in weights.items()}
TABLE_1 = """89.0 96.9 76.8 92.2 97.3 74.3|85.7 98.3 65.8 89.7 94.7 74.6|83.6 99.4 65.1 87.8 86.4 74.9
81.6 98.0 65.6 81.2 86.3 71.7|81.4 96.9 57.2 88.2 88.5 71.4|79.3 96.9 58.1 87.1 77.0 75.3|78.7 98.3 57.9 86.3 74.3 75.1
77.4 96.6 55.5 82.6 89.4 48.4|76.9 97.8 50.7 86.7 73.9 74.3|76.1 97.5 60.5 83.9 74.1 52.8|75.4 97.6 58.9 69.2 78.5 70.4
74.8 92.2 60.5 82.3 73.8 55.5|74.7 95.0 64.0 73.4 78.7 50.3|74.0 81.6 68.6 85.5 72.5 49.5|73.4 91.6 62.5 74.3 75.1 53.5
73.4 95.8 58.3 78.2 73.2 49.5|73.4 91.1 61.0 66.3 83.9 55.7|75.3 93.0 47.1 83.5 77.4|72.4 85.5 49.1 78.7 76.5
72.1 93.9 55.5 65.8 81.6 55.2"""
"""Score, Chat, Chat Hard, Safety, Reasoning, Prior: table 2 of arXiv 2403.13787, ArmoRM, pairwise and FsfairX first."""
TABLE_2 = """66.5 65.7 41.9 66.1 82.2 76.6 66.3|77.2 65.7 55.3 81.1 90.9 86.7 83.4|76.7 78.5 37.2 69.9 95.8 95.4 83.2
76.5 74.1 41.9 69.9 96.4 90.3 86.2|76.5 82.7 41.9 74.9 89.5 86.2 83.7|76.1 81.3 41.9 69.9 88.4 86.5 88.3
75.8 73.7 40.3 70.5 94.2 93.2 82.6|75.4 73.3 54.4 75.0 90.3 92.1 67.2|75.3 76.7 37.5 67.2 96.9 91.7 81.8
73.9 68.8 45.0 63.9 91.8 97.6 76.5|73.1 69.9 42.5 62.8 93.3 96.2 74.1|72.8 74.3 44.4 61.7 89.6 90.7 76.4
72.5 75.6 35.0 64.5 92.2 91.3 76.3|72.3 82.9 39.7 65.2 87.3 73.4 85.4|72.2 80.8 36.9 67.8 86.9 77.8 83.1
71.7 69.7 40.6 60.1 94.2 94.1 71.7|71.2 76.1 35.9 70.5 89.1 76.0 79.4|70.7 66.5 40.6 61.2 94.7 89.1 72.3
68.7 76.4 40.0 61.7 86.4 84.8 62.8|68.7 75.2 38.8 62.8 86.0 85.5 64.0|68.2 73.3 38.8 57.9 89.8 88.9 60.6
64.9 72.0 36.2 61.2 82.7 83.2 54.1|68.2 69.9 36.2 68.3 83.1 80.8 71.1|73.3 74.7 44.4 71.6 79.8 81.4 87.6
67.7 62.7 35.0 58.5 92.2 89.3 68.2|64.9 56.8 33.1 62.3 86.2 72.9 78.2|67.8 65.3 46.9 53.4 88.1 83.1 69.7"""
"""Score and the six subsets: tables of arXiv 2506.01937."""
TABLE_3 = """70.1 69.5 60.6 54.5 95.7|70.2 69.3 62.1 53.4 96.0|69.4 67.3 62.8 55.7 91.8|82.7 73.7 91.4 75.0 90.6
77.0 79.5 68.1 67.3 93.1"""
"""Average of domains, Chat, Math, Code, Safety: README of THU-KEG/RM-Bench-Leaderboard."""


def table(text):
    return [[float(cell) for cell in row.split()] for line in text.splitlines() for row in line.split("|")]


def test_sections_of_the_readme():
    found = rewardbench.section_scores(README)
    expected = {"Chat": 0.608938547, "Chat Hard": 0.449561404, "Safety": 0.721621622, "Reasoning": 0.466756698}
    assert found == pytest.approx(expected, abs=1e-9)
    legacy = rewardbench.section_scores(README, rewardbench.LEGACY_SECTIONS)["Safety"]
    assert legacy == pytest.approx(0.814508108, abs=1e-9)


def test_every_subset_of_the_readme_is_a_whole_number_of_its_rows():
    assert README.keys() == ROWS.keys()
    assert all(abs(README[name] * count - round(README[name] * count)) < 1e-9 for name, count in ROWS.items())
    assert sum(ROWS.values()) == 2985
    weights = {name: sum(section.values()) for name, section in rewardbench.SECTIONS.items()}
    assert weights == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}


@pytest.mark.parametrize(("accuracies", "legacy", "current"), [
    ((84, 97, 97.4, 93.6, 61.8), 88.2, 87.7), ((82, 89, 85.7, 90.4, 70.6), 83.9, 84.5),
    ((93, 83, 80.5, 41.6, 90.4), 76.3, 71.2), ((76, 91, 87, 16.8, 58.1), 66.1, 57.0),
    ((18, 21, 66.2, 94.8, 37.5), 54.3, 58.0)])
def test_safety_of_2024_has_the_weights_of_2024(accuracies, legacy, current):
    found = dict(zip(rewardbench.SECTIONS["Safety"], accuracies, strict=True))
    assert rewardbench.section_scores(found, rewardbench.LEGACY_SECTIONS)["Safety"] == pytest.approx(legacy, abs=0.06)
    assert rewardbench.section_scores(found)["Safety"] == pytest.approx(current, abs=0.06)


@pytest.mark.parametrize("row", table(TABLE_1))
def test_scores_of_the_first_table(row):
    names = ("Chat", "Chat Hard", "Safety", "Reasoning", "Prior")
    assert rewardbench.score(dict(zip(names, row[1:], strict=False))) == pytest.approx(row[0], abs=0.07)


def test_three_scores_to_two_digits():
    rows = [rewardbench.score(dict(zip(("a", "b", "c", "d", "Prior"), row[1:], strict=True)))
            for row in table(TABLE_1)[:3]]
    assert rows == pytest.approx([88.97, 85.73, 83.59], abs=0.005)


@pytest.mark.parametrize("row", table(TABLE_2))
def test_scores_of_the_second_version(row):
    subsets = dict(zip((*rewardbench2.BEST_OF_FOUR, rewardbench2.TIES), row[1:], strict=True))
    assert rewardbench2.score(subsets) == pytest.approx(row[0], abs=0.06)


@pytest.mark.parametrize("row", table(TABLE_3))
def test_the_leaderboard_of_rm_bench_averages_domains(row):
    chat, math_, code, safety = row[1:]
    subsets = {"chat": chat, "math": math_, "code": code, "safety-refuse": safety - 3, "safety-response": safety + 3}
    assert rm_bench.mean_of_domains(subsets) == pytest.approx(row[0], abs=0.06)


def test_rows_of_rewardbench_come_to_the_numbers_of_the_readme(judged):
    rows = []
    for subset, count in ROWS.items():
        right = round(README[subset] * count)
        gaps = [1.0 if i < right else 0.0 if i % 2 else -1.0 for i in range(count)]
        rows += [judged(subset, gap, name=f"{subset}{i}", prompt=f"{subset}{i}") for i, gap in enumerate(gaps)]
    found = measured_rows(BENCHMARKS["rewardbench"], rows, resamples=20)
    expected = rewardbench.section_scores(README)
    for name, value in {**expected, "score4": np.mean(list(expected.values())), "Safety (legacy)": 0.814508108}.items():
        assert found[name].value == pytest.approx(value, abs=1e-9)
    assert "score_with_prior" not in found
    assert found["Chat"].count == 358
    assert 0.02 < found["Chat"].standard_error < 0.04
    half = measured_rows(BENCHMARKS["rewardbench"], rows, "half", resamples=20)
    assert half["score4"].value > found["score4"].value
    prior = [judged(name, 1.0) for name in rewardbench.PRIOR]
    with_prior = measured_rows(BENCHMARKS["rewardbench"], rows + prior, resamples=20)
    assert with_prior["score_with_prior"].value == pytest.approx((4 * found["score4"].value + 0.5) / 4.5)
    (flat,) = rewardbench.official(rows, "strict", "org/model").values()
    assert {name: flat[name] for name in README} == pytest.approx(README)
    assert (flat["model"], flat["model_type"]) == ("org/model", "Custom Classifier")
