import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.losses import apo_zero_loss, apo_zero_unpaired_loss, bco_loss, bco_pair_loss, kto_baseline, kto_loss

LOGPS = jnp.asarray([-10.0, -20.0, -7.0, -30.0])
REF = jnp.asarray([-11.0, -18.0, -9.0, -25.0])
GOOD = jnp.asarray([True, True, False, False])


def sigma(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x)))


def test_kto_by_hand():
    ratios = np.asarray(LOGPS - REF)
    values = kto_loss(LOGPS, REF, GOOD, jnp.float32(0.5), beta=0.2, desirable_weight=2.0, undesirable_weight=3.0)
    np.testing.assert_allclose(values[:2], 2.0 * (1 - sigma(0.2 * (ratios[:2] - 0.5))), rtol=1e-5)
    np.testing.assert_allclose(values[2:], 3.0 * (1 - sigma(0.2 * (0.5 - ratios[2:]))), rtol=1e-5)


def test_kto_at_the_reference_is_one_half():
    np.testing.assert_allclose(kto_loss(LOGPS, LOGPS, GOOD, jnp.float32(0.0)), 0.5)


def test_baseline_is_the_clamped_mean_over_real_rows():
    np.testing.assert_allclose(kto_baseline(LOGPS, REF), 0.0)  # mean of 1, -2, 2, -5 is negative
    mask = jnp.asarray([True, False, True, False])
    np.testing.assert_allclose(kto_baseline(LOGPS, REF, mask), 1.5)
    np.testing.assert_allclose(kto_baseline(LOGPS.at[1].set(jnp.nan), REF, mask), 1.5)
    np.testing.assert_allclose(kto_baseline(LOGPS, REF, jnp.zeros(4, bool)), 0.0)


def test_no_gradient_through_baseline_and_shift():
    def kto(kl):
        return kto_loss(LOGPS, REF, GOOD, kl).sum()

    def bco(shift):
        return bco_loss(LOGPS, REF, GOOD, shift).sum()

    assert jax.grad(kto)(0.5) == 0.0
    assert jax.grad(bco)(0.5) == 0.0
    assert kto(0.5) != kto(0.0)
    assert bco(0.5) != bco(0.0)


def test_two_halves_of_a_pair_add_up_to_the_paired_losses(appendix_a):
    pair = appendix_a()
    for unpaired, paired in ((apo_zero_unpaired_loss, apo_zero_loss), (bco_loss, bco_pair_loss)):
        extra = () if unpaired is apo_zero_unpaired_loss else (jnp.float32(0.0),)
        halves = unpaired(pair.chosen, pair.ref_chosen, jnp.ones(3, bool), *extra) + unpaired(
            pair.rejected, pair.ref_rejected, jnp.zeros(3, bool), *extra
        )
        np.testing.assert_allclose(halves, paired(pair), rtol=1e-6)


def test_class_weights_of_apo_zero_unpaired():
    plain = apo_zero_unpaired_loss(LOGPS, REF, GOOD)
    weighted = apo_zero_unpaired_loss(LOGPS, REF, GOOD, desirable_weight=2.0, undesirable_weight=0.5)
    np.testing.assert_allclose(weighted, plain * jnp.asarray([2.0, 2.0, 0.5, 0.5]), rtol=1e-6)


def test_gradients_are_finite_far_out():
    far = jnp.asarray([-1e4, 0.0, -1e4, 0.0])
    for loss in (kto_loss, bco_loss):
        grads = jax.grad(lambda x, f=loss: f(x, -1e4 - x, GOOD, jnp.float32(0.0)).sum())(far)
        assert np.all(np.isfinite(grads))
