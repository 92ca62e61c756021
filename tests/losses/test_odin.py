import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import bradley_terry, odin_length, odin_orthogonality, pearson

ALL = jnp.ones(3, bool)


def test_a_batch_of_three_by_hand():
    lengths = jnp.asarray([1.0, 2.0, 3.0])
    follows, apart = jnp.asarray([2.0, 4.0, 6.0]), jnp.asarray([1.0, -2.0, 1.0])
    assert odin_length(lengths, follows, apart, ALL) == pytest.approx(0.0, abs=1e-6)
    assert odin_length(lengths, -follows, follows, ALL) == pytest.approx(3.0, rel=1e-6)
    tilted = jnp.asarray([1.0, 3.0, 2.0])  # rho = 0.5
    assert odin_length(lengths, tilted, -tilted, ALL) == pytest.approx(0.5 + 0.5, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_correlation_is_numpys_and_padding_does_not_count(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 40)).astype(np.float32) * 100
    mask = rng.random(40) < 0.7
    found = pearson(jnp.asarray(np.where(mask, x, np.nan)), jnp.asarray(np.where(mask, y, 1e9)), jnp.asarray(mask))
    assert found == pytest.approx(np.corrcoef(x[mask], y[mask])[0, 1], abs=1e-6)


def test_what_does_not_vary_follows_nothing_and_has_a_finite_gradient():
    value, gradient = jax.value_and_grad(pearson)(jnp.zeros(3), jnp.asarray([1.0, 2.0, 4.0]), ALL)
    assert value == 0
    assert np.isfinite(gradient).all()
    assert pearson(jnp.ones(3), jnp.ones(3), jnp.zeros(3, bool)) == 0


def test_all_responses_of_the_batch_carry_gradient():
    """The published script gathers the batch over devices without gradient: each sees its own slice's alone."""
    x = jnp.asarray([1.0, 2.0, 4.0])
    gradient = jax.grad(lambda r: odin_length(x, r, x[::-1], ALL))(jnp.asarray([0.3, 0.1, 0.5]))
    assert (np.abs(gradient) > 1e-3).all()


def test_heads_are_orthogonal_after_their_means_are_gone():
    assert odin_orthogonality(jnp.asarray([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])) == pytest.approx(0.0, abs=1e-6)
    assert odin_orthogonality(jnp.asarray([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])) == pytest.approx(1.0, rel=1e-5)
    shifted = jnp.asarray([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) + jnp.asarray([[5.0], [-3.0]])
    assert odin_orthogonality(shifted) == pytest.approx(0.0, abs=1e-5)


def test_many_copies_of_a_pair_have_the_loss_of_one_and_summing_inside_the_logarithm_does_not():
    """The published script adds all rewards of a batch before the logarithm: at 16 copies nothing is left to learn."""
    chosen, rejected = jnp.full(16, 0.7), jnp.full(16, 0.2)
    one = float(bradley_terry(chosen[0], rejected[0]))
    assert float(jnp.mean(bradley_terry(chosen, rejected))) == pytest.approx(one, rel=1e-6)
    assert float(bradley_terry(jnp.sum(chosen), jnp.sum(rejected))) < one / 1000
