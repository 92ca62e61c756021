"""Rewards at equal divergence, worked by hand; a method that only moves further is not thereby better."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import Estimate, PolicySummary
from rlhf_jax.evaluation.frontier import at_equal_kl, frontier


def policy(family, number, reward, kl, error=0.1):
    def estimate(value, spread):
        return Estimate(value, spread, value - 2 * spread, value + 2 * spread, 100)

    return PolicySummary(f"{family}-{number}", family, number, 100, 800,
                         {"gold": estimate(reward, error), "kl_k1": estimate(kl, 0.02)})


START = policy("sft", 0, 1.0, 0.001)


def curve(*policies):
    return frontier([START, *policies], {p.family for p in policies}, "gold")


def test_rewards_between_policies_are_linear_in_the_root_of_the_divergence():
    found = curve(policy("online", 1, 2.0, 1.0), policy("online", 2, 2.6, 4.0))
    assert [found.at(kl)[0] for kl in (0.0, 0.25, 1.0, 2.25, 4.0)] == pytest.approx([1.0, 1.5, 2.0, 2.3, 2.6])
    assert found.furthest == 4.0
    with pytest.raises(ValueError, match=r"the reward at 4.1 nats is not known: the furthest policy is at 4"):
        found.at(4.1)


def test_the_error_is_that_of_both_ends_and_of_where_they_lie():
    found = curve(policy("online", 1, 2.0, 1.0), policy("online", 2, 2.6, 4.0, error=0.3))
    slope, share = 0.6, 0.5  # per root of a nat, half-way from 1 to 2
    ends = [(0.1, 0.02 / 2), (0.3, 0.02 / 4)]
    by_hand = math.sqrt(sum((share * math.hypot(reward, slope * moved)) ** 2 for reward, moved in ends))
    assert found.at(2.25)[1] == pytest.approx(by_hand)
    assert found.at(4.0)[1] == pytest.approx(math.hypot(0.3, slope * 0.02 / 4))


def test_a_method_on_the_same_curve_that_moved_further_is_level():
    """By their last policies the second wins by 1; on one curve neither is better."""
    near, far = curve(policy("a", 1, 2.0, 1.0)), curve(policy("b", 1, 2.0, 1.0), policy("b", 2, 3.0, 4.0))
    found = at_equal_kl(far, near)
    assert (found.kl, found.difference) == (1.0, 0.0)
    assert at_equal_kl(near, far).difference == 0.0


def test_rounds_are_read_in_the_order_of_their_divergence():
    found = curve(policy("online", 1, 3.0, 9.0), policy("online", 2, 2.0, 4.0))
    np.testing.assert_allclose(found.kl, [0, 4, 9])
    assert found.at(6.25)[0] == pytest.approx(2.5)


def test_without_a_divergence_or_a_start_there_is_no_curve():
    blind = PolicySummary("x-1", "x", 1, 1, 1, {"gold": Estimate(1, 0, 1, 1, 9)})
    assert frontier([START, blind], ["x"], "gold") is None
    assert frontier([policy("x", 1, 1.0, 1.0)], ["x"], "gold") is None
