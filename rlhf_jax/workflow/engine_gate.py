"""The gate for samples of an engine outside: their log-probs and their distribution against our own forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.packing import PackedBatch, unpack_targets
from rlhf_jax.models import Params, vocab_logits
from rlhf_jax.parallel import bound
from rlhf_jax.remote import Origin
from rlhf_jax.sampling import LogpTolerance, Rules, drawn, logp_tolerance
from rlhf_jax.sampling.external import EngineMismatch, shares
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint

_PIECE = 64
"""Places of a row whose logits exist at one time."""
_FLOAT32 = LogpTolerance(1e-3, 1e-4)
"""Two programs in float32; vLLM 0.32 was seen within (1.4e-4, 8e-6) of a model of 15 million parameters."""
_OUTSIDE = {"float32": 0.02, "bfloat16": 0.1}
"""Share of tokens that rounding may put outside a filter, or beside the most probable one."""
_SIGMAS, _NATS = 6.0, 0.02
"""By how many standard errors, and by how much, the mean log-prob of what was drawn may miss what is expected of it."""
_APART = 1e-3
"""Log-probs before and after temperature and filters that differ by less, root mean square, are not told apart."""
_ENOUGH = 32
"""Tokens of one server whose mean and distribution say something."""
_CHANCE = 2
"""So many tokens outside a filter say nothing, whatever share of all they are."""


class Tokens(NamedTuple):
    """Tokens that an engine sampled, each [N] float64: their log-probs as it says and by our own forward pass; how
    likely they were in the distribution that they should come from, and the mean of that number there; and how likely
    they were at the temperature, before the filters."""

    theirs: np.ndarray
    ours: np.ndarray
    drawn: np.ndarray
    expected: np.ndarray
    tempered: np.ndarray

    def at(self, places: np.ndarray) -> Tokens:
        """Some of them."""
        return Tokens(*(numbers[places] for numbers in self))


def tolerance(engine: EngineOptions, dtype: Any) -> LogpTolerance:
    """What may lie between an engine's log-probs and ours, computed in `dtype`."""
    usual = _FLOAT32 if jnp.dtype(dtype) == jnp.float32 else logp_tolerance(dtype)
    return LogpTolerance(engine.max_logp_difference or usual.largest, engine.max_mean_logp_difference or usual.mean)


class EngineGate:
    """Compares what an engine sampled with what the model would have.

    Args:
      drawn: `drawn_map` of the model, for these settings. sampling: settings, with an engine. dtype: of weights and
        computation. checkpoint: whose weights they are.
    """

    def __init__(self, drawn: PackedMap, sampling: SamplingConfig, dtype: Any, checkpoint: Checkpoint):
        assert sampling.engine is not None
        self.sampling, self.engine, self.folder = sampling, sampling.engine, checkpoint.folder
        self.allowed, self.vocab_size = tolerance(self.engine, dtype), checkpoint.config.vocab_size
        self._drawn, self._outside = drawn, _OUTSIDE[jnp.dtype(dtype).name]

    def look(self, params: Params, groups: Sequence[PromptGroup], temperature: float) -> Tokens:
        """The tokens of all responses, which are all samples at this temperature."""
        s = self.sampling
        rules = Rules(jnp.float32(temperature), jnp.int32(s.top_k), jnp.float32(s.top_p), jnp.float32(s.min_p))
        found = self._drawn({"params": params, "rules": rules}, groups)
        theirs = np.concatenate([r.logps for group in groups for r in group.responses if r.logps is not None])
        ours = np.concatenate([tokens for per in found for tokens in per])
        return Tokens(*np.asarray([theirs, *ours.T], np.float64))

    def check(self, params: Params, groups: Sequence[PromptGroup], origins: Sequence[Sequence[Origin]] = ()
              ) -> LogpTolerance:
        """Looks at some of a shard's groups, which `spread` chooses: all that are looked at together, and what each
        server gave of them.

        Args:
          origins: of each group's answers, one for each of its `shares`; empty where they are not known.

        Returns:
          largest and mean difference of their tokens' log-probs from ours.

        Raises:
          EngineMismatch: the differences are too large, or the samples are not of the distribution that was asked for.
        """
        chosen, seen = spread(len(groups), self.engine.checked_prompts, origins), list[LogpTolerance]()
        given = np.asarray(self.sampling.temperatures)
        for temperature in dict.fromkeys(self.sampling.temperatures):
            places = np.flatnonzero(given == temperature)
            alike = [dataclasses.replace(groups[i], responses=tuple(groups[i].responses[j] for j in places))
                     for i in chosen]
            tokens = self.look(params, alike, temperature)
            whose = self._whose(alike, [origins[i] for i in chosen], places) if origins else np.array([])
            for url in dict.fromkeys(whose.tolist()):
                if problem := self._problem(tokens.at(whose == url), temperature, alone=True):
                    raise EngineMismatch(f"{url}: {problem}")
            if problem := self._problem(tokens, temperature):
                raise EngineMismatch(problem)
            seen.append(difference(tokens))
            if temperature and len(places) > 1 and -tokens.expected.sum() > 20 * len(places) and all(
                    len({r.ids.tobytes() for r in g.responses}) == 1 for g in alike):
                raise EngineMismatch(f"all {len(places)} samples of each prompt are the same: the engine gives one "
                                     "seed to all n of a question")
        return LogpTolerance(max(x.largest for x in seen), float(np.mean([x.mean for x in seen])))

    def _whose(self, groups: Sequence[PromptGroup], origins: Sequence[Sequence[Origin]], places: np.ndarray
               ) -> np.ndarray:
        """Address of the server that gave each token [N] of groups whose responses are samples `places` of a prompt."""
        share_of = [number for number, share in enumerate(shares(self.sampling)) for _ in range(share.size)]
        urls = [some[share_of[place]].url for some in origins for place in places]
        return np.repeat(urls, [len(response.ids) for group in groups for response in group.responses])

    def _problem(self, tokens: Tokens, temperature: float, alone: bool = False) -> str | None:
        """What is wrong with tokens sampled at a temperature. alone: of one server, and of few only the largest
        difference says something."""
        few = alone and len(tokens.ours) < _ENOUGH
        if problem := self.processed(tokens, temperature):
            return problem
        if not self.fits(tokens, few):
            return ("the engine holds other weights, stale ones if the hand-over did not reach all of it, or its "
                    f"tokens were replaced on their way: {self.gap(tokens)}. If it is right and only computes in "
                    "another precision, raise engine.max_logp_difference and engine.max_mean_logp_difference")
        return None if few else self._other_distribution(tokens, temperature)

    def fits(self, tokens: Tokens, few: bool = False) -> bool:
        """Whether an engine's log-probs are ours, up to rounding. few: too few tokens for their mean to say it."""
        seen = difference(tokens)
        return bool(seen.largest <= self.allowed.largest and (few or seen.mean <= self.allowed.mean))

    def gap(self, tokens: Tokens) -> str:
        """The differences, in words."""
        seen = difference(tokens)
        return (f"its log-probs differ from our forward pass of {self.folder} by up to {seen.largest:.2e}, "
                f"{seen.mean:.2e} in the mean (allowed {self.allowed.largest:.0e} and {self.allowed.mean:.0e})")

    def processed(self, tokens: Tokens, temperature: float) -> str | None:
        """Says so where an engine's log-probs are those after the temperature, or after the filters too, and not the
        model's own, however little the tolerances tell them apart."""
        told = {f"temperature {temperature:g}": tokens.tempered, self._asked(temperature): tokens.drawn}
        for what, numbers in told.items():
            known = np.isfinite(numbers)
            before, after = tokens.at(known), tokens._replace(ours=numbers).at(known)
            apart = known.sum() >= _ENOUGH and np.sqrt(np.mean((after.ours - before.ours) ** 2)) > _APART
            share, error = update_seen(before, after) if apart else (0.0, 0.0)
            if share - 3 * error > 0.5 and (self.fits(before) or self.fits(after)):
                return (f"the engine's log-probs are those at {what}, after that was applied, and not the model's own: "
                        "start it so that it gives raw ones (vLLM: --logprobs-mode raw_logprobs; SGLang: the "
                        "environment variable SGLANG_RETURN_ORIGINAL_LOGPROB=1)")
        return None

    def _asked(self, temperature: float) -> str:
        s = self.sampling
        return f"temperature {temperature:g}, top_k {s.top_k}, top_p {s.top_p:g}, min_p {s.min_p:g}"

    def _other_distribution(self, tokens: Tokens, temperature: float) -> str | None:
        """Says so where the tokens do not look like draws at this temperature and through the filters.

        A token's log-prob in its distribution minus the mean of that there is a martingale's step: the sum of N of them
        divided by the root of their squares' sum is nearly normal.
        """
        asked, inside = self._asked(temperature), np.isfinite(tokens.drawn)
        if np.sum(~inside) > max(_CHANCE, self._outside * len(inside)):
            return (f"{np.mean(~inside):.0%} of the engine's tokens cannot have been drawn at {asked}: it, or a proxy "
                    "before it, samples with another temperature or other filters")
        steps = (tokens.drawn - tokens.expected)[inside]
        error = float(np.sqrt(np.sum(steps**2)))
        if abs(steps.sum()) > _SIGMAS * error and abs(steps.mean()) > _NATS:
            way = "lower" if steps.mean() > 0 else "higher"
            return (f"the engine's tokens were not drawn at {asked}: their mean log-prob there is {steps.mean():+.3f} "
                    f"nats from what it should be, {abs(steps.sum()) / error:.0f} standard errors, as of a {way} "
                    "temperature. A proxy or a default of the engine replaces what is asked")
        return None


def spread(count: int, wanted: int, origins: Sequence[Sequence[Origin]]) -> list[int]:
    """Which of a shard's `count` prompts are looked at.

    The first, the last, and of each server the one that it answered last. If `wanted` leaves room, also the one that
    each answered first. The rest lie as far from the others as can be, and are half of `wanted` beside many servers.
    """
    by_server: dict[str, list[tuple[int, int]]] = {}
    for place, some in enumerate(origins):
        for url, order in some:
            by_server.setdefault(url, []).append((order, place))
    last = {max(answers)[1] for answers in by_server.values()}
    chosen = {0, count - 1} | last
    if len(both := chosen | {min(answers)[1] for answers in by_server.values()}) <= wanted:
        chosen = both
    apart = np.min([np.abs(np.arange(count) - place) for place in chosen], axis=0)
    while len(chosen) < min(max(wanted, len(last) + wanted // 2), count):
        chosen.add(place := int(np.argmax(apart)))
        apart = np.minimum(apart, np.abs(np.arange(count) - place))
    return sorted(chosen)


def difference(tokens: Tokens) -> LogpTolerance:
    """Largest and mean |theirs - ours|; infinite where one is no number."""
    gaps = np.abs(tokens.theirs - tokens.ours)
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    return LogpTolerance(float(gaps.max()), float(gaps.mean()))


def update_seen(before: Tokens, after: Tokens) -> tuple[float, float]:
    """How much of an update of the weights an engine's log-probs show, and its standard error: least squares of
    theirs - before on after - before. 0 for the weights before it, 1 for those after it, however much both round.

    before, after: the same tokens, `ours` computed with either.
    """
    moved, theirs = after.ours - before.ours, after.theirs - before.ours
    size = float(np.sum(moved**2))
    if size == 0:
        return 1.0, np.inf
    share = float(np.sum(theirs * moved) / size)
    return share, float(np.sqrt(np.mean((theirs - share * moved) ** 2) / size))


def drawn_map(compute: Compute, mesh: Mesh, filtered: bool) -> PackedMap:
    """{"params", "rules": scalars}, groups -> per group and response [T, 4]: `Drawn` of its tokens.

    filtered: see `sampling.drawn`.
    """
    return PackedMap(bound(_drawn, compute, filtered), mesh, unpack_targets)


def _drawn(compute: Compute, filtered: bool, given: Params, batch: PackedBatch) -> Any:
    hidden = compute.hidden(given["params"], batch)
    hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)

    def at(place: tuple[Any, Any]) -> Any:
        some, target = place
        rules = Rules(*(jnp.broadcast_to(rule, target.shape) for rule in given["rules"]))
        logits = vocab_logits(given["params"], compute.config, some)
        return jnp.stack(drawn(logits, target, rules, filtered), axis=-1)

    places = jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(batch.target, 1, 0)
    return jnp.moveaxis(jax.lax.map(at, places, batch_size=_PIECE), 0, 1)
