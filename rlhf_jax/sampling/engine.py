"""The batch engine: a queue of prompts through a fixed number of slots and lanes, refilled between blocks."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.config.sampling import SamplingConfig, rounded_up
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.models.decoder import Constrain
from rlhf_jax.models.int8 import in_int8, int8_part, with_part
from rlhf_jax.models.params import merged, unstacked
from rlhf_jax.parallel import batch_ways, constrainer, shaped
from rlhf_jax.sampling.cache import Caches, append_tokens, stored_dtype
from rlhf_jax.sampling.decode import (
    Append,
    DecodeState,
    LanesAttention,
    Refill,
    View,
    decode_block,
    empty_state,
    prefill,
    restart,
)
from rlhf_jax.sampling.ending import Ending
from rlhf_jax.sampling.kernels import paged_attention
from rlhf_jax.sampling.pages import PAGE, Pages, pages_each, pages_of
from rlhf_jax.sampling.rules import Rules


def shape_settings(sampling: SamplingConfig) -> SamplingConfig:
    """What of the settings shapes the compiled programs; the rest are arguments of theirs."""
    return dataclasses.replace(sampling, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, stop_strings=(), seed=0)


DecodeText: TypeAlias = Callable[[Sequence[int], Sequence[int]], str]
"""(prompt ids, response ids) -> text of the response."""
LEAST_VIEW = 64
"""Looking less deep into a cache than this saves nothing worth another program."""
LEAST_ROWS = {"cpu": 32, "gpu": 128}
"""Nor does computing fewer lanes, by platform: a GPU then waits for its weights. Others compute all lanes."""


def prefill_rows(slots: int, ways: int) -> int:
    """Prompts that are read at a time: a quarter of the slots, and as many for each of the ways a batch is cut."""
    return -(-max(1, slots // 4) // ways) * ways


def check_slots(sampling: SamplingConfig, mesh: Mesh) -> None:
    """Raises ValueError unless the mesh cuts the slots evenly."""
    ways = batch_ways(mesh)
    if sampling.slots % ways:
        raise ValueError(f"slots = {sampling.slots} must be a multiple of the {ways} ways the mesh cuts a batch; take "
                         f"{-(-sampling.slots // ways) * ways}")


def prompt_hash(prompt_id: str) -> int:
    """uint32 that stands for a prompt in the random keys."""
    return int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:4], "big")


@dataclasses.dataclass
class _Slot:
    """Host's view of one prompt slot: the prompt, samples that wait, lane -> sample at work, finished samples."""

    prompt: int
    waiting: deque[int]
    running: dict[int, int] = dataclasses.field(default_factory=dict)
    done: dict[int, Response] = dataclasses.field(default_factory=dict)


class _Ended(NamedTuple):
    """What a lane wrote that has ended: token ids [T] and their log-probs, of this sample of a slot's prompt."""

    slot: _Slot
    sample: int
    ids: np.ndarray
    logps: np.ndarray


class Sampler:
    """Samples n continuations of many prompts. Compiles a prefill and a decode program for each power of two of
    prompt length and depth that occurs, whatever the data.

    Args:
      config: of the policy. sampling: settings. stop_ids: token ids that end a response.
      mesh: slots are cut over its batch axes. decode_text: by the policy's tokenizer.
      dtype: of the computation.
    """

    def __init__(self, config: DecoderConfig, sampling: SamplingConfig, stop_ids: Sequence[int], mesh: Mesh,
                 decode_text: DecodeText, dtype: Any = jnp.float32):
        check_slots(sampling, mesh)
        self.config, self.sampling, self.decode_text = config, sampling, decode_text
        self._stop_ids = tuple(stop_ids)
        self._set_ending()
        self.mesh, self._cache_dtype = mesh, stored_dtype(sampling.cache_dtype, dtype)
        self._lanes = sampling.lanes_each
        self._ways = batch_ways(mesh)
        self.prefill_rows = prefill_rows(sampling.slots, self._ways)
        self._seed = jax.random.key(sampling.seed)
        paged = paged_attention(mesh, config, sampling, self._cache_dtype)
        self.paged, self._apart = paged is not None, paged is not None and paged.apart
        alone = mesh.devices.size == 1  # elsewhere attention by XLA has each device's lanes in place
        self._least_rows = LEAST_ROWS.get(mesh.devices.flat[0].platform) if alone or self.paged else None
        shard = self.shardings()
        read = partial(_prefill, config, constrainer(mesh))
        self.prefill_program = jax.jit(read, donate_argnums=1, out_shardings=shard)
        self._restart = jax.jit(restart, donate_argnums=0, out_shardings=shard)
        self._blank = jax.jit(self.blank, static_argnums=0, out_shardings=shard)
        self._prepare = jax.jit(self._for_decoding)
        how = (sampling.block, self._append(paged.append if paged else append_tokens),
               self._on_mesh(paged.attend) if paged else None)
        self.decode_program = jax.jit(partial(_decode, config, *how), static_argnums=0, donate_argnums=2,
                                      out_shardings=shard)

    def shardings(self) -> DecodeState:
        """Where the state of decoding lies: everything by slot, the caches also by key head."""
        slot = ("data", "fsdp")
        head = "tensor" if self.config.kv_heads % self.mesh.shape["tensor"] == 0 else None
        by_slot, of_prompts, of_lanes = (NamedSharding(self.mesh, PartitionSpec(*places)) for places in (
            (slot,), (None, slot, head), (None, slot, None, head)))
        if self.paged:
            of_lanes = of_prompts  # every device has its own pages
        like = jax.eval_shape(lambda: empty_state(self.config, 1, 1, 1, 1, self._cache_dtype))
        shardings = jax.tree.map(lambda _: by_slot, like)
        prompt, suffix = (jax.tree.map(lambda _, place=place: place, part) for part, place in (
            (like.prompt, of_prompts), (like.suffix, of_lanes)))
        return shardings.replace(prompt=prompt, suffix=suffix)

    def _append(self, append: Append) -> Append:
        """Every device appends to the lanes that it has."""
        if self.mesh.devices.size == 1:
            return append
        specs = jax.tree.map(lambda sharding: sharding.spec, self.shardings())
        rows = (specs.count,) * (3 if self.paged else 1)
        return jax.shard_map(append, mesh=self.mesh, in_specs=(specs.suffix, specs.suffix, *rows),
                             out_specs=specs.suffix, check_vma=False)

    def _on_mesh(self, paged: LanesAttention) -> LanesAttention:
        """Every device attends for the lanes and heads that it has."""
        if self.mesh.devices.size == 1:
            return paged
        specs = jax.tree.map(lambda sharding: sharding.spec, self.shardings())
        caches, row = Caches(specs.prompt, specs.suffix, specs.suffix), specs.count
        tokens = PartitionSpec(*specs.prompt.k[1:3])
        ins = (tokens, tokens, tokens, caches, PartitionSpec(), row, row, row)

        def attend(*args: Any, **how: Any) -> jax.Array:
            return jax.shard_map(partial(paged, **how), mesh=self.mesh, in_specs=ins, out_specs=tokens,
                                 check_vma=False)(*args)

        return attend

    def blank(self, capacity: int) -> DecodeState:
        """Nothing running, for prompts of up to `capacity` tokens. To be traced: it may be too large for one device."""
        s, prompt, pages = self.sampling, max(capacity, 2) - 1, None
        if self.paged:  # prompts too in whole lines of memory
            prompt, pages = pages_of(prompt) * PAGE, self._ways * self._pages_each
        return empty_state(self.config, s.slots, self._lanes, prompt, s.max_new_tokens, self._cache_dtype, pages)

    @property
    def _pages_each(self) -> int:
        s = self.sampling
        return pages_each(s.cache_share, s.slots, self._lanes, s.max_new_tokens, self._ways)

    def prepared(self, params: Params) -> Params:
        """Weights as `decode_program` takes them: in eight bits if so asked for; where GPUs' kernels attend, layers one
        by one and products merged.

        Shapes (`ShapeDtypeStruct`s that say where they lie) become such shapes.
        """
        if not self.prepares:
            return params
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            made = shaped(jax.eval_shape(self._prepare, params), self._prepare.lower(params).compile().output_shardings)
            return self._finished(params, made)
        return self._finished(params, self._prepare(params))

    @property
    def prepares(self) -> bool:
        """Whether decoding has weights of its own beside those it was given."""
        return self._apart or self.sampling.weights_dtype == "int8"

    def _for_decoding(self, params: Params) -> Params:
        """What decoding has of its own: all weights where they are merged, else those in eight bits."""
        if self._apart:
            narrow = self.sampling.weights_dtype == "int8"
            return merged(unstacked(in_int8(params, self.config) if narrow else params))
        return int8_part(params, self.config)

    def _finished(self, params: Params, made: Params) -> Params:
        return made if self._apart else with_part(params, made)

    def _set_ending(self) -> None:
        ending = Ending.by(self._stop_ids, self.sampling.stop_strings, self.decode_text)
        self._stop, self._stop_strings = np.asarray(ending.stop_ids or [-1], np.int32), ending.stop_strings

    @property
    def _ending(self) -> Ending:
        return Ending(self._stop, self._stop_strings, self.decode_text)

    def with_settings(self, sampling: SamplingConfig, decode_text: DecodeText | None = None) -> Sampler:
        """The same compiled programs under other settings, which must agree in `shape_settings`.

        decode_text: of another policy, whose tokenizer may be another; None for the same.
        """
        if shape_settings(sampling) != shape_settings(self.sampling):
            raise ValueError("these settings change the shapes of the compiled programs; make another Sampler")
        other = copy.copy(self)
        other.sampling, other._seed = sampling, jax.random.key(sampling.seed)
        other.decode_text = decode_text or self.decode_text
        other._set_ending()
        return other

    def seeded(self, seed: int) -> Sampler:
        """The same settings under another seed."""
        return self.with_settings(dataclasses.replace(self.sampling, seed=seed))

    def generate(self, params: Params, prompts: Sequence[PromptGroup]) -> Iterator[tuple[int, PromptGroup]]:
        """Yields (index, group with its n responses) as prompts are finished, in no fixed order.

        Args:
          params: the trainer's tree, in the compute dtype.
          prompts: groups with prompt ids and unique `prompt_id`s; their responses are ignored.

        Raises:
          ValueError: if a prompt plus `max_new_tokens` passes the model's maximum position, or exceeds `prompt_length`;
            if there are no prompts, or one has no tokens.
        """
        if not prompts:
            raise ValueError("there are no prompts to continue")
        if (empty := [prompt.prompt_id for prompt in prompts if not len(prompt.prompt_ids)]):
            raise ValueError(f"prompt {empty[0]!r} has no tokens; the first token of a response is drawn from the last "
                             "one of its prompt. Give it a beginning-of-sequence token at least")
        longest = max(len(prompt.prompt_ids) for prompt in prompts)
        capacity = max(self.sampling.capacity(longest, self.config.max_position), 2)
        state = self._blank(capacity)
        # the longest first: prompts of like lengths share the slots, and no block looks further than they reach
        queue = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i].prompt_ids)))
        slots: list[_Slot | None] = [None] * self.sampling.slots
        pages = Pages(len(slots), self._lanes, self.sampling.max_new_tokens, self._ways,
                      self._pages_each) if self.paged else None
        active = np.zeros((len(slots), self._lanes), bool)  # lanes that the devices have at work
        written = np.zeros(active.shape, np.int32)  # tokens of each lane
        for_decoding, ended = self.prepared(params), list[_Ended]()  # lanes that are no longer at work
        while queue or any(slots):
            while (refill := self._refill(prompts, queue, slots, active, written, pages, capacity)) is not None:
                run = partial(self.prefill_program, params) if refill.tokens.size else self._restart
                state, active = run(state, refill), refill.running
            view = self._view(slots, prompts, capacity, active, written)
            state = self.decode_program(view, for_decoding, state, self._seed, self._stop,
                                        None if pages is None else pages.table)
            yield from self._groups(ended, prompts)  # while the devices are at work on the block
            active, written, ended = self._collect(state, slots, active, pages, prompts)
        yield from self._groups(ended, prompts)

    def _view(self, slots: Sequence[_Slot | None], prompts: Sequence[PromptGroup], capacity: int, active: np.ndarray,
              written: np.ndarray) -> View:
        """What the next block looks at: few sizes, so that few programs serve all. GPUs' kernels find depths
        themselves, and pages have none."""
        rows = None
        if self._least_rows is not None:
            busiest = active.reshape(self._ways, -1).sum(axis=1).max()
            rows = max(rounded_up(int(busiest)), self._least_rows)
            rows = rows if rows * self._ways < active.size else None
        if self._apart:
            return View(capacity - 1, self.sampling.max_new_tokens, rows, self._ways)
        longest = max(len(prompts[slot.prompt].prompt_ids) for slot in slots if slot)
        prompt, suffix = (max(rounded_up(n), LEAST_VIEW) for n in (longest - 1, int(written[active].max(initial=0))))
        if self.paged:
            return View(min(prompt, capacity - 1), self.sampling.max_new_tokens, rows, self._ways)
        return View(min(prompt, capacity - 1), min(suffix, self.sampling.max_new_tokens), rows)

    def _refill(self, prompts: Sequence[PromptGroup], queue: deque[int], slots: list[_Slot | None], active: np.ndarray,
                written: np.ndarray, pages: Pages | None, capacity: int) -> Refill | None:
        """Gives free slots new prompts (a prefill's worth at a time), idle lanes their prompt's next sample, and lanes
        the pages of the next block.

        `tokens` is as wide as these prompts need, and empty where lanes alone restart, wait or end. None where nothing
        is worth doing yet. active: [P, n] lanes that the devices have at work. written: [P, n] by each; set to 0 where
        one restarts.
        """
        free = [place for place, slot in enumerate(slots) if slot is None]
        busy = len(slots) - len(free)
        if len(free) < self.prefill_rows and busy and len(free) < len(queue):
            free = []  # wait until a whole prefill can be filled
        lengths, hashes = np.ones(self.prefill_rows, np.int32), np.zeros(self.prefill_rows, np.uint32)
        places = np.full(self.prefill_rows, len(slots), np.int32)
        new = [queue.popleft() for _ in range(min(len(free), len(queue), self.prefill_rows))]
        longest = max((len(prompts[index].prompt_ids) for index in new), default=0)
        width = min(max(rounded_up(longest), LEAST_VIEW), capacity) if new else 0
        tokens = np.zeros((self.prefill_rows, width), np.int32)
        for row, (place, index) in enumerate(zip(free, new, strict=False)):
            ids = prompts[index].prompt_ids
            slots[place] = _Slot(index, deque(range(self.sampling.num_generations)))
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            hashes[row], places[row] = prompt_hash(prompts[index].prompt_id), place
        running, restart, sample = self._assign(slots)
        written[restart] = 0
        if pages is not None:
            running = self._with_pages(slots, written, pages)
        if not restart.any() and (running == active).all():
            return None
        last = [prompts[slot.prompt].prompt_ids[-1] if slot else 0 for slot in slots]
        s = self.sampling
        rules = Rules(jnp.asarray(s.temperatures, jnp.float32)[sample], jnp.full(sample.shape, s.top_k, jnp.int32),
                      jnp.full(sample.shape, s.top_p), jnp.full(sample.shape, s.min_p))
        limit = np.full(sample.shape, s.max_new_tokens, np.int32)
        return Refill(places, tokens, lengths, hashes, running, restart, np.asarray(last, np.int32), sample, limit,
                      rules)

    def _assign(self, slots: list[_Slot | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hands waiting samples to idle lanes: lanes at work, which of them restart, and the sample of those."""
        running, restart = np.zeros((2, len(slots), self._lanes), bool)
        sample = np.zeros((len(slots), self._lanes), np.int32)
        for place, slot in enumerate(slots):
            for lane in range(self._lanes) if slot else ():
                assert slot is not None
                if lane not in slot.running and slot.waiting:
                    slot.running[lane] = slot.waiting.popleft()
                    restart[place, lane], sample[place, lane] = True, slot.running[lane]
                running[place, lane] = lane in slot.running
        return running, restart, sample

    def _with_pages(self, slots: Sequence[_Slot | None], written: np.ndarray, pages: Pages) -> np.ndarray:
        """[P, n] lanes that have the pages to write another block; those that have written most come first."""
        lanes = [(place, lane) for place, slot in enumerate(slots) if slot is not None for lane in slot.running]
        lanes.sort(key=lambda place: -written[place])
        most = self.sampling.max_new_tokens
        served, dropped = pages.allot({at: min(int(written[at]) + self.sampling.block, most) for at in lanes})
        for place, lane in dropped:
            slot = slots[place]
            assert slot is not None
            slot.waiting.appendleft(slot.running.pop(lane))
        running = np.zeros(written.shape, bool)
        for at in served:
            running[at] = True
        return running

    def _collect(self, state: DecodeState, slots: list[_Slot | None], began: np.ndarray, pages: Pages | None,
                 prompts: Sequence[PromptGroup]) -> tuple[np.ndarray, np.ndarray, list[_Ended]]:
        """Takes what ended lanes wrote from the devices and frees the slots that have nothing left to do.

        Args:
          began: [P, n] lanes that were at work in the block.

        Returns:
          lanes [P, n] that the devices have at work, what each has written, and the ended.
        """
        active, counts = jax.device_get((state.active, state.count))
        at_work = [(place, slot, lane) for place, slot in enumerate(slots) if slot is not None
                   for lane in slot.running if began[place, lane]]
        asked = [x for x in at_work if self._stop_strings or not active[x[0], x[2]]]
        if asked:
            out, logps = jax.device_get((state.out, state.logps))
        ended = list[_Ended]()
        for place, slot, lane in asked:
            ids = out[place, lane, : counts[place, lane]]
            if active[place, lane] and not self._ending.has_stop_string(ids, prompts[slot.prompt]):
                continue
            some = logps[place, lane, : len(ids)].copy()
            ended.append(_Ended(slot, slot.running.pop(lane), ids.copy(), some))
            if pages is not None:
                pages.release((place, lane))
            if not slot.running and not slot.waiting:
                slots[place] = None
        return active, np.array(counts), ended

    def _groups(self, ended: Sequence[_Ended], prompts: Sequence[PromptGroup]) -> Iterator[tuple[int, PromptGroup]]:
        """Makes responses of what was written; yields the prompts that have all of theirs."""
        for slot, sample, ids, logps in ended:
            slot.done[sample] = self._ending.response(ids, logps, prompts[slot.prompt])
            if len(slot.done) == self.sampling.num_generations:
                responses = tuple(slot.done[i] for i in range(self.sampling.num_generations))
                yield slot.prompt, dataclasses.replace(prompts[slot.prompt], responses=responses)


def _prefill(config: DecoderConfig, constrain: Constrain, params: Params, state: DecodeState, refill: Refill
             ) -> DecodeState:
    return prefill(params, config, state, refill, constrain)


def _decode(config: DecoderConfig, steps: int, append: Append, paged: LanesAttention | None, view: View,
            params: Params, state: DecodeState, seed: Any, stop_ids: Any, table: Any = None) -> DecodeState:
    return decode_block(params, config, view, state, seed, stop_ids, steps, append, paged, table)
