"""AlpacaEval 2, Arena-Hard and MT-Bench by hand, and against published figures where the annotations are at hand."""

import math
import random

import numpy as np
import pytest
import scipy.optimize

from rlhf_jax.evaluation import alpaca_eval, arena_hard, mt_bench
from rlhf_jax.evaluation.length_controlled import (
    Regulariser,
    fit_weights,
    length_controlled,
    length_feature,
)
from rlhf_jax.evaluation.logistic import fit_logistic, refitted_estimate
from rlhf_jax.evaluation.style import markdown_counts, style_of


def test_a_fit_is_what_a_general_optimiser_finds():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(60, 3)), rng.random(60), rng.random(60)

    def loss(at):
        return w @ (np.logaddexp(0, x @ at) - y * (x @ at)) + 0.35 * at @ at

    best = scipy.optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(fit_logistic(x, y, w, penalty=0.7), best, atol=1e-6)


def test_a_fit_of_certain_outcomes_is_refused():
    with pytest.raises(ValueError, match="no finite solution"):
        fit_logistic(np.ones((5, 1)), np.ones(5))


def test_an_interval_needs_resamples_that_can_be_fitted():
    outcome = np.array([1.0, 1, 1, 0])  # a third of the resamples holds no 0
    found = refitted_estimate(lambda times: fit_logistic(np.ones((4, 1)), outcome, times)[0], 4)
    assert found.value == pytest.approx(math.log(3))
    assert math.isnan(found.low)
    assert math.isnan(refitted_estimate(np.sum, 1).low)  # one prompt, resampled, is itself


# AlpacaEval 2


def test_the_order_is_the_official_coin_of_the_instruction():
    for text in ("What are the names?", "Write a poem", "héllo"):
        coin = random.Random("is_switched_outputs" + text + "0").choices([False, True])[0]
        assert alpaca_eval.is_switched(text) is coin
    assert {alpaca_eval.is_switched(str(i)) for i in range(20)} == {False, True}


def test_a_preference_is_the_weight_of_the_models_letter_in_either_order():
    logps = {"m": math.log(0.2), "M": math.log(0.6), "x": math.log(0.1)}
    assert alpaca_eval.preference(logps, switched=False) == pytest.approx(1.75)
    assert alpaca_eval.preference(logps, switched=True) == pytest.approx(1.25)
    assert alpaca_eval.preference({"M": -0.1}, switched=False) == 2.0
    assert alpaca_eval.preference({"x": -0.1}, switched=False) is None


def test_raw_metrics_by_hand_zero_is_a_draw_and_none_is_nothing():
    found = alpaca_eval.raw_metrics([1.0, 1.2, 2.0, 1.9, 1.5, 0, None, float("nan")])
    p = np.array([0, 0.2, 1, 0.9, 0.5, 0.5])
    assert found == pytest.approx({"win_rate": 100 * p.mean(), "standard_error": 100 * p.std(ddof=1) / math.sqrt(6),
                                   "n_wins": 2, "n_wins_base": 2, "n_draws": 2, "n_total": 6,
                                   "discrete_win_rate": 50.0})
    with pytest.raises(ValueError, match=r"preference 2\.5 is none"):
        alpaca_eval.raw_metrics([2.5])
    with pytest.raises(ValueError, match="no row has a preference"):
        alpaca_eval.raw_metrics([None])


def synthetic(rows=400, seed=0, w=(-1.0, 0.5, 0.3)):
    """A judge with known weights, and a baseline against itself to which length does the same."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(100, 3000, rows), rng.integers(500, 2500, rows)
    hard = rng.normal(size=rows)
    odds = w[0] * length_feature(theirs, ours) + w[1] * hard + w[2]
    length = rng.normal(size=2 * rows)
    own = 1 / (1 + np.exp(-(w[0] * np.tanh(length) + w[1] * np.tile(hard, 2))))
    return ours, theirs, hard, 1 + 1 / (1 + np.exp(-odds)), Regulariser(length, np.tile(hard, 2), own)


def test_known_weights_are_found_and_length_taken_out():
    ours, theirs, hard, preference, regulariser = synthetic()
    found = length_controlled(preference, ours, theirs, hard, regulariser)
    assert (found.w_length, found.w_difficulty, found.w_bias) == pytest.approx((-1.0, 0.5, 0.3), abs=1e-6)
    assert found.win_rate.value == pytest.approx(100 * np.mean(1 / (1 + np.exp(-(0.5 * hard + 0.3)))), abs=1e-6)
    assert found.win_rate.low < found.win_rate.value < found.win_rate.high


def test_a_row_without_preference_takes_no_part():
    ours, theirs, hard, preference, regulariser = synthetic()
    length = length_feature(theirs, ours)
    found = length_controlled([None, *preference[1:]], ours, theirs, hard, regulariser)
    weights = fit_weights(length[1:], hard[1:], preference[1:] - 1, regulariser)
    assert (found.w_length, found.w_difficulty, found.w_bias) == pytest.approx(tuple(weights))


def test_columns_of_other_lengths_are_refused():
    ours, theirs, hard, preference, regulariser = synthetic()
    with pytest.raises(ValueError, match="400 preferences, 400 and 400 lengths and 399 difficulties"):
        length_controlled(preference, ours, theirs, hard[1:], regulariser)


# Arena-Hard


@pytest.mark.parametrize(("text", "old", "new"), [
    ("so [[A>B]]", "A>B", "A>B"), ("[[A>B]] or [[B>A]]", None, "B>A"), ("[[A>B]] yes [[A>B]]", "A>B", "A>B"),
    ("[[a>>b]]", None, "A>>B"), ("final [B=A]", None, "B=A"), ("no idea", None, None), ("[[<<>>]]", None, None)])
def test_labels_as_each_version_reads_them(text, old, new):
    assert arena_hard.verdict(text, "v0.1").label == old
    assert arena_hard.verdict(text, "v2.0").label == new


def test_only_a_reply_without_any_label_is_unfinished():
    assert arena_hard.verdict("hm", "v0.1") == (None, True)
    assert arena_hard.verdict("[[A>B]] [[B>A]]", "v0.1") == (None, False)


def random_labels(count=80, seed=0):
    rng = random.Random(seed)
    labels = ["A>B", "A>>B", "A=B", "B>A", "B>>A"]
    return {f"u{i}": (rng.choice(labels), rng.choice(labels)) for i in range(count)}


def test_the_win_probability_is_that_of_a_bradley_terry_fit_and_of_no_order_of_games():
    rows = random_labels()
    played = arena_hard.battles(rows, "v2.0")
    score = arena_hard.win_probability(played).value
    sides = np.stack([np.ones(len(played)), -np.ones(len(played))], axis=1) * math.log(10)  # model, baseline
    outcome, weight = (np.array([b[i] for b in played], float) for i in (1, 2))

    def loss(theta):  # one of the two is free
        odds = sides @ np.array([theta[0], 0.0])
        return weight @ (np.logaddexp(0, odds) - outcome * odds)

    theta = scipy.optimize.minimize(loss, [0.0], tol=1e-14).x[0]
    assert 1 / (1 + 10 ** -theta) == pytest.approx(score, abs=1e-7)
    theta = fit_logistic(sides[:, :1], outcome, weight)[0]
    assert 1 / (1 + 10 ** -theta) == pytest.approx(score, abs=1e-10)
    swapped = {uid: tuple(label.translate(str.maketrans("AB", "BA")) for label in reversed(games))
               for uid, games in rows.items()}
    assert arena_hard.win_probability(arena_hard.battles(swapped, "v2.0")).value == pytest.approx(score, abs=1e-12)


def test_a_strong_verdict_counts_three_times():
    played = arena_hard.battles({"u": ("B>>A", "B>A")}, "v2.0")  # the model is B, then A
    assert played == [("u", 1.0, 3), ("u", 0.0, 1)]
    assert arena_hard.win_probability(played).value == 0.75


def test_a_game_without_label_costs_v2_the_question_and_the_first_version_the_game():
    rows = {"a": ("A=B", None), "b": ("B>A", "A>B")}
    assert [b.uid for b in arena_hard.battles(rows, "v2.0")] == ["b", "b"]
    assert [b.uid for b in arena_hard.battles(rows, "v0.1")] == ["a", "b", "b"]
    with pytest.raises(ValueError, match="label 'A~B'"):
        arena_hard.battles({"u": ("A~B", None)}, "v0.1")
    with pytest.raises(ValueError, match="no game has a verdict"):
        arena_hard.win_probability([])


def test_the_interval_is_over_questions_whose_games_go_together():
    """Both games of a question alike: twice the games hold no more than one of them."""
    alike = {f"u{i}": (("B>A", "A>B") if i % 2 else ("A>B", "B>A")) for i in range(100)}
    assert arena_hard.win_probability(arena_hard.battles(alike, "v2.0")).standard_error == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_style_control_takes_out_what_length_did(version):
    """A judge that likes length alone: raw far above a half, controlled near it."""
    rng = np.random.default_rng(0)
    model = {f"u{i}": (int(rng.integers(100, 2000)), int(rng.integers(5)), int(rng.integers(9)), int(rng.integers(9)))
             for i in range(300)}
    baseline = {uid: (int(rng.integers(100, 1200)), *counts[1:]) for uid, counts in model.items()}
    played = []
    for uid in model:
        gap = (model[uid][0] - baseline[uid][0]) / (model[uid][0] + baseline[uid][0])
        wins = rng.random(2) < 1 / (1 + np.exp(-4 * gap))
        played += [arena_hard.Battle(uid, float(won), 1) for won in wins]
    raw = arena_hard.win_probability(played)
    controlled = arena_hard.style_controlled(played, model, baseline, version)
    assert raw.value > 0.6
    odds = _odds_at_equal_style(played, model, baseline, version)
    assert controlled.value == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.02)
    assert controlled.low < controlled.value < controlled.high
    assert abs(controlled.value - 0.5) < 0.1 < raw.value - 0.5  # at equal length the judge's own is a half


def _odds_at_equal_style(played, model, baseline, version):
    gaps = arena_hard.style_difference(*(np.array([side[b.uid] for b in played], float) for side in (model, baseline)),
                                       version)
    z = (gaps - gaps.mean(0)) / np.where(gaps.std(0) > 0, gaps.std(0), 1)
    outcome = np.array([b.outcome for b in played])

    def loss(at):
        odds = at[0] + z @ at[1:]
        return np.sum(np.logaddexp(0, odds) - outcome * odds) + 1e-6 * at @ at

    found = scipy.optimize.minimize(loss, np.zeros(5)).x
    return found[0] - found[1:] @ (gaps.mean(0) / np.where(gaps.std(0) > 0, gaps.std(0), 1))


def test_style_features_by_hand():
    ours, theirs = np.array([[10.0, 1, 2, 3]]), np.array([[30.0, 1, 0, 3]])
    np.testing.assert_allclose(arena_hard.style_difference(ours, theirs, "v0.1"), [[-20 / 41, 0, 2 / 3, 0]])
    a, b = ours[0, 1:] / 11, theirs[0, 1:] / 31
    np.testing.assert_allclose(arena_hard.style_difference(ours, theirs, "v2.0"), [[-0.5, *((a - b) / (a + b + 1))]])


def test_markdown_is_counted_without_fenced_code():
    text = "# One\n## Two\n- a\n* b\n 1. c\n**bold** and __too__\n```py\n# not\n- nor\n**this**\n```\n### Three"
    assert markdown_counts(text) == {"header_count": {"h1": 1, "h2": 1, "h3": 1, "h4": 0, "h5": 0, "h6": 0},
                                     "list_count": {"ordered": 1, "unordered": 2}, "bold_count": {"**": 1, "__": 1}}
    assert style_of({"token_len": 7, **markdown_counts(text)}) == (7, 3, 3, 2)
    with pytest.raises(ValueError, match="lacks 'token_len'"):
        style_of(markdown_counts(text))


# MT-Bench


@pytest.mark.parametrize(("text", "value"), [("Rating: [[7]]", 7), ("[3] then [[8.5]]", 8.5), ("so [4]", 4),
                                             ("[[ten]]", -1), ("", -1)])
def test_ratings(text, value):
    assert mt_bench.rating(text) == value


def test_prompts_by_category_and_turn():
    assert [mt_bench.judge_prompt(category, turn) for category in ("writing", "math") for turn in (1, 2)] == [
        "single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"]


def test_a_summary_by_hand_and_its_refusal():
    rows = [{"question_id": q, "turn": t, "score": float(s)} for q, t, s in ((81, 1, 8), (81, 2, 6), (91, 1, 4),
                                                                            (91, 2, 2))]
    found = mt_bench.summary(rows, {81: "writing", 91: "math"})
    assert {name: estimate.value for name, estimate in found.items()} == {
        "score": 5.0, "turn_1": 6.0, "turn_2": 4.0, "turn_2_minus_1": -2.0, "category/writing": 7.0,
        "category/math": 3.0}
    assert found["score"].count == 2
    rows[0]["score"] = -1.0
    with pytest.raises(ValueError, match=r"1 of 4 judgements hold no rating"):
        mt_bench.summary(rows, {81: "writing", 91: "math"})
    many = [{"question_id": i, "turn": 1, "score": 5.0 if i else -1.0} for i in range(100)]
    assert mt_bench.summary(many, dict.fromkeys(range(100), "stem"))["score"].value == 5.0
