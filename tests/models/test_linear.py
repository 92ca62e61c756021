"""The gradients of a product, whichever of its factors is the larger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.linear import dense

pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.mark.parametrize(("shape", "inputs"), [((6, 20), 1), ((20, 6), 1), ((6, 2, 5), 1), ((30, 2, 5), 1),
                                               ((4, 5, 6), 2), ((2, 2, 30), 2)])
def test_gradients_are_those_of_the_plain_product(shape, inputs):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 7, *shape[:inputs]))
    weight, pull = jax.random.normal(keys[1], shape), jax.random.normal(keys[2], (2, 7, *shape[inputs:]))
    found = jax.jit(jax.grad(lambda x, w: jnp.sum(pull * dense(x, w, inputs)), (0, 1)))(x, weight)
    x, weight, pull = (np.asarray(value, np.float64) for value in (x, weight, pull))
    outputs = weight.ndim - inputs
    to_x = np.tensordot(pull, weight, (tuple(range(2, 2 + outputs)), tuple(range(inputs, weight.ndim))))
    np.testing.assert_allclose(found[0], to_x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], np.tensordot(x, pull, ((0, 1), (0, 1))), rtol=1e-5, atol=1e-5)
