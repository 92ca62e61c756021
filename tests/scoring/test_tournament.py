"""Round-robin and knock-out against brute force on known strengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.scoring import knock_out, round_robin


def player(strengths, played=None, failing=()):
    """Games decided by strength, P = sigma(gap); counts them; a game named in `failing` has no verdict."""

    def play(asked):
        if played is not None:
            played.extend(asked)
        return [None if {i, j} in failing else float(1 / (1 + np.exp(strengths[g][j] - strengths[g][i])))
                for g, i, j in asked]

    return play


strength_lists = st.lists(st.lists(st.integers(-20, 20), min_size=1, max_size=9, unique=True), min_size=1, max_size=4)


@settings(deadline=None)
@given(strength_lists)
def test_round_robin_is_the_mean_win_probability_over_all_opponents(strengths):
    found = round_robin([len(s) for s in strengths], player(strengths))
    for s, scores in zip(strengths, found, strict=True):
        for i, score in enumerate(scores):
            wins = [1 / (1 + np.exp(s[j] - s[i])) for j in range(len(s)) if j != i]
            assert score == (pytest.approx(np.mean(wins)) if wins else None)


@settings(deadline=None)
@given(strength_lists)
def test_knock_out_finds_the_best_and_the_worst_of_each_group(strengths):
    found = knock_out([len(s) for s in strengths], player(strengths))
    for s, scores in zip(strengths, found, strict=True):
        expected = [0.5] * len(s)
        if len(s) > 1:
            expected[int(np.argmax(s))], expected[int(np.argmin(s))] = 1.0, 0.0
        assert scores == expected


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 16, 33])
def test_games_are_all_pairs_in_round_robin_and_linear_in_knock_out(n):
    strengths = [list(np.random.default_rng(n).permutation(n))]
    played = []
    round_robin([n], player(strengths, played))
    assert sorted(played) == [(0, i, j) for i, j in itertools.combinations(range(n), 2)]
    played = []
    knock_out([n], player(strengths, played))
    assert len(played) == (n - 1) + (n - 2)


def test_a_failed_game_counts_for_neither_side_in_round_robin():
    found = round_robin([3], player([[0, 1, 2]], failing=[{0, 2}]))[0]
    p01, p12 = 1 / (1 + np.e), 1 / (1 + np.e)
    np.testing.assert_allclose(found, [p01, (1 - p01 + p12) / 2, 1 - p12])


def test_a_response_all_of_whose_games_failed_has_no_score_in_round_robin():
    assert round_robin([2, 1], lambda asked: [None] * len(asked)) == [[None, None], [None]]


def test_a_response_whose_game_failed_is_left_out_of_the_knock_out_rather_than_given_a_score():
    assert knock_out([4], lambda asked: [None] * len(asked)) == [[None] * 4]
    found = knock_out([5], player([[0, 9, 3, 2, 1]], failing=[{0, 1}]))[0]
    assert found == [None, None, 1.0, 0.5, 0.0]


def test_a_tie_in_the_knock_out_goes_to_the_earlier_response():
    assert knock_out([4], lambda asked: [0.5] * len(asked))[0][0] == 1.0
