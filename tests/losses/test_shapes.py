"""Arrays of unlike shapes are refused by every loss, by name; nothing is broadcast."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses
from rlhf_jax.losses import LOSSES, PairLogps, PreferenceLoss

N = 4
ROW, COLUMN = jnp.linspace(-3.0, -1.0, N), jnp.linspace(-3.0, -1.0, N)[:, None]
PAIR = PairLogps(ROW, ROW - 1, ROW - 0.5, ROW - 0.7, jnp.full(N, 5.0), jnp.full(N, 7.0))
PAIRED = [name for name, loss in LOSSES.items() if loss.unit == "pair"]
KNOBS = {"exo_pair": {"label_smoothing": 0.1}, "alphapo": {"alphapo_alpha": 0.25}}


def call(name, pair, **more):
    inputs = {key: jnp.ones(N, bool) if key == "mask" else ROW for key in LOSSES[name].inputs}
    return LOSSES[name].function(pair, **{**inputs, **KNOBS.get(name, {}), **more})


@pytest.mark.parametrize("name", PAIRED)
def test_a_pair_of_unlike_shapes_is_refused_by_every_loss(name):
    assert call(name, PAIR).shape == (N,)
    for field in PairLogps._fields:
        for odd in (getattr(PAIR, field)[:, None], getattr(PAIR, field)[:-1], jnp.float32(1.0)):
            with pytest.raises(ValueError, match=f"{name}_loss: .*has shape .* give arrays of one shape"):
                call(name, PAIR._replace(**{field: odd}))
    with pytest.raises(ValueError, match=rf"{name}_loss: chosen has shape \[4, 1\]; it is \[N\]"):
        call(name, PairLogps(*(x[:, None] for x in PAIR)), **dict.fromkeys(LOSSES[name].inputs, COLUMN))
    for key in LOSSES[name].inputs:
        with pytest.raises(ValueError, match=f"{name}_loss: {key} has shape"):
            call(name, PAIR, **{key: COLUMN})


@pytest.mark.parametrize("name", [name for name in PAIRED if "mask" not in LOSSES[name].inputs])
def test_a_loss_may_be_mapped_over_pairs(name):
    inputs = dict.fromkeys(LOSSES[name].inputs, ROW)
    mapped = jax.vmap(lambda pair, more: LOSSES[name].function(pair, **more, **KNOBS.get(name, {})))(PAIR, inputs)
    np.testing.assert_allclose(mapped, call(name, PAIR), rtol=1e-6)


@pytest.mark.parametrize(("function", "arguments"), [
    (losses.bradley_terry, ("chosen", "rejected", "margin")), (losses.logexp, ("chosen", "rejected")),
    (losses.centering, ("chosen", "rejected")), (losses.binary_cross_entropy, ("logits", "labels")),
    (losses.pairwise_preference, ("logit_a", "logit_b")), (losses.squared_error, ("outputs", "ratings")),
    (losses.average_orders, ("p_ab", "p_ba")), (losses.kl_k1, ("logps", "ref_logps")),
    (losses.kl_k2, ("logps", "ref_logps")), (losses.kl_k3, ("logps", "ref_logps")),
    (losses.kl_exact, ("logits", "ref_logits")), (losses.kto_baseline, ("logps", "ref_logps", "mask")),
    (losses.kto_loss, ("logps", "ref_logps", "desirable")), (losses.bco_loss, ("logps", "ref_logps", "desirable")),
    (losses.apo_zero_unpaired_loss, ("logps", "ref_logps", "desirable")),
], ids=lambda x: getattr(x, "__name__", None))
def test_losses_of_scores_and_of_single_responses_refuse_unlike_shapes(function, arguments):
    boolean = ("mask", "desirable")
    scalars = {name: jnp.float32(0.1) for name in ("baseline", "shift")
               if name in inspect.signature(function).parameters}
    good = {name: ROW > -2 if name in boolean else ROW for name in arguments} | scalars
    function(**good)
    for name in arguments:
        with pytest.raises(ValueError, match="give arrays of one shape"):
            function(**{**good, name: good[name][:, None]})
    for name in scalars:
        with pytest.raises(ValueError, match=rf"{name} has shape \[4\]; it is a scalar"):
            function(**{**good, name: ROW})


def test_single_responses_of_unlike_shapes_are_refused_whatever_the_loss():
    good = losses.Responses(ROW, ROW - 1, ROW > -2, jnp.ones(N, bool), jnp.zeros(N, bool))
    for name in LOSSES.keys() - PAIRED:
        assert losses.response_loss(good, PreferenceLoss(name))[0].values.shape == (N,)
        for field in good._fields:
            with pytest.raises(ValueError, match=r"response_loss: .* give arrays of one shape"):
                losses.response_loss(good._replace(**{field: getattr(good, field)[:, None]}), PreferenceLoss(name))
    with pytest.raises(ValueError, match=r"bco_shift: .* give arrays of one shape"):
        losses.bco_shift(ROW, COLUMN > -2, good.mask)


def test_helpers_and_mixtures_refuse_them_too():
    odd = PAIR._replace(rejected=COLUMN)
    for function in (losses.log_ratios, losses.implicit_rewards):
        with pytest.raises(ValueError, match=f"{function.__name__}: rejected has shape"):
            function(odd)
    spec = PreferenceLoss(("sigmoid", "sft"))
    for given in ({"pair": odd}, {"pair": PAIR, "mask": jnp.ones((N, 1), bool)}, {"pair": PAIR, "margin": COLUMN}):
        with pytest.raises(ValueError, match=r"preference_loss: .* has shape \[4, 1\]"):
            losses.preference_loss(**given, spec=spec)


def summed(pair):
    """A loss of a user's own that forgets the pairs."""
    return jnp.sum(pair.chosen)


def test_a_loss_of_ones_own_gives_one_value_per_pair(monkeypatch):
    monkeypatch.setattr("rlhf_jax.losses.registry.load_function", lambda name: summed)
    with pytest.raises(ValueError, match=r"loss_type 'mine:summed': what it returned has shape \[\]"):
        losses.preference_loss(PAIR, PreferenceLoss("mine:summed"))


@pytest.mark.parametrize("function", [losses.token_logps, losses.token_logps_and_stats])
def test_token_logps_refuse_what_does_not_fit(function):
    hidden, head, targets = jnp.ones((2, 3, 4)), jnp.ones((8, 4)), jnp.ones((2, 3), jnp.int32)
    function(hidden, head, targets)
    for odd in ((hidden, head.T, targets), (hidden, head, targets[..., None]), (hidden[0], head, targets),
                (hidden, head, targets[:, :-1]), (hidden, head[None], targets)):
        with pytest.raises(ValueError, match=r"hidden has shape .* they are \[..., M, D\]"):
            function(*odd)
    with pytest.raises(ValueError, match="targets are float32; token ids are integers"):
        function(hidden, head, targets.astype(jnp.float32))
