"""The losses of single responses that a run asks for, over a batch: KTO, APO-zero-unpaired, BCO."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from rlhf_jax.losses.kto import kto_baseline
from rlhf_jax.losses.preference import PreferenceLoss, Term, knob_values
from rlhf_jax.losses.registry import find_loss
from rlhf_jax.losses.shapes import check_one_shape


class Responses(NamedTuple):
    """Single responses, [N] each.

    Attributes:
      logps, ref_logps: float32 summed log-probabilities under the policy and the reference.
      desirable: bool.
      mask: bool, True for responses with a label.
      mismatched: bool, True for answers to another prompt, which are only compared with the reference (KTO).
    """

    logps: Array
    ref_logps: Array
    desirable: Array
    mask: Array
    mismatched: Array


def response_loss(responses: Responses, spec: PreferenceLoss) -> tuple[Term, ...]:
    """Computes every loss of `spec` on N responses, which are the whole batch.

    Args:
      responses: arrays [N].
      spec: what to compute; static.

    Returns:
      One `Term` per loss type, in order; every response with a label weighs 1, its class's weight being in its value.

    Raises:
      ValueError: shapes differ.

    >>> both, none = jnp.array([True, True]), jnp.array([False, False])
    >>> responses = Responses(pair.chosen, pair.ref_chosen, jnp.array([True, False]), mask=both, mismatched=none)
    >>> response_loss(responses, PreferenceLoss("apo_zero_unpaired", beta=0.1))[0].values
    Array([0.475, 0.4502], dtype=float32)
    """
    check_one_shape("response_loss", **responses._asdict())
    mask = responses.mask
    logps, ref_logps = (jnp.where(mask, values, 0.0) for values in (responses.logps, responses.ref_logps))
    inputs = {"baseline": kto_baseline(responses.logps, responses.ref_logps, responses.mismatched),
              "shift": bco_shift(spec.beta * (logps - ref_logps), responses.desirable, mask)}
    knobs = knob_values(spec)

    def term(name: str, coefficient: float) -> Term:
        loss = find_loss(name)
        keywords = {knob: knobs[knob] for knob in loss.knobs} | {key: inputs[key] for key in loss.inputs}
        values = loss.function(logps, ref_logps, responses.desirable, **keywords)
        return Term(name, coefficient, jnp.where(mask, values, 0.0), mask.astype(values.dtype))

    return tuple(term(name, weight) for name, weight in zip(spec.loss_types, spec.weights, strict=True))


def bco_shift(rewards: Array, desirable: Array, mask: Array) -> Array:
    """Computes BCO's reward shift over a batch: the mean of the classes' mean rewards; of one class its own mean; [].

    The paper takes the expectation over both classes, half each (Jung et al., arXiv 2404.04656, eq. 7); TRL keeps a
    running mean over steps, this is that of the batch alone.

    Args:
      rewards: [N] beta times the log-ratios.
      desirable, mask: [N] bool.

    >>> bco_shift(jnp.array([0.1, 0.3, -0.1]), jnp.array([True, True, False]), jnp.array([True, True, True]))
    Array(0.05, dtype=float32)
    """
    check_one_shape("bco_shift", rewards=rewards, desirable=desirable, mask=mask)

    def mean(chosen: Array) -> tuple[Array, Array]:
        count = jnp.sum(chosen.astype(rewards.dtype))
        return jnp.sum(jnp.where(chosen, rewards, 0.0)) / jnp.maximum(count, 1.0), (count > 0).astype(rewards.dtype)

    (good, any_good), (bad, any_bad) = mean(mask & desirable), mean(mask & ~desirable)
    return (good + bad) / jnp.maximum(any_good + any_bad, 1.0)
