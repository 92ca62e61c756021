"""What metrics call a pair's rewards: what its loss compares, worked by hand."""

import numpy as np
import pytest

from rlhf_jax.losses import LOSSES, PairLogps, PreferenceLoss, implicit_rewards, preference_loss, rewards

# two tokens of -2 against eight of -1: in sum the chosen response is likelier, per token the rejected one
PAIR = PairLogps(*(np.array([x], np.float32) for x in (-4.0, -8.0, -3.0, -9.0, 2.0, 8.0)))


@pytest.mark.parametrize(("loss", "chosen", "rejected"), [
    (PreferenceLoss("simpo", beta=2.0), -4.0, -2.0), (PreferenceLoss(("sft", "orpo"), beta=0.5), -1.0, -0.5),
    (PreferenceLoss("alphapo", beta=2.0, alphapo_alpha=0.25), 8 * (1 - np.exp(0.5)), 8 * (1 - np.exp(0.25))),
    (PreferenceLoss("sigmoid", beta=0.1), -0.1, 0.1), (PreferenceLoss("ipo", beta=0.1), -0.1, 0.1),
    (PreferenceLoss("sft"), -0.1, 0.1), (PreferenceLoss(("raft", "simpo"), beta=2.0), -4.0, -2.0)])
def test_rewards_are_those_that_the_loss_compares(loss, chosen, rejected):
    np.testing.assert_allclose(np.concatenate(rewards(PAIR, loss)), [chosen, rejected], rtol=1e-6)


def test_the_better_one_by_its_rewards_is_the_better_one_by_its_loss():
    zero = PAIR._replace(ref_chosen=0 * PAIR.chosen, ref_rejected=0 * PAIR.chosen)
    turned = zero._replace(chosen=zero.rejected, rejected=zero.chosen,
                           chosen_len=zero.rejected_len, rejected_len=zero.chosen_len)
    for name in ("sigmoid", "simpo", "cpo", "orpo", "alphapo"):
        spec = PreferenceLoss(name, **({"alphapo_alpha": 0.25} if name == "alphapo" else {}))
        a, b = (preference_loss(pair, spec)[0].values[0] for pair in (zero, turned))
        chosen, rejected = rewards(zero, spec)
        assert (a < b) == (chosen > rejected), name


def test_all_other_losses_have_dpos_rewards():
    others = [name for name, row in LOSSES.items() if row.rewards is not implicit_rewards]
    assert others == ["simpo", "orpo", "alphapo"]
