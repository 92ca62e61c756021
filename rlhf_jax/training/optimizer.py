"""AdamW with clipping, from optax, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import optax

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models.params import is_spec


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """How many of `steps` steps warm up; a share is rounded up, as transformers' `get_warmup_steps` does, but leaves
    the last step: the first of a warm-up moves nothing, and a lone step must."""
    if config.warmup_steps >= 1:
        return int(config.warmup_steps)
    return min(math.ceil(config.warmup_steps * steps), max(steps - 1, 0))


def make_schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Learning rate by step, counted from 0: transformers' `get_scheduler` of the same name.

    Warm-up is linear from 0 and reaches the peak at step `warmup_steps`; so the first step after none is at the peak,
    and the first step of a warm-up moves nothing. `constant` knows no warm-up. It is computed on the host, so that
    trainings that differ in it alone share their compiled step.
    """
    peak, kind, warmup = config.learning_rate, config.lr_scheduler_type, warmup_steps(config, steps)
    rest = max(1, steps - warmup)
    timescale = warmup or 10_000  # of inverse_sqrt
    low = config.min_lr_rate if kind == "cosine_with_min_lr" else 0.0

    def after(since: int) -> float:
        """Share of the peak, so many steps after the warm-up."""
        if kind == "inverse_sqrt":
            return math.sqrt(timescale / (since + timescale))
        if kind in ("constant", "constant_with_warmup"):
            return 1.0
        if kind == "linear":
            return max(0.0, 1 - since / rest)
        return low + (1 - low) * (1 + math.cos(math.pi * since / rest)) / 2

    def schedule(step: int) -> float:
        if step < warmup and kind != "constant":
            return peak * step / warmup
        return peak * after(max(step - warmup, 0))

    return schedule


def make_optimizer(config: TrainConfig, specs: Any) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov and Hutter, arXiv 1711.05101); norms and biases are not decayed.

    Its updates are of learning rate 1, upwards: a step takes `learning_rate` times them away. Equal settings give the
    same object, so that what is compiled for one serves the others.

    Args:
      specs: the `ParamSpec` tree of the trained parameters; it says which weights decay.
    """
    decayed = jax.tree.map(lambda spec: spec.init in ("normal", "output") or spec.axes[1:2] == ("rank",), specs,
                           is_leaf=is_spec)
    leaves, tree = jax.tree.flatten(decayed)
    return _adamw(config.max_grad_norm, config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.mu_dtype,
                  config.weight_decay, tuple(leaves), tree)


@lru_cache(maxsize=16)
def _adamw(max_grad_norm: float, beta1: float, beta2: float, epsilon: float, mu_dtype: str, weight_decay: float,
           decayed: tuple[bool, ...], tree: jax.tree_util.PyTreeDef) -> optax.GradientTransformation:
    clip = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm else []
    return optax.chain(*clip, optax.scale_by_adam(beta1, beta2, epsilon, mu_dtype=mu_dtype),
                       optax.add_decayed_weights(weight_decay, jax.tree.unflatten(tree, decayed)))
