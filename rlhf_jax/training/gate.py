"""Training ArmoRM's gating network over frozen features (arXiv 2406.12845, section 3.2).

A pair of answers to a prompt x differs by d in its K de-biased rewards; its loss is -log sigma(g(x)' d). Backbone and
regressions are frozen, so features and differences are all there is: no model is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from rlhf_jax.config.probe import GateOptions
from rlhf_jax.losses import bradley_terry
from rlhf_jax.models import Gate, Params, gate_weights
from rlhf_jax.models.dropout import dropped

_CHUNK = 1 << 25
"""Numbers of prompt features that are on the device at one time."""


class Pairs(NamedTuple):
    """N pairs of answers. prompt: [N] which prompt. gaps: [N, K] de-biased rewards of chosen minus rejected."""

    prompt: np.ndarray
    gaps: np.ndarray


class GateFit(NamedTuple):
    """gating: the network's weights, as the model's tree has them. losses: [steps] of the batches."""

    gating: Params
    losses: np.ndarray


def gate_shape(options: GateOptions) -> Gate:
    """The network that the options ask for."""
    return Gate(options.gate_hidden, options.gate_layers, options.gate_temperature)


def init_gate(key: Array, gate: Gate, width: int, objectives: int) -> Params:
    """Uniform weights and biases in +-1/sqrt(inputs), the start of the published code (torch's), and a scale of 1."""
    widths = [width, *[gate.hidden] * gate.layers, objectives]
    gating: Params = {"logit_scale": jnp.ones(1)}
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weight, bias, edge = *jax.random.split(jax.random.fold_in(key, index)), rows**-0.5
        gating[f"layer_{index}"] = {"weight": jax.random.uniform(weight, (rows, columns), minval=-edge, maxval=edge),
                                    "bias": jax.random.uniform(bias, (columns,), minval=-edge, maxval=edge)}
    return gating


def dropout(key: Array, rate: float) -> Callable[[int, Array], Array]:
    """Zeroes a share of the units of each layer and scales the others up."""

    def drop(layer: int, x: Array) -> Array:
        return dropped(jax.random.fold_in(key, layer), x, rate)

    return drop


def gate_loss(gating: Params, gate: Gate, features: Array, prompt: Array, gaps: Array,
              drop: Callable[[int, Array], Array] | None = None) -> Array:
    """Mean Bradley-Terry loss of pairs. features: [U, D] of prompts. prompt: [N] rows of them. gaps: [N, K]."""
    weights = gate_weights(gating, gate, features, drop)[prompt]
    gap = jnp.sum(weights * gaps, axis=-1)
    return jnp.mean(bradley_terry(gap, jnp.zeros_like(gap)))


def fit_gate(features: Callable[[np.ndarray], np.ndarray], pairs: Pairs, width: int, options: GateOptions, seed: int,
             progress: Callable[[int, int, float], None] | None = None) -> GateFit:
    """Trains the network by AdamW with a cosine to 0, each batch drawn with replacement.

    A prompt that several pairs of a batch share is read, and loses units to dropout, once.

    Args:
      features: places of prompts [U] -> their hidden states [U, D]; asked for a few batches at a time, so that memory
        does not grow with the number of prompts.
      progress: gets (steps done, all steps, mean loss since the last call).
    """
    gate = gate_shape(options)
    rate = optax.cosine_decay_schedule(options.gate_learning_rate, options.gate_steps)
    optimizer = optax.adamw(rate, weight_decay=0.0)
    key = jax.random.key(seed)
    gating = init_gate(jax.random.fold_in(key, 0), gate, width, pairs.gaps.shape[1])
    state, losses = (gating, optimizer.init(gating), jax.random.fold_in(key, 1)), []
    run = jax.jit(partial(_steps, gate, options.gate_dropout, optimizer))
    done = 0
    for batches in _batches(features, pairs, width, options, seed):
        state, found = run(state, done, batches)
        losses.append(np.asarray(found))
        done += len(losses[-1])
        if progress:
            progress(done, options.gate_steps, float(losses[-1].mean()))
    return GateFit(jax.device_get(state[0]), np.concatenate(losses))


def _batches(features: Callable[[np.ndarray], np.ndarray], pairs: Pairs, width: int, options: GateOptions, seed: int
             ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some steps at a time: prompts' features [C, U, D], rows of them [C, B], gaps [C, B, K]."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(pairs.prompt), size=(options.gate_steps, options.gate_batch_size))
    unique = max(len(np.unique(pairs.prompt[some])) for some in drawn)  # no batch has more: few rows are read in vain
    chunk = max(1, min(50, _CHUNK // (unique * width)))
    for start in range(0, len(drawn), chunk):
        taken = drawn[start : start + chunk]
        prompts, rows = np.zeros((len(taken), unique), np.int64), np.zeros(taken.shape, np.int32)
        for step, some in enumerate(taken):
            found, rows[step] = np.unique(pairs.prompt[some], return_inverse=True)
            prompts[step] = np.pad(found, (0, unique - len(found)), mode="edge")
        states = features(prompts.reshape(-1)).reshape(len(taken), unique, width)
        yield states, rows, pairs.gaps[taken].astype(np.float32)


def _steps(gate: Gate, rate: float, optimizer: optax.GradientTransformation, state: Any, done: Any, batches: Any
           ) -> Any:
    """A few optimizer steps; (gating, optimizer's state, key), and the losses [C]."""

    def step(state: Any, batch: Any) -> Any:
        gating, moments, key, number = state
        features, rows, gaps = batch
        drop = dropout(jax.random.fold_in(key, number), rate) if rate else None
        loss, gradient = jax.value_and_grad(gate_loss)(gating, gate, features, rows, gaps, drop)
        updates, moments = optimizer.update(gradient, moments, gating)
        return (optax.apply_updates(gating, updates), moments, key, number + 1), loss

    gating, moments, key = state
    (gating, moments, key, _), losses = jax.lax.scan(step, (gating, moments, key, done), batches)
    return (gating, moments, key), losses


def gated_gaps(gating: Params, gate: Gate, features: Callable[[np.ndarray], np.ndarray], pairs: Pairs,
               size: int = 1024) -> np.ndarray:
    """[N] what the gate makes of the pairs' differences, R(chosen) - R(rejected), without dropout."""
    weigh = jax.jit(partial(gate_weights, gating, gate))
    found = np.zeros(len(pairs.prompt))
    for start in range(0, len(found), size):
        some = pairs.prompt[start : start + size]
        weights = np.asarray(weigh(features(np.pad(some, (0, size - len(some)), mode="edge"))))
        found[start : start + size] = np.sum(weights[: len(some)] * pairs.gaps[start : start + size], axis=-1)
    return found
