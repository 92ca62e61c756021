import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.losses import PairLogps


@pytest.fixture
def appendix_a():
    """The three pairs of the golden vectors, as functions of a dtype."""

    def pair(dtype=jnp.float32):
        rows = [-10, -20, -7], [-12, -15, -30], [-11, -18, -9], [-11.5, -16, -25], [5, 8, 4], [6, 7, 12]
        return PairLogps(*(jnp.asarray(row, dtype) for row in rows))

    return pair


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield
