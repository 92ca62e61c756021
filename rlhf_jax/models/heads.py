"""What sits on the decoder: vocabulary logits, scalar score heads, ArmoRM's gated objectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rlhf_jax.models.attention import capped
from rlhf_jax.models.config import DecoderConfig, Gate
from rlhf_jax.models.int8 import Int8Weight
from rlhf_jax.models.params import Params, output_head


def vocab_logits(params: Params, config: DecoderConfig, hidden: Array) -> Array:
    """[..., V] float32 logits at hidden [..., D], soft-capped where the family does; no column for padding."""
    head, scale = output_head(params), None
    if isinstance(head, Int8Weight):
        head, scale = head.values.astype(hidden.dtype), head.scale
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    logits = logits if scale is None else logits * scale
    return capped(logits[..., : config.vocab_size], config.logit_softcap)


def score_heads(params: Params, hidden: Array) -> Array:
    """[..., labels] float32 outputs of the scalar head(s) at hidden [..., D] (kept float32: bfloat16 scores tie)."""
    return jnp.einsum("...d,ld->...l", hidden.astype(jnp.float32), params["score"].astype(jnp.float32))


def gate_logits(gating: Params, gate: Gate, prompt: Array, drop: Callable[[int, Array], Array] | None = None) -> Array:
    """[..., K] float32 outputs of ArmoRM's gating network at hidden states [..., D] of prompts, before the softmax.

    drop: what becomes of the units of hidden layer 0, 1, ... while the network is trained (dropout).
    """
    x = prompt.astype(jnp.float32)
    for index in range(gate.layers + 1):
        layer = jax.tree.map(lambda weight: weight.astype(jnp.float32), gating[f"layer_{index}"])
        x = x @ layer["weight"] + layer["bias"]
        if index < gate.layers:
            x = jax.nn.relu(x) if drop is None else drop(index, jax.nn.relu(x))
    return x


def gate_weights(gating: Params, gate: Gate, prompt: Array, drop: Callable[[int, Array], Array] | None = None) -> Array:
    """[..., K] what each objective counts for prompts [..., D]: a distribution over the *objectives* times a scale.

    The published training script takes the softmax over the two answers of a pair instead; both have the same prompt,
    so every weight is 1/2 and no gradient reaches the network.
    """
    logits = gate_logits(gating, gate, prompt, drop)
    return jax.nn.softmax(logits / gate.temperature, axis=-1) * gating["logit_scale"].astype(jnp.float32)


class GatedScores(NamedTuple):
    """ArmoRM's reading of a response (arXiv 2406.12845).

    score: [...], the sum over objectives of gate x transformed reward. rewards: [..., K] of each objective, as
    regressed. coefficients: [..., K], what each of those rewards counts: score = sum(coefficients * rewards).
    """

    score: Array
    rewards: Array
    coefficients: Array


def gated_scores(params: Params, config: DecoderConfig, response: Array, prompt: Array) -> GatedScores:
    """The mixture of objectives that a gate over the prompt chooses; all in float32.

    Args:
      response: [..., D] hidden state of the response's last token. prompt: [..., D] hidden state of the first token
        of the end of turn before the response, where the gate looks.
    """
    assert config.gate is not None
    rewards = score_heads(params, response)
    gate = gate_weights(params["gating"], config.gate, prompt)
    coefficients = gate @ params["reward_transform"].astype(jnp.float32).T
    return GatedScores(jnp.sum(coefficients * rewards, axis=-1), rewards, coefficients)
