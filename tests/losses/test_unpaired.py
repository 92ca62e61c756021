"""Losses of single responses over a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import PairLogps, PreferenceLoss, Responses, bco_shift, preference_loss, response_loss

LOGPS = jnp.asarray([-10.0, -20.0, -7.0, -30.0, -5.0, -6.0])
REF = jnp.asarray([-11.0, -18.0, -9.0, -25.0, -8.0, -6.5])
GOOD = jnp.asarray([True, True, False, False, False, False])
LABELLED = jnp.asarray([True, True, True, True, False, False])
BATCH = Responses(LOGPS, REF, GOOD, LABELLED, ~LABELLED)


def sigma(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def test_kto_by_hand():
    (term,) = response_loss(BATCH, PreferenceLoss("kto", beta=0.2, desirable_weight=2.0, undesirable_weight=3.0))
    r, baseline = np.asarray(LOGPS - REF), (3.0 + 0.5) / 2
    expected = [*(2 * sigma(-0.2 * (r[:2] - baseline))), *(3 * sigma(0.2 * (r[2:4] - baseline))), 0, 0]
    np.testing.assert_allclose(term.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(term.weights, [1, 1, 1, 1, 0, 0])


def test_bco_and_apo_by_hand():
    r = 0.1 * np.asarray(LOGPS - REF)[:4]
    shift = ((r[0] + r[1]) / 2 + (r[2] + r[3]) / 2) / 2
    sign = np.array([1, 1, -1, -1])
    (bco,) = response_loss(BATCH, PreferenceLoss("bco"))
    np.testing.assert_allclose(bco.values[:4], -np.log(sigma(sign * (r - shift))), rtol=1e-5)
    (apo,) = response_loss(BATCH, PreferenceLoss("apo_zero_unpaired"))
    np.testing.assert_allclose(apo.values[:4], sigma(-sign * r), rtol=1e-6)


def test_at_the_reference_kto_is_half_its_weights_and_bco_the_logarithm_of_two():
    batch = BATCH._replace(logps=REF)
    (kto,) = response_loss(batch, PreferenceLoss("kto", desirable_weight=1.5, undesirable_weight=0.5))
    np.testing.assert_array_equal(kto.values[:4], [0.75, 0.75, 0.25, 0.25])
    (bco,) = response_loss(batch, PreferenceLoss("bco"))
    np.testing.assert_allclose(bco.values[:4], np.log(2), rtol=1e-6)


@pytest.mark.longer
@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_padding_changes_nothing_and_no_gradient_passes_through_what_the_batch_shares(name):
    spec, junk = PreferenceLoss(name), jnp.asarray([jnp.nan, jnp.inf, -jnp.inf])
    none = jnp.zeros(3, bool)
    padded = Responses(jnp.concatenate([LOGPS, junk]), jnp.concatenate([REF, junk]),
                       *(jnp.concatenate([x, none]) for x in BATCH[2:]))

    def total(logps, batch):
        (term,) = response_loss(batch._replace(logps=logps), spec)
        return jnp.sum(term.values * term.weights)

    value, grad = jax.value_and_grad(total)(LOGPS, BATCH)
    wide, wide_grad = jax.value_and_grad(total)(padded.logps, padded)
    np.testing.assert_allclose(wide, value, rtol=1e-6)
    np.testing.assert_allclose(wide_grad, [*grad, 0, 0, 0], rtol=1e-6)
    assert not np.any(grad[4:])  # mismatched answers have no gradient


def test_the_shift_of_one_class_alone_is_its_mean():
    rewards = jnp.asarray([1.0, 3.0, 8.0])
    assert bco_shift(rewards, jnp.asarray([True, True, False]), jnp.ones(3, bool)) == 5.0
    assert bco_shift(rewards, jnp.ones(3, bool), jnp.asarray([True, True, False])) == 2.0
    assert bco_shift(rewards, jnp.ones(3, bool), jnp.zeros(3, bool)) == 0.0


def test_losses_of_pairs_and_of_responses_do_not_mix():
    with pytest.raises(ValueError, match=r"mixes losses of pairs with losses of single responses \(kto, apo_zero_unp"):
        PreferenceLoss(("sigmoid", "kto"))
    assert PreferenceLoss(("kto", "bco"), (1.0, 0.5)).of_responses
    with pytest.raises(ValueError, match="loss_type=kto is a loss of single responses; use response_loss"):
        preference_loss(PairLogps(*[jnp.ones(2)] * 6), PreferenceLoss("kto"))
    with pytest.raises(ValueError, match=r"desirable_weight=2.0 has no effect on loss_type=bco"):
        PreferenceLoss("bco", desirable_weight=2.0)
