import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import (
    DIVERGENCES,
    LOSSES,
    PairLogps,
    PreferenceLoss,
    Responses,
    preference_loss,
    response_loss,
    weighted_total,
)

MARGIN = jnp.asarray([0.7, -1.3, 4.0])
VALID = {"exo_pair": {"label_smoothing": 1e-3}, "alphapo": {"alphapo_alpha": 0.25}}
"""Knobs without which a loss type is refused."""
PAIRED = {name: row for name, row in LOSSES.items() if row.unit == "pair"}
EVERY = [PreferenceLoss(name, **VALID.get(name, {})) for name in PAIRED]


def wins_of(margin):
    """Win rates of chosen and rejected as a Bradley-Terry model of these gaps has them."""
    return None if margin is None else (jax.nn.sigmoid(margin), jax.nn.sigmoid(-margin))


quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles fast: these functions run once."""


def total(pair, spec, mask=None, margin=MARGIN):
    if spec.of_responses:
        sides = (pair.chosen, pair.rejected), (pair.ref_chosen, pair.ref_rejected)
        good = jnp.arange(2 * len(pair.chosen)) < len(pair.chosen)
        responses = Responses(*map(jnp.concatenate, sides), good, jnp.ones(good.shape, bool), ~good)
        return weighted_total(response_loss(responses, spec))
    return weighted_total(preference_loss(pair, spec, mask, margin, wins_of(margin)))


def test_every_trl_loss_type_is_there():
    trl = (
        "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
        "sigmoid_norm kto apo_zero_unpaired bco"
    )
    assert set(trl.split()) <= set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_table_names_exactly_the_keywords_of_the_function(name):
    row = LOSSES[name]
    given = {"pair"} if row.unit == "pair" else {"logps", "ref_logps", "desirable"}
    assert set(inspect.signature(row.function).parameters) == {*given, *row.knobs, *row.inputs}


def test_mixture_is_the_weighted_sum_of_means(appendix_a):
    pair = appendix_a()
    spec = PreferenceLoss(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])  # MPO
    terms = preference_loss(pair, spec)
    assert [(term.name, term.coefficient) for term in terms] == [("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0)]
    np.testing.assert_allclose(terms[2].weights, pair.chosen_len)
    np.testing.assert_allclose(weighted_total(terms), 0.8 * 0.626166 + 0.2 * 1.309203 + 37 / 17, rtol=1e-5)


def test_rpo_adds_alpha_times_the_token_mean_nll(appendix_a):
    pair = appendix_a()
    plain = total(pair, PreferenceLoss())
    for alpha in (0.0, 0.005, 1.0):
        rpo = total(pair, PreferenceLoss(("sigmoid", "sft"), (1.0, alpha)))
        np.testing.assert_allclose(rpo - plain, alpha * 37 / 17, atol=1e-6)


def test_loss_weights_have_an_effect_and_default_to_one(appendix_a):
    pair = appendix_a()
    np.testing.assert_allclose(
        total(pair, PreferenceLoss("hinge", (3.0,))), 3 * total(pair, PreferenceLoss("hinge")), rtol=1e-6
    )
    assert PreferenceLoss(("sigmoid", "sft")).weights == (1.0, 1.0)


@quick_jit
def every_loss(pair, mask, margin):
    """Total, term and gradient of each loss type, compiled together."""

    def one(spec):
        def value(pair):
            (term,) = preference_loss(pair, spec, mask, margin, wins_of(margin))
            return weighted_total([term]), (term.values, term.weights)

        return jax.value_and_grad(value, has_aux=True)(pair)

    return {spec.loss_type: one(spec) for spec in EVERY}


FAR = np.array([0, 1, 5, 20, 38, 40, 44, 60, 80, 89, 130, 200], np.float32)
MAPS = [("reverse_kl", None), ("forward_kl", None), ("js_divergence", None),
        *(("alpha_divergence", coef) for coef in (-1.0, 0.0, 0.5, 0.9, 2.0))]


@pytest.mark.longer
@pytest.mark.parametrize(("name", "divergence", "coef"), [
    (name, *mapped) for name, loss in PAIRED.items() for mapped in (MAPS if "divergence" in loss.knobs else MAPS[:1])])
def test_values_and_gradients_are_finite_at_any_log_ratio(name, divergence, coef):
    chosen, rejected = map(np.ravel, np.meshgrid([*-FAR, *FAR], [*-FAR, *FAR]))
    knobs = {} if divergence == "reverse_kl" else {"f_divergence_type": divergence}
    knobs |= {} if coef in (None, 0.5) else {"f_alpha_divergence_coef": coef}
    spec = PreferenceLoss(name, **knobs, **VALID.get(name, {}))

    @quick_jit
    def found(chosen, rejected, length):
        def values(sides):
            known = jnp.full_like(chosen, -250)
            pair = PairLogps(known + sides[0], known + sides[1], known, known, *2 * [jnp.full_like(chosen, length)])
            margin = jnp.ones_like(chosen)
            (term,) = preference_loss(pair, spec, margin=margin, wins=wins_of(margin))
            return jnp.sum(term.values), term.values

        return jax.grad(values, has_aux=True)((chosen, rejected))

    for length in (1.0, 10.0):
        for array in jax.tree.leaves(found(chosen, rejected, length)):
            assert np.isfinite(array).all()


@pytest.mark.parametrize("loss", ["ipo", "ipo_sum"])
def test_squares_are_squares_below_their_cap(loss):
    u = np.linspace(-38, 3, 9)
    ones, zeros = np.ones(9, np.float32), np.zeros(9, np.float32)
    (term,) = preference_loss(PairLogps(u.astype(np.float32), zeros, zeros, zeros, ones, ones),
                              PreferenceLoss(loss, f_divergence_type="forward_kl"))
    s = -np.exp(-u)
    np.testing.assert_allclose(term.values, (s + 1 - 5) ** 2, rtol=2e-5)


@pytest.mark.parametrize("loss", ["nca_pair", "bco_pair", "sppo_hard", "sppo", "apo_down", "apo_zero", "aot"])
def test_a_loss_that_reads_one_ratio_by_itself_takes_no_divergence(loss):
    """As in TRL 1.16: a map is known up to a constant, which only a difference does not see."""
    with pytest.raises(ValueError, match="f_divergence_type='forward_kl' has no effect"):
        PreferenceLoss(loss, f_divergence_type="forward_kl")


@pytest.mark.parametrize("loss", ["sft", "raft"])
def test_a_likelihood_is_of_all_tokens_alike(loss, appendix_a):
    weighted = appendix_a()
    whole = weighted._replace(chosen=weighted.chosen * 1.5 - 1.0)
    mixed = preference_loss(weighted, PreferenceLoss(("sigmoid", loss)), unweighted=whole)
    (alone,), (sigmoid,) = (preference_loss(pair, PreferenceLoss(name)) for pair, name in (
        (whole, loss), (weighted, "sigmoid")))
    np.testing.assert_array_equal(mixed[0].values, sigmoid.values)
    np.testing.assert_array_equal(mixed[1].values, alone.values)


@pytest.mark.longer
def test_padded_pairs_change_nothing(appendix_a):
    mask = jnp.arange(81) % 27 == 1  # pairs 1, 28 and 55
    junk = jnp.resize(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -1e30, 0.0]), 81)

    def padded(x):
        return jnp.where(mask, jnp.repeat(x, 27), junk)

    plain = every_loss(appendix_a(), jnp.ones(3, bool), MARGIN)
    wide = every_loss(PairLogps(*map(padded, appendix_a())), mask, padded(MARGIN))
    for name, ((value, (values, weights)), grads) in wide.items():
        (plain_value, _), plain_grads = plain[name]
        np.testing.assert_allclose(value, plain_value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            jnp.stack(grads)[:, mask], jnp.stack(plain_grads), rtol=1e-5, atol=1e-7, err_msg=name
        )
        assert not np.any(jnp.stack(grads)[:, ~mask]), name
        assert not np.any(values[~mask]), name
        assert not np.any(weights[~mask]), name


def test_a_batch_of_padding_is_zero(appendix_a):
    value, grads = jax.value_and_grad(total)(appendix_a(), PreferenceLoss(("sigmoid", "sft")), jnp.zeros(3, bool))
    assert value == 0.0
    assert not np.any(jnp.stack(grads))


def grid(*logps):
    """Every combination of four log-probabilities, one token each."""
    rows = jnp.stack(jnp.meshgrid(*[jnp.asarray(logps)] * 4)).reshape(4, -1)
    return PairLogps(*rows, *jnp.ones((2, rows.shape[1])))


@pytest.mark.longer
def test_gradients_are_finite_for_log_probabilities_up_to_ten_thousand():
    pair = grid(-1e4, -1.0, 0.0)
    for name, results in every_loss(pair, jnp.ones(81, bool), jnp.linspace(-1e4, 1e4, 81)).items():
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(results)), name


@pytest.mark.longer
def test_gradients_of_mapped_ratios_are_finite():
    specs = [
        PreferenceLoss(name, f_divergence_type=divergence)
        for name in ("sigmoid", "discopop")
        for divergence in DIVERGENCES
    ]
    pair = grid(-1e4, -60.0, -1.0, 0.0)
    results = quick_jit(lambda p: [jax.value_and_grad(total)(p, spec, None, None) for spec in specs])(pair)
    for spec, result in zip(specs, results, strict=True):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result)), spec


KNOBS = {
    "beta": 0.2,
    "label_smoothing": 0.2,
    "f_divergence_type": "js_divergence",
    "discopop_tau": 0.5,
    "simpo_gamma": 1.5,
    "alphapo_alpha": 0.5,
    "desirable_weight": 2.0,
    "undesirable_weight": 0.5,
}


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_changes_every_loss_that_reads_it_and_is_refused_by_every_other(knob, appendix_a):
    declared = "divergence" if knob == "f_divergence_type" else knob
    pair = appendix_a()
    for name, row in LOSSES.items():
        change = {**VALID.get(name, {}), knob: KNOBS[knob]}
        if declared in row.knobs:
            before, after = (total(pair, PreferenceLoss(name, **k)) for k in (VALID.get(name, {}), change))
            assert abs(before - after) > 1e-4, name
        else:
            with pytest.raises(ValueError, match=rf"{knob}=.* has no effect on loss_type={name}. .*reads it: "):
                PreferenceLoss(name, **change)


def test_every_knob_is_covered_by_the_test_above():
    fields = {field.name for field in dataclasses.fields(PreferenceLoss)}
    assert fields == {"loss_type", "loss_weights", "f_alpha_divergence_coef", *KNOBS}


def test_alpha_coefficient_has_an_effect_under_its_divergence_only(appendix_a):
    first, second = (
        total(appendix_a(), PreferenceLoss(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=coef))
        for coef in (0.5, 0.3)
    )
    assert abs(first - second) > 1e-3
    with pytest.raises(ValueError, match=r"coef=0.3 has no effect with f_divergence_type='reverse_kl'"):
        PreferenceLoss(f_alpha_divergence_coef=0.3)
    with pytest.raises(ValueError, match=r"coef=0.3 has no effect on loss_type=sft"):
        PreferenceLoss("sft", f_alpha_divergence_coef=0.3)


def test_a_knob_needs_one_reader_in_a_mixture():
    assert PreferenceLoss(("simpo", "sft"), simpo_gamma=1.0).simpo_gamma == 1.0


def test_old_name_is_taken_and_said():
    with pytest.warns(UserWarning, match="'aot_pair' is now called 'aot_unpaired'") as record:
        spec = PreferenceLoss("aot_pair")
    assert spec.loss_type == "aot_unpaired"
    assert record[0].filename == __file__


def test_lists_become_tuples_so_that_a_specification_hashes():
    spec = PreferenceLoss(["sigmoid", "sft"], [1.0, 0.5])
    assert spec == PreferenceLoss(("sigmoid", "sft"), (1.0, 0.5))
    assert hash(spec) == hash(dataclasses.replace(spec))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_type": "sigmiod"}, r"'sigmiod' is not a known loss. Did you mean 'sigmoid'\? Known: sigmoid, "),
        ({"loss_type": "xyzzy"}, r"'xyzzy' is not a known loss. Known: "),
        ({"loss_type": ()}, "names no loss"),
        ({"loss_type": ("sft", "sft")}, "repeats a loss"),
        ({"loss_weights": (1.0, 2.0)}, r"2 numbers for 1 loss types \(sigmoid\).* one for each"),
        ({"loss_weights": (float("nan"),)}, "loss_weights = .*; it must be at least"),
        ({"beta": 0.0}, "beta = 0.0; it must be greater than 0"),
        ({"loss_type": "discopop", "discopop_tau": -1.0}, "discopop_tau = -1.0; it must be greater than 0"),
        ({"label_smoothing": 0.7}, "label_smoothing=0.7 is the share of flipped labels.*Swap"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1; it must be at least 0"),
        ({"loss_type": "exo_pair"}, "label_smoothing=0.0 makes exo_pair infinite.*1e-3"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "divide by 1 - 2e = 0.*below 0.5"),
        ({"loss_type": "alphapo"}, "alphapo_alpha=0.0 divides by zero.*simpo"),
        ({"f_divergence_type": "kl"}, "not a known divergence"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        PreferenceLoss(**arguments)


def test_margin_aware_losses_ask_for_their_margin(appendix_a):
    spec = PreferenceLoss(("rev_kl", "sft"))
    assert spec.needs_margin
    with pytest.raises(ValueError, match=r"loss_type=rev_kl takes soft labels.*margin is None.*'sigmoid'"):
        preference_loss(appendix_a(), spec)


def test_needs_reference_follows_the_mixture():
    assert PreferenceLoss(("sft", "sigmoid")).needs_reference
    assert not PreferenceLoss(("cpo", "sft")).needs_reference
    assert not PreferenceLoss(("cpo", "sft")).needs_margin


def test_sums_and_weights_add_up_over_micro_batches(appendix_a):
    pair, spec = appendix_a(), PreferenceLoss(("sigmoid", "sft"))
    whole = preference_loss(pair, spec)
    parts = [preference_loss(PairLogps(*(x[i : i + 1] for x in pair)), spec) for i in range(3)]
    for k, term in enumerate(whole):
        pieces = [(part[k].values * part[k].weights, part[k].weights) for part in parts]
        mean = sum(v.sum() for v, _ in pieces) / sum(w.sum() for _, w in pieces)
        np.testing.assert_allclose(weighted_total([term]), mean, rtol=1e-6)


def test_sppo_is_its_hard_form_where_one_side_always_wins(appendix_a):
    pair, ones = appendix_a(), jnp.ones(3)
    (soft,) = preference_loss(pair, PreferenceLoss("sppo"), wins=(ones, 0 * ones))
    (hard,) = preference_loss(pair, PreferenceLoss("sppo_hard"))
    np.testing.assert_allclose(soft.values, hard.values, rtol=1e-6)


def test_sppo_vanishes_where_each_log_ratio_is_what_its_win_rate_asks_for():
    chosen, rejected = np.float32([4.0, 1.0]), np.float32([-3.0, 0.0])  # (p - 1/2) / b at p = 0.9, 0.6 and 0.2, 0.5
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    pair = PairLogps(chosen, rejected, zeros, zeros, ones, ones)
    (term,) = preference_loss(pair, PreferenceLoss("sppo"), wins=(np.float32([0.9, 0.6]), np.float32([0.2, 0.5])))
    np.testing.assert_allclose(term.values, 0.0, atol=1e-10)


def test_sppo_asks_for_win_rates(appendix_a):
    assert PreferenceLoss("sppo").needs_wins
    with pytest.raises(ValueError, match=r"loss_type=sppo reads how probably .*wins is None.*'sppo_hard'"):
        preference_loss(appendix_a(), PreferenceLoss("sppo"))
    with pytest.raises(ValueError, match=r"rejected_win has shape \[2\]"):
        preference_loss(appendix_a(), PreferenceLoss("sppo"), wins=(jnp.ones(3), jnp.ones(2)))
