import json

import pytest

from rlhf_jax.evaluation import POLICY_MEASURES, JudgedAnswers, PolicySummary, correlations, summarise
from rlhf_jax.evaluation.per_prompt import score_of


def test_every_number_by_hand(make_group):
    groups = [
        make_group("a", proxy=[1, 2, 3], gold=[5, 6, 1], lengths=[2, 4, 6], finish=["stop", "stop", "length"],
                   kl_k1=[0.5, -0.5, 3.0], kl_k3=[0.1, 0.2, 0.3]),
        make_group("b", proxy=[1, 0, 0], gold=[2, 2, 2], lengths=[5, 5, 5], kl_k1=[1, 1, 1], kl_k3=[1, 1, 1]),
    ]
    baseline = [make_group("a", proxy=[2], gold=[2]), make_group("b", proxy=[2], gold=[2])]
    answers = JudgedAnswers(groups, baseline, proxy="proxy", gold="gold")
    summary = summarise("online", "online", 3, answers, resamples=50)
    expected = {
        "gold": (4 + 2) / 2, "proxy": (2 + 1 / 3) / 2, "best_of_n": (1 + 2) / 2,
        "win_rate": (2 / 3 + 1 / 2) / 2, "proxy_win_rate": (0.5 + 0) / 2,
        "kl_k1": (1 + 1) / 2, "kl_k3": (0.2 + 1) / 2, "length": (4 + 5) / 2, "clipped_ratio": 1 / 6,
        "distinct_ratio": 1.0, "length_correlation": 1.0,
    }
    assert set(expected) == set(POLICY_MEASURES)
    assert {name: estimate.value for name, estimate in summary.estimates.items()} == pytest.approx(expected)
    assert (summary.prompts, summary.samples, summary.round, summary.label) == (2, 6, 3, "online")
    row = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert PolicySummary.from_json(row).to_json() == summary.to_json()


def test_the_proxy_judges_where_there_is_no_gold_scorer(make_group):
    groups, baseline = [make_group("a", proxy=[1, 3])], [make_group("a", proxy=[2, 0])]
    summary = summarise("sft", "sft", 0, JudgedAnswers(groups, baseline, proxy="proxy"), resamples=50)
    assert not summary.estimates.keys() & {"gold", "kl_k1", "kl_k3", "length_correlation"}
    assert summary.get("win_rate").value == summary.get("proxy_win_rate").value == 0.75
    assert summary.get("best_of_n").value == 3


def test_without_scores_the_lengths_remain(make_group):
    summary = summarise("sft", "sft", 0, JudgedAnswers([make_group("a", lengths=[3, 5])]), resamples=50)
    assert summary.get("length").value == 4
    assert summary.get("proxy") is None
    assert summary.get("win_rate") is None


def test_distinct_counts_equal_answers_once(make_group):
    group = make_group("a", proxy=[1, 2])
    twins = type(group)(group.prompt_id, group.prompt_ids, (group.responses[0], group.responses[0]))
    assert summarise("x", "sft", 0, JudgedAnswers([twins]), resamples=50).get("distinct_ratio").value == 0.5


def test_correlation_needs_three_varying_values(make_group):
    groups = [make_group("a", proxy=[1, 2]), make_group("b", proxy=[1, 1, 1]), make_group("c", proxy=[1, 2, None]),
              make_group("d", proxy=[1, 2, 3], gold=[3, 2, 1])]
    assert correlations(groups, score_of("proxy"), score_of("proxy")) == [None, None, None, pytest.approx(1.0)]
    assert correlations(groups, score_of("proxy"), score_of("gold")) == [None, None, None, pytest.approx(-1.0)]
