"""f-divergence maps: what DPO applies to a log-ratio when the KL penalty is replaced by another f-divergence.

All maps are of u = log policy(y|x) - log reference(y|x), increasing, 0 at u = 0: f' of Wang et al., arXiv 2309.16240,
less its value where policy = reference. That constant cancels in a difference of mapped ratios, and not where each is
first divided by its own length (`sigmoid_norm`, `ipo`). Losses that read one ratio by itself take none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

EXPONENT_CAP = 80.0
"""Largest exponent taken: exp(80) = 5.5e34 is finite in float32. Beyond it a map is flat and passes no gradient."""

Divergence = Callable[[Array], Array]
"""Maps log-ratios [...] to [...], increasing."""


def capped_exp(x: Array) -> Array:
    """Computes exp(min(x, EXPONENT_CAP)); [...] to [...]."""
    return jnp.exp(jnp.minimum(x, EXPONENT_CAP))


def _capped_expm1(x: Array) -> Array:
    """Computes exp(x) - 1 of x up to the cap; [...] to [...]."""
    return jnp.expm1(jnp.minimum(x, EXPONENT_CAP))


def reverse_kl(u: Array) -> Array:
    """Computes s(u) = u, plain DPO; [...] to [...].

    >>> reverse_kl(jnp.array([0.5, -1.0]))
    Array([0.5, -1.0], dtype=float32)
    """
    return u


def forward_kl(u: Array) -> Array:
    """Computes s(u) = 1 - exp(-u), exponent capped; [...] to [...].

    >>> forward_kl(jnp.array([0.5, -1.0]))
    Array([ 0.3935, -1.7183], dtype=float32)
    """
    return -_capped_expm1(-u)


def js_divergence(u: Array) -> Array:
    """Computes s(u) = log 2 + log sigma(u), the Jensen-Shannon map; [...] to [...].

    >>> js_divergence(jnp.array([0.5, -1.0]))
    Array([ 0.2191, -0.6201], dtype=float32)
    """
    return math.log(2.0) + jax.nn.log_sigmoid(u)


def alpha_divergence(u: Array, coef: float = 0.5) -> Array:
    """Computes s(u) = (exp((coef - 1) u) - 1) / (coef - 1), exponent capped; [...] to [...].

    coef = 0 is `forward_kl`; it tends to `reverse_kl` as coef tends to 1. Older TRL versions named 1 - coef.

    >>> alpha_divergence(jnp.array([0.5, -1.0]), coef=0.5)
    Array([ 0.4424, -1.2974], dtype=float32)
    """
    return _capped_expm1((coef - 1.0) * u) / (coef - 1.0)


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js_divergence": js_divergence,
    "alpha_divergence": alpha_divergence,
}


def f_divergence(f_divergence_type: str = "reverse_kl", f_alpha_divergence_coef: float = 0.5) -> Divergence:
    """Looks up the map of a name; the coefficient is read by `alpha_divergence` alone.

    Raises:
      ValueError: for an unknown name, or for alpha_divergence with coefficient 1.

    >>> f_divergence("alpha_divergence", 0.5)(jnp.array([0.5, -1.0]))
    Array([ 0.4424, -1.2974], dtype=float32)
    """
    if f_divergence_type not in DIVERGENCES:
        raise ValueError(
            f"f_divergence_type={f_divergence_type!r} is not a known divergence. "
            f"Choose one of {', '.join(DIVERGENCES)}."
        )
    if f_divergence_type != "alpha_divergence":
        return DIVERGENCES[f_divergence_type]
    if f_alpha_divergence_coef == 1.0:
        raise ValueError(
            "f_alpha_divergence_coef=1.0 divides by zero in exp((c - 1) u) / (c - 1). "
            "The limit is f_divergence_type='reverse_kl'; use that, or a coefficient other than 1."
        )
    return partial(alpha_divergence, coef=f_alpha_divergence_coef)
