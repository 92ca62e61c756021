"""Prefill and decode, two pure functions over the trainer's parameter tree.

P prompt slots hold one prompt each; every slot has n lanes, one running continuation each. A prompt's keys and values
exist once and are read by its n lanes. The last prompt token is not prefilled: every lane feeds it as its first
token, so that drawing the first token of a response is no special case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from rlhf_jax.models import DecoderConfig, Params, forward, vocab_logits
from rlhf_jax.models.attention import (
    KeyValues,
    RowIds,
    Stored,
    attention,
    decode_attention,
    packed_mask,
    score_rule,
    select_windowed,
)
from rlhf_jax.models.decoder import Attend, Constrain, unconstrained
from rlhf_jax.sampling.cache import Caches, Spans, append_tokens, empty_cache, first, write_prompts, write_token
from rlhf_jax.sampling.pages import PAGE
from rlhf_jax.sampling.rules import Rules, sample_token, token_key

Append = Callable[..., KeyValues]
"""`append_tokens`, of pages `scatter_pages` or `store_pages`; or what does the same on a mesh."""
LanesAttention = Callable[..., Array]
"""`lanes.lanes_attention` or `paged.paged_lanes`; or what does the same on a mesh."""


@struct.dataclass
class DecodeState:
    """All that decoding carries. P slots, n lanes, S prompt capacity, U response capacity.

    prompt: caches of the prompts, k [L, P, K, Dh, S]. suffix: of the responses, k [L, P, n, K, Dh, U], or N
    pages of them, k [L, N, K, Dh, PAGE].
    prompt_length: [P] tokens in the prompt cache (the prompt less its last token). prompt_hash: [P] uint32.
    sample: [P, n] index of the sample a lane works on. token: [P, n] next token to feed.
    count: [P, n] tokens generated. limit: [P, n] the most it may generate. active: [P, n] bool.
    out: [P, n, U] generated ids. logps: [P, n, U] float32. rules: arrays [P, n].
    """

    prompt: KeyValues
    suffix: KeyValues
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
    running: [P, n] bool lanes at work from now on. restart: [P, n] bool those of them that begin a new sample.
    last_token: [P] last prompt token of each slot.
    sample, limit: [P, n]. rules: arrays [P, n].
    """

    slots: Any
    tokens: Any
    lengths: Any
    hashes: Any
    running: Any
    restart: Any
    last_token: Any
    sample: Any
    limit: Any
    rules: Rules


def empty_state(config: DecoderConfig, slots: int, lanes: int, prompt_capacity: int, response_capacity: int,
                dtype: Any, pages: int | None = None) -> DecodeState:
    """Nothing running; caches in `dtype`. pages: of the responses, None for room in each lane."""
    zeros = jnp.zeros((slots, lanes), jnp.int32)
    floats = jnp.zeros((slots, lanes), jnp.float32)
    return DecodeState(
        prompt=empty_cache(config, (slots,), prompt_capacity, dtype),
        suffix=(empty_cache(config, (slots, lanes), response_capacity, dtype) if pages is None
                else empty_cache(config, (pages,), PAGE, dtype)),
        prompt_length=jnp.zeros(slots, jnp.int32), prompt_hash=jnp.zeros(slots, jnp.uint32),
        sample=zeros, token=zeros, count=zeros, limit=zeros, active=jnp.zeros((slots, lanes), bool),
        out=jnp.zeros((slots, lanes, response_capacity), jnp.int32),
        logps=jnp.zeros((slots, lanes, response_capacity), jnp.float32),
        rules=Rules(floats, zeros, floats, floats),
    )


def prefill(params: Params, config: DecoderConfig, state: DecodeState, refill: Refill,
            constrain: Constrain = unconstrained) -> DecodeState:
    """Computes the keys and values of new prompts into their slots and restarts lanes.

    `refill.tokens` may be narrower than the slots are deep: as wide as the longest of these prompts needs. `constrain`
    cuts the prompts over devices, which nothing else asks for: they do not lie by slot.
    """
    tokens = refill.tokens[:, :-1]  # the prompt cache holds all but the last token, which the lanes feed
    count, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    present = (positions < refill.lengths[:, None] - 1).astype(jnp.int32)
    ids = RowIds(present, jnp.zeros_like(present), positions)
    masks = [packed_mask(ids, window) for window in (config.window, None)]

    def attend(q: Array, k: Array, v: Array, cache: Any, local: bool | Array) -> tuple[Array, tuple[Array, Array]]:
        del cache
        return attention(q, k, v, select_windowed(local, *masks), **score_rule(config)), (k, v)

    _, (keys, values) = forward(params, config, tokens, positions, attend, constrain=constrain)  # [L, F, width, K, Dh]
    state = dataclasses.replace(
        state,
        prompt=write_prompts(state.prompt, keys, values, refill.slots),
        prompt_length=state.prompt_length.at[refill.slots].set(refill.lengths - 1, mode="drop"),
        prompt_hash=state.prompt_hash.at[refill.slots].set(refill.hashes, mode="drop"),
    )
    return restart(state, refill)


def restart(state: DecodeState, refill: Refill) -> DecodeState:
    """Lanes begin new samples of the prompts their slots hold, or end; nothing is computed."""

    def lanes(new: Array, old: Array) -> Array:
        return jnp.where(refill.restart, new, old)

    return dataclasses.replace(
        state,
        sample=lanes(refill.sample, state.sample),
        token=lanes(refill.last_token[:, None], state.token),
        count=lanes(jnp.zeros_like(state.count), state.count),
        limit=lanes(refill.limit, state.limit),
        active=refill.running,
        rules=jax.tree.map(lanes, refill.rules, state.rules),
    )


class View(NamedTuple):
    """What a block of decoding looks at.

    prompt, suffix: depth of the caches; no prompt is longer, no lane has written more before this block.
    rows: lanes that each device computes, no fewer than are active there; None for all of them, idle ones included.
    ways: devices that the slots are cut over.
    """

    prompt: int
    suffix: int
    rows: int | None = None
    ways: int = 1


class _Rows(NamedTuple):
    """The lanes at work in a block, as A rows, as many of each device: the model computes rows, and so does attention
    over pages; without pages attention looks at the grid [P, n] of lanes.

    pick: [W, A / W] places of each device's rows in its part of the grid laid flat, in rising order, its end for none.
    shape: (P, n).
    """

    pick: Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, active: Array, view: View) -> _Rows:
        (slots, lanes), flat = active.shape, active.reshape(view.ways, -1)
        size = flat.shape[1]
        if view.rows is None:
            return cls(jnp.broadcast_to(jnp.arange(size), flat.shape), (slots, lanes))
        find = partial(jnp.nonzero, size=view.rows, fill_value=size)
        return cls(jax.vmap(lambda here: find(here)[0])(flat), (slots, lanes))

    @property
    def _here(self) -> int:
        """Lanes of a device."""
        return self.shape[0] * self.shape[1] // self.pick.shape[0]

    @property
    def all(self) -> bool:
        return self.pick.shape[1] == self._here

    def firsts(self) -> Array | None:
        """[P + W] each device's slots' first rows there, and their end; None where every lane is a row."""
        bounds = jnp.arange(0, self._here + 1, self.shape[1])
        found = jax.vmap(lambda here: jnp.searchsorted(here, bounds))(self.pick)
        return None if self.all else found.reshape(-1).astype(jnp.int32)

    def places(self) -> tuple[Array, Array]:
        """[A] slot and lane of each row; a slot of P for none."""
        start = jnp.arange(self.pick.shape[0])[:, None] * self._here
        place = jnp.where(self.pick < self._here, start + self.pick, self.shape[0] * self.shape[1]).reshape(-1)
        return place // self.shape[1], place % self.shape[1]

    def working(self, active: Array) -> Array:
        """[A] bool, rows that are an active lane of the grid."""
        return self.take(active) & (self.pick < self._here).reshape(-1)

    def take(self, grid: Array) -> Array:
        """[P, n, ...] -> [A, ...]."""
        flat = grid.reshape(*self.pick.shape[:1], self._here, *grid.shape[2:])
        if not self.all:
            flat = jax.vmap(partial(jnp.take, axis=0, mode="clip"))(flat, self.pick)
        return flat.reshape(-1, *grid.shape[2:])

    def spread(self, rows: Array) -> Array:
        """[A, ...] -> [P, n, ...], zeros where no row is."""
        if not self.all:
            by_way = rows.reshape(*self.pick.shape, *rows.shape[1:])
            empty = jnp.zeros((self._here, *rows.shape[1:]), rows.dtype)
            rows = jax.vmap(lambda x, at: empty.at[at].set(x, mode="drop"))(by_way, self.pick)
        return rows.reshape(*self.shape, *rows.shape[1 if self.all else 2:])


class _Block(NamedTuple):
    """What stays the same in a block of decoding.

    written: [P, n] tokens that lanes have in the suffix cache. The block's own tokens are kept apart, all lanes' at one
    place, and appended at its end: caches are read at every token and written once a block.
    paged: what attends where responses lie in pages, None where each lane has room. table: [A, J] int32, pages of the
    rows. firsts: of `_Rows`.
    """

    view: View
    rows: _Rows
    written: Array
    seed: Array
    stop_ids: Array
    paged: LanesAttention | None
    table: Array | None
    firsts: Array | None


def _spans(config: DecoderConfig, block: _Block, state: DecodeState, step: Array) -> tuple[Spans, Spans]:
    """What rows at work see, in layers with the window and in those without."""
    prompt = jnp.broadcast_to(state.prompt_length[:, None], state.count.shape)
    prompt, written, count = map(block.rows.take, (prompt, block.written, state.count))
    working = block.rows.working(state.active)
    starts, counts = (jnp.zeros_like(prompt), prompt, prompt + written), (prompt, written, step)

    def seen(lowest: Array) -> Spans:
        return Spans(*((jnp.maximum(lowest - start, 0), jnp.where(working, there, 0))
                       for start, there in zip(starts, counts, strict=True)))

    full = seen(jnp.zeros_like(prompt))
    return (full if config.window is None else seen(prompt + count - (config.window - 1))), full


def _seen(config: DecoderConfig, block: _Block, state: DecodeState, step: Array, steps: int) -> tuple[Any, Any]:
    """Masks of prompt, suffix and the block's own tokens, for layers with the window and for those without."""
    places = jnp.arange(block.view.prompt), jnp.arange(block.view.suffix), jnp.arange(steps)
    starts = state.prompt_length[:, None], block.written, step  # how many of each are there
    grid = (*block.written.shape, 1)
    full = tuple(jnp.broadcast_to(place < jnp.reshape(start, (*jnp.shape(start), 1)), (*grid[:2], place.size))
                 for place, start in zip(places, starts, strict=True))
    if config.window is None:
        return full, full
    position = jnp.reshape(state.prompt_length[:, None] + state.count, grid)
    first = jnp.zeros(grid, jnp.int32), state.prompt_length[:, None, None], (
        state.prompt_length[:, None] + block.written)[..., None]  # position of the first of each
    return tuple(mask & (position - (start + place) < config.window)
                 for mask, start, place in zip(full, first, places, strict=True)), full


def _by_pages(config: DecoderConfig, block: _Block, state: DecodeState, step: Array, caches: Caches) -> Attend:
    spans = _spans(config, block, state, step)

    def attend(q: Array, k: Array, v: Array, layer: Any, local: bool | Array) -> tuple[Array, tuple[Array, Array]]:
        assert block.paged is not None
        out = block.paged(q, k, v, caches, layer, select_windowed(local, *spans), block.table, block.firsts,
                           lanes=block.rows.shape[1], depth=block.view.prompt, **score_rule(config))
        return out, (k, v)

    return attend


def _by_masks(config: DecoderConfig, block: _Block, state: DecodeState, step: Array, recent: KeyValues) -> Attend:
    rows, seen = block.rows, _seen(config, block, state, step, recent.k.shape[-1])

    def attend(q: Array, k: Array, v: Array, cache: Any, local: bool | Array) -> tuple[Array, tuple[Array, Array]]:
        on_prompt, on_suffix, on_recent = select_windowed(local, *seen)
        prompt, suffix, recent = cache
        out = decode_attention(
            rows.spread(q), rows.spread(k), rows.spread(v), Stored(first(prompt, block.view.prompt), on_prompt),
            (Stored(first(suffix, block.view.suffix), on_suffix), Stored(recent, on_recent)), **score_rule(config))
        return rows.take(out), (k, v)

    return attend


def _decode_one(params: Params, config: DecoderConfig, block: _Block, step: Array, state: DecodeState,
                recent: KeyValues) -> tuple[DecodeState, KeyValues]:
    """Every active lane takes one token."""
    rows, capacity = block.rows, state.out.shape[2]
    position = state.prompt_length[:, None] + state.count  # [P, n]
    caches = Caches(state.prompt, state.suffix, recent)
    attend = _by_masks(config, block, state, step, recent) if block.paged is None else _by_pages(
        config, block, state, step, caches)
    of_layers = tuple(caches) if block.paged is None else np.arange(config.layers)
    hidden, (keys, values) = forward(params, config, rows.take(state.token), rows.take(position), attend, of_layers)
    slot, lane = rows.places()
    sample, count = rows.take(state.sample), rows.take(state.count)
    random_keys = jax.vmap(token_key, (None, 0, 0, 0))(block.seed, state.prompt_hash[slot], sample, count)
    token, logp = sample_token(random_keys, vocab_logits(params, config, hidden), jax.tree.map(rows.take, state.rules))

    # idle lanes write nowhere, and rows that are no lane lie out of range
    at = slot, lane, jnp.where(rows.take(state.active), count, capacity)
    state = dataclasses.replace(
        state,
        out=state.out.at[at].set(token, mode="drop"),
        logps=state.logps.at[at].set(logp, mode="drop"),
        count=state.count + state.active.astype(jnp.int32),
    )
    if block.paged is None:
        keys, values = jax.vmap(rows.spread)(keys), jax.vmap(rows.spread)(values)
    recent = write_token(recent, keys, values, step)
    token = rows.spread(token)
    stopped = jnp.any(token[..., None] == block.stop_ids, axis=-1)
    return dataclasses.replace(state, token=jnp.where(state.active, token, state.token),
                               active=state.active & ~stopped & (state.count < state.limit)), recent


def decode_block(params: Params, config: DecoderConfig, view: View, state: DecodeState, seed: Array, stop_ids: Array,
                 steps: int, append: Append = append_tokens, paged: LanesAttention | None = None,
                 table: Array | None = None) -> DecodeState:
    """Up to `steps` tokens for every active lane; ends early once no lane is active.

    Args:
      view: of the caches, at least as deep as any lane is now; of the lanes, all that are active.
      seed: typed PRNG key. stop_ids: [E] int32, -1 for unused places.
      append: stores the block's tokens in the suffix cache. paged: what attends where responses lie in pages. table:
        [P, n, J] int32, where they do: the pages of each lane, enough for what an active one writes now.
    """
    slots, lanes, capacity = state.out.shape
    steps = min(steps, capacity)  # no lane takes more, and `append` has room
    rows = _Rows.of(state.active, view)
    block = _Block(view, rows, state.count, seed, stop_ids, paged, None if table is None else rows.take(table),
                   rows.firsts())
    places = (slots, lanes) if paged is None else (rows.pick.size,)
    recent, began = empty_cache(config, places, steps, state.suffix.k.dtype), rows.working(state.active)

    def going(carry: tuple[Array, DecodeState, KeyValues]) -> Array:
        return (carry[0] < steps) & jnp.any(carry[1].active)

    def body(carry: tuple[Array, DecodeState, KeyValues]) -> tuple[Array, DecodeState, KeyValues]:
        return carry[0] + 1, *_decode_one(params, config, block, *carry)

    _, state, recent = jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), state, recent))
    if paged is None:
        return dataclasses.replace(state, suffix=append(state.suffix, recent, block.written))
    suffix = append(state.suffix, recent, rows.take(block.written), block.table, began)
    return dataclasses.replace(state, suffix=suffix)
