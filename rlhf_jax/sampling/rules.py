"""How the next token is drawn: temperature, top-k, top-p, min-p per row, without sorting the vocabulary.

All settings are arrays, one value per row, so no value of them compiles a new program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_BLOCK = 128


class Rules(NamedTuple):
    """Sampling settings, each [...] matching the rows.

    temperature: float32, 0 for greedy. top_k: int32, 0 for all. top_p: float32, 1 for all. min_p: float32, 0 for all.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


def token_key(seed: Array, prompt: Array, sample: Array, position: Array) -> Array:
    """The random key of one token: a function of what is sampled, never of who shares its batch.

    Args:
      seed: typed PRNG key of the run. prompt: uint32 hash of the prompt. sample: index among the prompt's samples.
      position: index of the token in the response.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(seed, prompt), sample), position)


def _ordered_bits(x: Array) -> Array:
    """uint32 keys that order like the float32 values."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(0x80000000))


def _largest_threshold(keys: Array, enough: Array, mass: Array) -> Array:
    """The largest key t for which sum(mass[keys >= t]) >= enough, by bisection over the 32 bits.

    Args:
      keys: [..., V] uint32. enough: [...] float32. mass: [..., V] float32, non-negative.
    """

    def step(bit: Array, threshold: Array) -> Array:
        candidate = threshold | (jnp.uint32(1) << (jnp.uint32(31) - bit.astype(jnp.uint32)))
        reached = jnp.sum(jnp.where(keys >= candidate[..., None], mass, 0.0), axis=-1)
        return jnp.where(reached >= enough, candidate, threshold)

    return jax.lax.fori_loop(0, 32, step, jnp.zeros(enough.shape, jnp.uint32))


def kept_tokens(logits: Array, rules: Rules) -> Array:
    """[..., V] bool, tokens that top-k, top-p and min-p leave; the most probable one always stays.

    Ties at the threshold are all kept. Filters apply one after the other, top-p to what top-k left.
    """
    keys = _ordered_bits(logits)
    vocab = logits.shape[-1]
    count = jnp.where(rules.top_k > 0, rules.top_k, vocab).astype(jnp.float32)
    keep = keys >= _largest_threshold(keys, count, jnp.ones_like(logits))[..., None]
    probs = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf), axis=-1)
    needed = jnp.where(rules.top_p < 1.0, rules.top_p, 0.0) * jnp.sum(probs, axis=-1)
    keep &= (keys >= _largest_threshold(keys, needed, probs)[..., None]) | (rules.top_p >= 1.0)[..., None]
    best = jnp.max(logits, axis=-1, keepdims=True)
    floor = best + jnp.log(jnp.maximum(rules.min_p, 1e-30))[..., None]
    keep &= (logits >= floor) | (rules.min_p <= 0.0)[..., None]
    return keep | (logits >= best)


def _categorical(keys: Array, values: Array, weight: Callable[[Array], Array]) -> Array:
    """Draws an index [...] with probability in proportion to weight(values [..., V]), from one uniform number per row:
    inverse CDF in two levels. The weights are never an array, so the values are read once."""
    vocab = values.shape[-1]
    blocks = -(-vocab // _BLOCK)
    weights = jnp.pad(weight(values), [(0, 0)] * (values.ndim - 1) + [(0, blocks * _BLOCK - vocab)])
    coarse = jnp.cumsum(jnp.sum(weights.reshape(*values.shape[:-1], blocks, _BLOCK), axis=-1), axis=-1)
    uniform = jax.random.uniform if keys.ndim == 0 else jax.vmap(jax.random.uniform)
    drawn = uniform(keys.reshape(-1) if keys.ndim else keys).reshape(keys.shape)
    goal = drawn * coarse[..., -1]
    block = jnp.argmax(coarse > goal[..., None], axis=-1)  # first block whose sum passes the goal
    places = block[..., None] * _BLOCK + jnp.arange(_BLOCK)
    inside = weight(jnp.take_along_axis(values, jnp.minimum(places, vocab - 1), axis=-1))
    inside = jnp.where(places < vocab, inside, 0.0)  # [..., 128]
    before = jnp.take_along_axis(coarse, block[..., None], axis=-1)[..., 0] - jnp.sum(inside, axis=-1)
    fine = jnp.cumsum(inside, axis=-1) + before[..., None]
    passed = (fine > goal[..., None]) & (inside > 0)
    last = _BLOCK - 1 - jnp.argmax(inside[..., ::-1] > 0, axis=-1)
    within = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    return (block * _BLOCK + within).astype(jnp.int32)


def sample_token(keys: Array, logits: Array, rules: Rules) -> tuple[Array, Array]:
    """Draws the next token of each row.

    Args:
      keys: [...] typed PRNG keys. logits: [..., V] float32. rules: arrays [...].

    Returns:
      token [...] int32, and its log-probability [...] float32 under the model itself (temperature 1, unfiltered).
    """
    greedy = rules.temperature <= 0.0
    temperature = jnp.where(greedy, 1.0, rules.temperature)[..., None]
    top = jnp.max(logits, axis=-1, keepdims=True)

    def weight(x: Array) -> Array:
        return jnp.exp((x - top) / temperature)

    def among_kept() -> Array:
        return _categorical(keys, jnp.where(kept_tokens(logits / temperature, rules), logits, -jnp.inf), weight)

    filtering = jnp.any((rules.top_k > 0) | (rules.top_p < 1.0) | (rules.min_p > 0.0))
    drawn = jax.lax.cond(filtering, among_kept, lambda: _categorical(keys, logits, weight))
    token = jax.lax.cond(  # XLA for CPUs takes as long for an argmax over the vocabulary as for all the rest of this
        jnp.any(greedy), lambda: jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn), lambda: drawn)
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, picked - jax.nn.logsumexp(logits, axis=-1)


class Drawn(NamedTuple):
    """How a token fits the distribution that it should have been drawn from; each [...] float32.

    logp: under the model itself. drawn_logp: in that distribution, -inf where a filter leaves the token out.
    expected: mean of drawn_logp over that distribution. tempered_logp: at the temperature, before the filters.
    """

    logp: Array
    drawn_logp: Array
    expected: Array
    tempered_logp: Array


def drawn(logits: Array, tokens: Array, rules: Rules, filtered: bool = True) -> Drawn:
    """What `sample_token` would have drawn tokens [...] from, at logits [..., V] float32; greedy rows from the best.

    filtered: whether the rules may leave tokens out; finding those takes time.
    """
    greedy = (rules.temperature <= 0.0)[..., None]
    scaled = logits / jnp.where(greedy, 1.0, rules.temperature[..., None])
    best = logits >= jnp.max(logits, axis=-1, keepdims=True)
    kept = jnp.where(greedy, best, kept_tokens(scaled, rules) if filtered else True)
    wanted = jax.nn.log_softmax(jnp.where(kept, scaled, -jnp.inf), axis=-1)
    expected = jnp.sum(jnp.where(kept, jnp.exp(wanted) * wanted, 0.0), axis=-1)

    def at(x: Array) -> Array:
        return jnp.take_along_axis(x, tokens[..., None], axis=-1)[..., 0]

    return Drawn(at(jax.nn.log_softmax(logits, axis=-1)), at(wanted), expected, at(jax.nn.log_softmax(scaled, axis=-1)))
