"""Sampling rules against a sorted reference, and drawn frequencies against the softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_jax.sampling.rules import Rules, _categorical, drawn, kept_tokens, sample_token, token_key

keep, draw, sample = jax.jit(kept_tokens), jax.jit(partial(_categorical, weight=jnp.exp)), jax.jit(sample_token)
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def make_rules(rows, **values):
    values = {**OFF, **values}
    dtypes = {"top_k": jnp.int32}
    return Rules(**{name: jnp.broadcast_to(jnp.asarray(value, dtypes.get(name, jnp.float32)), (rows,))
                    for name, value in values.items()})


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def kept_by_sorting(logits, top_k, top_p, min_p):
    """The set top-k, then top-p over what is left, then min-p keep; None where rounding decides the edge."""
    order = np.argsort(-logits, kind="stable")
    kept = list(order[:top_k] if top_k else order)
    if top_k and top_k < len(order):  # ties with the last one stay
        kept += [i for i in order[top_k:] if logits[i] == logits[kept[-1]]]
    if top_p < 1:
        probs = softmax(logits[kept])
        sums = np.cumsum(probs)
        if np.abs(sums - top_p).min() < 1e-4:
            return None
        count = int(np.argmax(sums >= top_p)) + 1
        kept = [i for i in kept if logits[i] >= logits[kept[count - 1]]]
    if min_p > 0:
        ratios = np.exp(logits - logits.max())
        if np.abs(ratios - min_p).min() < 1e-4 * min_p:
            return None
        kept = [i for i in kept if ratios[i] >= min_p]
    return set(map(int, kept))


logit_lists = st.lists(st.integers(-40, 40), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(whole=logit_lists, top_k=st.integers(0, 45), top_p=st.floats(0.05, 1.0), min_p=st.floats(0.0, 0.9),
       scale=st.sampled_from([0.11, 0.37, 1.0]))
def test_filters_keep_exactly_the_set_a_sorted_reference_keeps(whole, top_k, top_p, min_p, scale):
    vocab = 40  # one shape, one compilation: unused places are far below everything
    logits = np.full(vocab, -1000, np.float32)
    logits[: len(whole)] = np.array(whole, np.float32) * np.float32(scale)
    expected = kept_by_sorting(logits.astype(np.float64), min(top_k, len(whole)), top_p, min_p)
    assume(expected is not None)
    kept = np.asarray(keep(logits[None], make_rules(1, top_k=min(top_k, len(whole)), top_p=top_p, min_p=min_p)))[0]
    if not top_k and top_p == 1 and min_p == 0:
        assert kept.all()
    else:
        used = set(np.flatnonzero(kept).tolist())
        assert used & set(range(len(whole))) == expected & set(range(len(whole)))


@pytest.mark.parametrize(("values", "expected"), [
    ({"top_k": 2}, [1, 3]),
    ({"top_k": 1}, [3]),
    ({"top_p": 0.45}, [3]),
    ({"top_p": 0.55}, [1, 3]),
    ({"top_p": 0.85}, [0, 1, 3]),
    ({"min_p": 0.5}, [1, 3]),
    ({"min_p": 0.3}, [0, 1, 3]),
    ({"top_k": 2, "top_p": 0.6}, [3]),  # of the two left, 0.5 / 0.8 = 0.625 already passes 0.6
    ({"top_k": 3, "min_p": 0.5}, [1, 3]),
])
def test_filters_on_numbers_worked_by_hand(values, expected):
    logits = np.log(np.array([[0.16, 0.3, 0.04, 0.5]], np.float32))
    kept = np.asarray(keep(logits, make_rules(1, **values)))[0]
    assert np.flatnonzero(kept).tolist() == expected


def test_each_row_is_filtered_by_its_own_settings():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.16, 0.3, 0.04, 0.5])), (4, 4))
    kept = np.asarray(keep(logits, make_rules(4, top_k=[0, 1, 3, 0], top_p=[1.0, 1.0, 1.0, 0.55])))
    assert kept.sum(axis=-1).tolist() == [4, 1, 3, 2]


def test_ties_at_the_threshold_are_all_kept():
    logits = jnp.array([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert np.asarray(keep(logits, make_rules(1, top_k=2)))[0].tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("vocab", [3, 128, 129])
def test_temperature_zero_is_argmax_whatever_the_filters(vocab):
    logits = jax.random.normal(jax.random.key(vocab), (50, vocab)) * 3
    keys = jax.random.split(jax.random.key(1), 50)
    for values in ({}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.4}):
        token, _ = sample(keys, logits, make_rules(50, temperature=0.0, **values))
        np.testing.assert_array_equal(token, jnp.argmax(logits, axis=-1))


def chi_square_p(tokens, probs):
    """p-value of the counts of `tokens` against `probs`, cells below five expected draws put together."""
    expected = probs * len(tokens)
    counts = np.bincount(tokens, minlength=len(probs)).astype(float)
    rare = expected < 5
    cells = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    keep = cells[1] > 0
    return stats.chisquare(cells[0][keep], cells[1][keep]).pvalue


@pytest.mark.parametrize("vocab", [5, 128, 131])
def test_drawn_frequencies_match_the_softmax(vocab):
    logits = jax.random.normal(jax.random.key(7), (vocab,)) * 1.5
    draws = 5_000
    keys = jax.random.split(jax.random.key(1000 + vocab), draws)
    tokens = np.asarray(draw(keys, jnp.broadcast_to(logits, (draws, vocab))))
    assert chi_square_p(tokens, softmax(np.asarray(logits, np.float64))) > 1e-3


@pytest.mark.longer
@pytest.mark.parametrize("values", [{"temperature": 0.5}, {"temperature": 2.0, "top_k": 7}, {"top_p": 0.7},
                                    {"temperature": 0.7, "min_p": 0.2}])
def test_sampled_frequencies_match_the_filtered_tempered_softmax(values):
    vocab, draws = 150, 5_000
    logits = np.asarray(jax.random.normal(jax.random.key(2), (vocab,)) * 2, np.float64)
    values = {**OFF, **values}
    scaled = logits / values["temperature"]
    kept = kept_by_sorting(scaled, values["top_k"], values["top_p"], values["min_p"])
    probs = softmax(np.where([i in kept for i in range(vocab)], scaled, -np.inf))
    keys = jax.random.split(jax.random.key(1234), draws)
    tokens, _ = sample(keys, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, vocab)),
                       make_rules(draws, **values))
    assert set(np.asarray(tokens).tolist()) <= kept
    assert chi_square_p(np.asarray(tokens), probs) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 1.7])
def test_the_log_prob_is_the_models_own_at_temperature_one_without_filters(temperature):
    logits = jax.random.normal(jax.random.key(0), (64, 77)) * 4
    keys = jax.random.split(jax.random.key(1), 64)
    token, logp = sample(keys, logits, make_rules(64, temperature=temperature, top_k=5, top_p=0.8, min_p=0.01))
    expected = jax.nn.log_softmax(logits, axis=-1)[jnp.arange(64), token]
    np.testing.assert_allclose(logp, expected, atol=1e-5)


@pytest.mark.longer
@pytest.mark.parametrize("vocab", [3, 61, 129, 257])
def test_masked_tokens_and_padding_are_never_drawn(vocab, monkeypatch):
    """Uniform numbers at the very edges (0, the largest below 1, and every block boundary) still draw a live token."""
    draws = np.random.default_rng(vocab)
    logits = np.where(draws.random((64, vocab)) < 0.9, -np.inf, draws.normal(size=(64, vocab))).astype(np.float32)
    logits[:, draws.integers(vocab)] = 0.0
    for edge in (0.0, 1 - 2.0**-23, 0.5, 0.25):
        monkeypatch.setattr(jax.random, "uniform", lambda key, e=edge: jnp.float32(e))
        tokens = np.asarray(_categorical(jax.random.split(jax.random.key(0), 64), jnp.asarray(logits), jnp.exp))
        assert (tokens < vocab).all()
        assert np.isfinite(logits[np.arange(64), tokens]).all()


def test_a_token_key_depends_on_each_of_its_four_parts_and_on_nothing_else():
    def bits(seed, *parts):
        return jax.random.key_data(token_key(jax.random.key(seed), *map(jnp.uint32, parts))).tolist()

    base = bits(0, 5, 1, 2)
    assert base == bits(0, 5, 1, 2)
    assert all(base != other for other in (bits(1, 5, 1, 2), bits(0, 6, 1, 2), bits(0, 5, 2, 2), bits(0, 5, 1, 3)))
    assert bits(0, 5, 1, 2) != bits(0, 5, 2, 1)


@pytest.mark.longer
@pytest.mark.parametrize(("rules", "kept"), [
    ((0.5, 0, 1.0, 0.0), [0, 1, 2, 3]), ((1.0, 2, 1.0, 0.0), [0, 1]), ((2.0, 0, 1.0, 0.5), [0, 1, 2]),
    ((0.0, 0, 1.0, 0.0), [0])])
def test_what_a_token_was_drawn_from_by_hand(rules, kept):
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    weights = np.zeros(4)
    weights[kept] = np.exp(logits[kept] / (rules[0] or 1.0))
    probs = weights / weights.sum()
    given = Rules(*(jnp.full(4, value) for value in rules))
    found = drawn(jnp.tile(logits, (4, 1)), jnp.arange(4), given)
    np.testing.assert_allclose(found.logp, logits, rtol=1e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.drawn_logp, np.log(probs), rtol=1e-5)
    scaled = logits / (rules[0] or 1.0)
    np.testing.assert_allclose(found.tempered_logp, scaled - np.log(np.sum(np.exp(scaled))), rtol=1e-5)
    entropy = -sum(p * np.log(p) for p in probs[kept])
    np.testing.assert_allclose(found.expected, -entropy, atol=1e-6)
    if rules[1:] == (0, 1.0, 0.0):
        plain = drawn(jnp.tile(logits, (4, 1)), jnp.arange(4), given, filtered=False)
        np.testing.assert_allclose(plain, found, rtol=1e-5, atol=1e-6)
