import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses
from rlhf_jax.losses import LOSSES, PairLogps


def test_reference_is_not_read(appendix_a):
    pair = appendix_a()
    other = pair._replace(ref_chosen=pair.ref_chosen * jnp.nan, ref_rejected=pair.ref_rejected * jnp.nan)
    for name, row in LOSSES.items():
        if row.unit == "response":
            continue
        keywords = {name: jnp.ones(3) for name in row.inputs if name != "mask"}
        if row.needs_reference:
            assert not np.any(np.isfinite(row.function(other, **keywords))), name
        else:
            np.testing.assert_array_equal(row.function(other), row.function(pair))


def test_simpo_gamma_shifts_the_margin(appendix_a):
    pair = appendix_a()
    mean_gap = np.asarray(pair.chosen / pair.chosen_len - pair.rejected / pair.rejected_len)
    for gamma in (0.0, 0.5, 2.0):
        expected = np.logaddexp(0.0, gamma - 2.0 * mean_gap)
        np.testing.assert_allclose(losses.simpo_loss(pair, beta=2.0, simpo_gamma=gamma), expected, rtol=1e-5)


def test_alphapo_tends_to_simpo_and_equals_its_formula(appendix_a):
    pair = appendix_a()
    with jax.enable_x64(True):
        wide = appendix_a(jnp.float64)
        near = losses.alphapo_loss(wide, beta=2.0, alphapo_alpha=1e-7)
        np.testing.assert_allclose(near, losses.simpo_loss(wide, beta=2.0), atol=1e-5)
    p, q = np.exp(pair.chosen / pair.chosen_len), np.exp(pair.rejected / pair.rejected_len)
    for alpha in (0.25, -0.5):
        reward_gap = (1 - p**-alpha) / alpha - (1 - q**-alpha) / alpha
        expected = np.logaddexp(0.0, 0.5 - 2.0 * reward_gap)
        np.testing.assert_allclose(losses.alphapo_loss(pair, beta=2.0, alphapo_alpha=alpha), expected, rtol=1e-5)


def test_cpo_is_dpo_with_a_uniform_reference(appendix_a):
    pair = appendix_a()
    uniform = pair._replace(ref_chosen=jnp.full(3, -4.0), ref_rejected=jnp.full(3, -4.0))
    for e in (0.0, 0.2):
        np.testing.assert_allclose(
            losses.cpo_loss(pair, label_smoothing=e), losses.sigmoid_loss(uniform, label_smoothing=e), rtol=1e-6
        )


def test_orpo_odds():
    p, q = 0.8, 0.3
    one = jnp.ones(1)
    pair = PairLogps(2 * jnp.log(p * one), 3 * jnp.log(q * one), 0 * one, 0 * one, 2 * one, 3 * one)
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    np.testing.assert_allclose(losses.orpo_loss(pair, beta=0.1), 0.1 * np.log1p(1 / odds_ratio), rtol=1e-5)


def test_certain_and_empty_completions_stay_finite():
    zero = jnp.zeros(1)
    pair = PairLogps(zero, zero - 1e4, zero, zero, zero, zero + 1)
    functions = [LOSSES[name].function for name in ("orpo", "simpo", "sft", "alphapo", "cpo")]
    for value, grads in jax.jit(lambda p: [jax.value_and_grad(lambda q, f=f: f(q).sum())(p) for f in functions])(pair):
        assert np.isfinite(value)
        assert np.all(np.isfinite(jnp.stack(grads)))
