"""Prefill and decode, two pure functions over the trainer's parameter tree.

P prompt slots hold one prompt each; every slot has n lanes, one running continuation each. A prompt's keys and values
exist once and are read by its n lanes. The last prompt token is not prefilled: every lane feeds it as its first
token, so that drawing the first token of a response is no special case.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from rlhf_jax.models import DecoderConfig, Params, forward, vocab_logits
from rlhf_jax.models.attention import attention, decode_attention, of_kind, packed_mask, score_rule
from rlhf_jax.models.decoder import Constrain, unconstrained
from rlhf_jax.sampling.rules import Rules, sample_token, token_key


@struct.dataclass
class DecodeState:
    """All that decoding carries. P slots, n lanes, S prompt capacity, U response capacity.

    prompt_k: [L, P, K, Dh, S]. prompt_v: [L, P, K, S, Dh]. suffix_k: [L, P, n, K, Dh, U].
    suffix_v: [L, P, n, K, U, Dh]. Laid out as the products with them read them.
    prompt_length: [P] tokens in the prompt cache (the prompt less its last token). prompt_hash: [P] uint32.
    sample: [P, n] index of the sample a lane works on. token: [P, n] next token to feed.
    count: [P, n] tokens generated. limit: [P, n] the most it may generate. active: [P, n] bool.
    out: [P, n, U] generated ids. logps: [P, n, U] float32. rules: arrays [P, n].
    """

    prompt_k: Any
    prompt_v: Any
    suffix_k: Any
    suffix_v: Any
    prompt_length: Any
    prompt_hash: Any
    sample: Any
    token: Any
    count: Any
    limit: Any
    active: Any
    out: Any
    logps: Any
    rules: Rules


@struct.dataclass
class Refill:
    """What changes between two blocks: new prompts for some slots, new samples for some lanes.

    slots: [F] int32 slot of each new prompt, P (out of range) for none. tokens: [F, S + 1] the prompts, right-padded.
    lengths: [F] prompt lengths, last token included. hashes: [F] uint32.
    restart: [P, n] bool lanes that begin a new sample. last_token: [P] last prompt token of each slot.
    sample, limit: [P, n]. rules: arrays [P, n].
    """

    slots: Any
    tokens: Any
    lengths: Any
    hashes: Any
    restart: Any
    last_token: Any
    sample: Any
    limit: Any
    rules: Rules


def empty_state(config: DecoderConfig, slots: int, lanes: int, prompt_capacity: int, response_capacity: int,
                dtype: Any) -> DecodeState:
    """Nothing running; caches in `dtype`."""
    c = config
    prompt = jnp.zeros((c.layers, slots, c.kv_heads, prompt_capacity, c.head_dim), dtype)
    suffix = jnp.zeros((c.layers, slots, lanes, c.kv_heads, response_capacity, c.head_dim), dtype)
    prompt_k, suffix_k = jnp.swapaxes(prompt, -1, -2), jnp.swapaxes(suffix, -1, -2)
    zeros = jnp.zeros((slots, lanes), jnp.int32)
    floats = jnp.zeros((slots, lanes), jnp.float32)
    return DecodeState(
        prompt_k=prompt_k, prompt_v=prompt, suffix_k=suffix_k, suffix_v=suffix,
        prompt_length=jnp.zeros(slots, jnp.int32), prompt_hash=jnp.zeros(slots, jnp.uint32),
        sample=zeros, token=zeros, count=zeros, limit=zeros, active=jnp.zeros((slots, lanes), bool),
        out=jnp.zeros((slots, lanes, response_capacity), jnp.int32),
        logps=jnp.zeros((slots, lanes, response_capacity), jnp.float32),
        rules=Rules(floats, zeros, floats, floats),
    )


def prefill(params: Params, config: DecoderConfig, state: DecodeState, refill: Refill,
            constrain: Constrain = unconstrained) -> DecodeState:
    """Computes the keys and values of new prompts into their slots and restarts lanes.

    `refill.tokens` may be narrower than the slots are deep: as wide as the longest of these prompts needs.
    """
    tokens = refill.tokens[:, :-1]  # the prompt cache holds all but the last token, which the lanes feed
    count, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    present = (positions < refill.lengths[:, None] - 1).astype(jnp.int32)
    masks = [packed_mask(present, jnp.zeros_like(present), positions, window) for window in (config.window, None)]

    def attend(q: Array, k: Array, v: Array, cache: Any, local: bool | Array) -> tuple[Array, tuple[Array, Array]]:
        del cache
        return attention(q, k, v, of_kind(local, *masks), **score_rule(config)), (k, v)

    _, (keys, values) = forward(params, config, tokens, positions, attend, constrain=constrain)  # [L, F, width, K, Dh]
    keys, values = jnp.transpose(keys, (0, 1, 3, 4, 2)), jnp.swapaxes(values, 2, 3)
    new_k, new_v = (x.astype(state.prompt_k.dtype) for x in (keys, values))
    state = dataclasses.replace(
        state,
        prompt_k=state.prompt_k.at[:, refill.slots, :, :, :width].set(new_k, mode="drop"),
        prompt_v=state.prompt_v.at[:, refill.slots, :, :width].set(new_v, mode="drop"),
        prompt_length=state.prompt_length.at[refill.slots].set(refill.lengths - 1, mode="drop"),
        prompt_hash=state.prompt_hash.at[refill.slots].set(refill.hashes, mode="drop"),
    )
    return restart(state, refill)


def restart(state: DecodeState, refill: Refill) -> DecodeState:
    """Lanes begin new samples of the prompts their slots hold; nothing is computed."""

    def lanes(new: Array, old: Array) -> Array:
        return jnp.where(refill.restart, new, old)

    return dataclasses.replace(
        state,
        sample=lanes(refill.sample, state.sample),
        token=lanes(refill.last_token[:, None], state.token),
        count=lanes(jnp.zeros_like(state.count), state.count),
        limit=lanes(refill.limit, state.limit),
        active=state.active | refill.restart,
        rules=jax.tree.map(lanes, refill.rules, state.rules),
    )


class View(NamedTuple):
    """How much of the caches a block of decoding looks at: no prompt is longer, no lane will have written more."""

    prompt: int
    suffix: int


def _decode_one(params: Params, config: DecoderConfig, view: View, state: DecodeState, seed: Array, stop_ids: Array
                ) -> DecodeState:
    """Every active lane takes one token."""
    slots, lanes, capacity = state.out.shape
    position = state.prompt_length[:, None] + state.count  # [P, n]
    on_prompt = jnp.arange(view.prompt) < state.prompt_length[:, None]  # [P, S]
    on_suffix = jnp.arange(view.suffix) < state.count[..., None]  # [P, n, U]
    full = jnp.broadcast_to(on_prompt[:, None], (slots, lanes, view.prompt)), on_suffix
    windowed = full if config.window is None else (
        full[0] & (position[..., None] - jnp.arange(view.prompt) < config.window),
        full[1] & (state.count[..., None] - jnp.arange(view.suffix) < config.window))

    def attend(q: Array, k: Array, v: Array, cache: Any, local: bool | Array) -> tuple[Array, tuple[Array, Array]]:
        on_prompt, on_suffix = of_kind(local, windowed, full)
        prompt_k, prompt_v, suffix_k, suffix_v = cache
        out = decode_attention(
            q, k, v, prompt_k[..., : view.prompt], prompt_v[..., : view.prompt, :], on_prompt,
            suffix_k[..., : view.suffix], suffix_v[..., : view.suffix, :], on_suffix, **score_rule(config))
        return out, (k, v)

    cache = (state.prompt_k, state.prompt_v, state.suffix_k, state.suffix_v)
    hidden, (keys, values) = forward(params, config, state.token, position, attend, cache)
    logits = vocab_logits(params, config, hidden)
    keys_of = jax.vmap(jax.vmap(token_key, (None, None, 0, 0)), (None, 0, 0, 0))
    random_keys = keys_of(seed, state.prompt_hash, state.sample, state.count)
    token, logp = sample_token(random_keys, logits, state.rules)

    at_slot, at_lane = jnp.arange(slots)[:, None], jnp.arange(lanes)[None]
    place = jnp.where(state.active, state.count, capacity)  # idle lanes write nowhere
    new_k, new_v = (jnp.moveaxis(x, 0, 2).astype(state.suffix_k.dtype) for x in (keys, values))
    count = state.count + state.active.astype(jnp.int32)
    stopped = jnp.any(token[..., None] == stop_ids, axis=-1)
    return dataclasses.replace(
        state,
        # the order that indexing gives: [P, n, L, K, Dh]
        suffix_k=state.suffix_k.at[:, at_slot, at_lane, :, :, place].set(new_k, mode="drop"),
        suffix_v=state.suffix_v.at[:, at_slot, at_lane, :, place].set(new_v, mode="drop"),
        out=state.out.at[at_slot, at_lane, place].set(token, mode="drop"),
        logps=state.logps.at[at_slot, at_lane, place].set(logp, mode="drop"),
        token=jnp.where(state.active, token, state.token),
        count=count,
        active=state.active & ~stopped & (count < state.limit),
    )


def decode_block(params: Params, config: DecoderConfig, view: View, state: DecodeState, seed: Array, stop_ids: Array,
                 steps: int) -> DecodeState:
    """Up to `steps` tokens for every active lane; ends early once no lane is active.

    Args:
      view: of the caches, at least as deep as any lane gets within these steps.
      seed: typed PRNG key. stop_ids: [E] int32, -1 for unused places.
    """

    def going(carry: tuple[Array, DecodeState]) -> Array:
        return (carry[0] < steps) & jnp.any(carry[1].active)

    def body(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        return carry[0] + 1, _decode_one(params, config, view, carry[1], seed, stop_ids)

    return jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), state))[1]
