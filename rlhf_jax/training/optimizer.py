"""AdamW with warm-up, schedule and clipping, from optax."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models.params import is_spec


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """How many of `steps` steps warm up; a share is rounded up, as transformers' `get_warmup_steps` does."""
    return math.ceil(config.warmup_steps * steps) if config.warmup_steps < 1 else int(config.warmup_steps)


def make_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Learning rate by step, counted from 0: transformers' `get_scheduler` of the same name.

    Warm-up is linear from 0 and reaches the peak at step `warmup_steps`; so the first step after none is at the peak,
    and the first step of a warm-up moves nothing. `constant` knows no warm-up.
    """
    peak, kind, warmup = config.learning_rate, config.lr_scheduler_type, warmup_steps(config, steps)
    rest = max(1, steps - warmup)
    timescale = warmup or 10_000  # of inverse_sqrt
    low = config.min_lr_rate if kind == "cosine_with_min_lr" else 0.0

    def after(since: Any) -> Any:
        """Share of the peak, so many steps after the warm-up."""
        if kind == "inverse_sqrt":
            return jnp.sqrt(timescale / (since + timescale))
        if kind in ("constant", "constant_with_warmup"):
            return jnp.ones_like(since)
        if kind == "linear":
            return jnp.maximum(0.0, 1 - since / rest)
        return low + (1 - low) * (1 + jnp.cos(jnp.pi * since / rest)) / 2

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        share = after(jnp.maximum(step - warmup, 0))
        return peak * (share if kind == "constant" else jnp.where(step < warmup, step / max(1, warmup), share))

    return schedule


def make_optimizer(config: TrainConfig, schedule: optax.Schedule, specs: Any) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov and Hutter, arXiv 1711.05101); norms and biases are not decayed.

    Args:
      specs: the `ParamSpec` tree of the trained parameters; it says which weights decay.
    """
    decayed = jax.tree.map(lambda spec: spec.init in ("normal", "output") or spec.axes[1:2] == ("rank",), specs,
                           is_leaf=is_spec)
    adamw = optax.adamw(schedule, config.adam_beta1, config.adam_beta2, config.adam_epsilon,
                        mu_dtype=config.mu_dtype, weight_decay=config.weight_decay, mask=decayed)
    if config.max_grad_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
