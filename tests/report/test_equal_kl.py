"""Sentences about methods at equal divergence: each comparison says who is meant."""

import pytest

from rlhf_jax.evaluation import across_seeds
from rlhf_jax.evaluation.frontier import EqualKl
from rlhf_jax.report.equal_kl import headline_at_equal_kl


def found(ours, against, differences, kl=1.5):
    one = across_seeds([1.0] * len(differences))
    return EqualKl(ours, against, "gold", across_seeds([kl] * len(differences)), (one, one), across_seeds(differences))


def test_one_method_against_several_is_named_once():
    text = headline_at_equal_kl([found("online", "matched_dpo", [0.3, 0.31, 0.29]),
                                 found("online", "offline_dpo", [-0.3, -0.31, -0.29], kl=0.5)])
    assert text == (
        "At equal divergence from the start and in gold reward, online iterative DPO is better than matched one-round "
        "DPO (difference +0.30 [+0.28, +0.32] at 1.50 nats); worse than offline DPO (difference -0.30 [-0.32, -0.28] "
        "at 0.50 nats): 95 % intervals over 3 seeds.")


def test_several_against_one_are_each_named():
    text = headline_at_equal_kl([found("rule=a", "rule=first", [0.1, -0.1]), found("rule=b", "rule=first", [0.2, 0.2])])
    assert "rule=a is not distinguishable from rule=first (difference -0.00 [" in text.replace("+0.00", "-0.00")
    assert "; rule=b is better than rule=first (difference +0.20 [" in text


@pytest.mark.parametrize(("difference", "words"), [(0.2, "ahead of"), (-0.2, "behind")])
def test_one_seed_has_no_interval(difference, words):
    assert headline_at_equal_kl([found("online", "raft", [difference])]) == (
        f"At equal divergence from the start and in gold reward, online iterative DPO is {words} RAFT (difference "
        f"{difference:+.2f} at 1.50 nats): one seed, so no intervals.")
    assert headline_at_equal_kl([]) == ""
