"""AdamW with warm-up, schedule and clipping, from optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models.params import is_spec


def make_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to the peak, then `lr_scheduler_type` over the remaining steps."""
    peak = config.learning_rate
    warmup = round(config.warmup_steps * steps) if config.warmup_steps < 1 else int(config.warmup_steps)
    if config.lr_scheduler_type == "constant":
        return optax.constant_schedule(peak)
    rest = max(1, steps - warmup)
    after: dict[str, optax.Schedule] = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "cosine_with_min_lr": optax.cosine_decay_schedule(peak, rest, alpha=config.min_lr_rate),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant_with_warmup": optax.constant_schedule(peak),
        "inverse_sqrt": lambda step: peak * (max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))) ** 0.5,
    }
    if warmup == 0:
        return after[config.lr_scheduler_type]
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after[config.lr_scheduler_type]], [warmup])


def make_optimizer(config: TrainConfig, schedule: optax.Schedule, specs: Any) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov and Hutter, arXiv 1711.05101); norms and biases are not decayed.

    Args:
      specs: the `ParamSpec` tree of the trained parameters; it says which weights decay.
    """
    decayed = jax.tree.map(lambda spec: spec.init in ("normal", "output") or spec.axes[1:2] == ("rank",), specs,
                           is_leaf=is_spec)
    adamw = optax.adamw(schedule, config.adam_beta1, config.adam_beta2, config.adam_epsilon,
                        weight_decay=config.weight_decay, mask=decayed)
    if config.max_grad_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
