import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax import losses
from rlhf_jax.losses import PairLogps

few = settings(max_examples=15, deadline=None)
logp = st.floats(-40.0, -0.5, width=32)
betas = st.floats(0.01, 1.0)
smoothings = st.floats(0.0, 0.4)


@st.composite
def pairs(draw, count=3):
    rows = [draw(st.lists(logp, min_size=count, max_size=count)) for _ in range(4)]
    lengths = [draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)) for _ in range(2)]
    return PairLogps(*(jnp.asarray(row, jnp.float32) for row in rows + lengths))


def swapped(pair):
    return PairLogps(pair.rejected, pair.chosen, pair.ref_rejected, pair.ref_chosen, pair.rejected_len, pair.chosen_len)


def at_reference(pair):
    return pair._replace(ref_chosen=pair.chosen, ref_rejected=pair.rejected)


def gap(pair):
    return np.asarray((pair.chosen - pair.ref_chosen) - (pair.rejected - pair.ref_rejected))


@few
@given(pairs(), betas, smoothings)
def test_policy_equal_to_reference_gives_log_two_for_every_beta_and_smoothing(pair, beta, e):
    same = at_reference(pair)
    for loss in (losses.sigmoid_loss, losses.sigmoid_norm_loss, losses.aot_loss, losses.aot_unpaired_loss):
        np.testing.assert_allclose(loss(same, beta=beta, label_smoothing=e), np.log(2), atol=1e-6)
    np.testing.assert_allclose(losses.robust_loss(same, beta=beta, label_smoothing=e), np.log(2), rtol=1e-5)
    chosen, rejected = losses.implicit_rewards(same, beta)
    assert not np.any(np.asarray(chosen > rejected))


@few
@given(pairs(), betas)
def test_swapping_chosen_and_rejected(pair, beta):
    forth, back = losses.sigmoid_loss(pair, beta=beta), losses.sigmoid_loss(swapped(pair), beta=beta)
    np.testing.assert_allclose(forth - back, -beta * gap(pair), atol=1e-4)  # l(bz) - l(-bz) = -bz
    np.testing.assert_allclose(
        losses.ipo_sum_loss(pair, beta=beta) - losses.ipo_sum_loss(swapped(pair), beta=beta),
        -2.0 * gap(pair) / beta, rtol=1e-3, atol=5e-2,
    )  # fmt: skip


@few
@given(pairs(), betas, smoothings)
def test_smoothing_is_the_expectation_over_flipped_labels(pair, beta, e):
    for loss in (losses.sigmoid_loss, losses.sigmoid_norm_loss, losses.ipo_loss, losses.ipo_sum_loss):
        expected = (1 - e) * loss(pair, beta=beta) + e * loss(swapped(pair), beta=beta)
        np.testing.assert_allclose(loss(pair, beta=beta, label_smoothing=e), expected, rtol=1e-5, atol=1e-5)


@few
@given(pairs(), betas, smoothings)
def test_robust_is_unbiased_under_flipped_labels(pair, beta, e):
    kept, flipped = (losses.robust_loss(p, beta=beta, label_smoothing=e) for p in (pair, swapped(pair)))
    clean = losses.sigmoid_loss(pair, beta=beta)
    np.testing.assert_allclose((1 - e) * kept + e * flipped, clean, rtol=1e-4, atol=1e-4)


@few
@given(pairs(), betas)
def test_nca_and_bco_and_apo_are_sums_of_logistic_pieces(pair, beta):
    a, d = (beta * np.asarray(x, np.float64) for x in losses.log_ratios(pair))

    def nll(z):
        return np.logaddexp(0.0, -z)

    np.testing.assert_allclose(losses.nca_pair_loss(pair, beta=beta), nll(a) + (nll(-a) + nll(-d)) / 2, rtol=1e-4)
    np.testing.assert_allclose(losses.bco_pair_loss(pair, beta=beta), nll(a) + nll(-d), rtol=1e-4)
    zero, down = losses.apo_zero_loss(pair, beta=beta), losses.apo_down_loss(pair, beta=beta)
    np.testing.assert_allclose(zero, np.exp(-nll(-a)) + np.exp(-nll(d)), rtol=1e-4)
    np.testing.assert_allclose(down, np.exp(-nll(a)) + np.exp(-nll(d - a)), rtol=1e-4)


def test_exo_is_zero_where_the_policy_has_the_smoothed_preference():
    ratio = np.float32(np.log(0.9 / 0.1) / 0.1)
    zero, one = jnp.zeros(1), jnp.ones(1)
    pair = PairLogps(zero + ratio, zero, zero, zero, one, one)
    np.testing.assert_allclose(losses.exo_pair_loss(pair, label_smoothing=0.1), 0.0, atol=1e-6)
    assert losses.exo_pair_loss(pair, label_smoothing=0.2)[0] > 0.01


def test_hinge_and_sppo_and_ipo_vanish_at_their_targets():
    zero, one = jnp.zeros(1), jnp.ones(1)
    pair = PairLogps(zero + 5.0, zero - 5.0, zero, zero, one, one)  # 1/(2 beta) = 5, and b D = 1
    np.testing.assert_allclose(losses.hinge_loss(pair), 0.0)
    np.testing.assert_allclose(losses.sppo_hard_loss(pair), 0.0, atol=1e-10)
    at_target = pair._replace(rejected=zero)
    np.testing.assert_allclose(losses.ipo_sum_loss(at_target), 0.0, atol=1e-10)
    np.testing.assert_allclose(losses.ipo_loss(at_target), 0.0, atol=1e-10)
    np.testing.assert_allclose(losses.ipo_loss(at_target._replace(chosen_len=2 * one)), 6.25, rtol=1e-6)


def test_discopop_limits_are_logistic_and_exponential(appendix_a):
    pair = appendix_a()
    z = np.float32(0.1) * gap(pair)
    logistic = np.logaddexp(0.0, -z)
    sharp = losses.discopop_loss(pair, discopop_tau=1e-4)
    np.testing.assert_allclose(sharp, np.where(z < 0, logistic, np.exp(-z)), atol=1e-6)
    flat = losses.discopop_loss(pair, discopop_tau=1e6)
    np.testing.assert_allclose(flat, (logistic + np.exp(-z)) / 2, atol=1e-5)


@few
@given(pairs(5), st.permutations(range(5)))
def test_aot_forgets_how_sides_were_paired(pair, order):
    order = np.asarray(order)
    ours = losses.aot_unpaired_loss(pair)
    regrouped = pair._replace(rejected=pair.rejected[order], ref_rejected=pair.ref_rejected[order])
    np.testing.assert_allclose(losses.aot_unpaired_loss(regrouped), ours, atol=1e-6)
    moved = PairLogps(*(x[order] for x in pair))
    for loss in (losses.aot_loss, losses.aot_unpaired_loss):
        np.testing.assert_allclose(np.sort(loss(moved)), np.sort(loss(pair)), atol=1e-6)


def test_one_pair_aot_is_dpo(appendix_a):
    one = PairLogps(*(x[:1] for x in appendix_a()))
    for loss in (losses.aot_loss, losses.aot_unpaired_loss):
        np.testing.assert_allclose(loss(one), losses.sigmoid_loss(one), rtol=1e-6)


@pytest.mark.parametrize("name", [n for n, row in losses.LOSSES.items() if "divergence" in row.knobs])
def test_divergence_enters_through_mapped_ratios_only(name, appendix_a):
    """Mapping with s(u) = 2u is the same as doubling both ratios, except where a raw ratio is used (apo_down)."""
    pair = appendix_a()
    a, d = losses.log_ratios(pair)
    doubled = pair._replace(chosen=pair.chosen + a, rejected=pair.rejected + d)
    loss = losses.LOSSES[name].function
    keywords = {"label_smoothing": 0.1} if name == "exo_pair" else {}
    keywords |= {given: jnp.full(3, 0.7) for given in losses.LOSSES[name].inputs}
    mapped = loss(pair, divergence=lambda u: 2.0 * u, **keywords)
    if name == "apo_down":
        first = 1.0 / (1.0 + np.exp(-0.1 * np.asarray(a)))
        first_doubled = 1.0 / (1.0 + np.exp(-0.2 * np.asarray(a)))
        np.testing.assert_allclose(mapped - first, loss(doubled) - first_doubled, atol=1e-5)
    else:
        np.testing.assert_allclose(mapped, loss(doubled, **keywords), rtol=1e-5)
