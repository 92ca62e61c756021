"""Where arrays lie: rows of a process, and weights in the sampler's own layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models import init_params
from rlhf_jax.parallel import (
    batch_sharding,
    make_mesh,
    param_shardings,
    reshard_for_sampling,
    rows_here,
    sampling_layout,
)
from rlhf_jax.parallel.accelerators import CHIPS


@pytest.mark.parametrize("axis", [0, 1])
def test_one_process_has_all_rows(axis):
    assert rows_here(batch_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), axis), 8, axis) == list(range(8))


@pytest.mark.longer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [MeshConfig(), MeshConfig(fsdp=4, tensor=2)], ids=str)
def test_weights_are_handed_over_to_the_bit_and_counted(shape, dtype, tiny):
    config = tiny()
    params = init_params(jax.random.key(0), config)
    mesh = make_mesh(shape)
    goal = sampling_layout(config, dtype, mesh, SamplingConfig()).mesh
    assert dict(goal.shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    handed = reshard_for_sampling(jax.device_put(params, param_shardings(config, mesh)), config, jnp.dtype(dtype), goal)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), handed.params, params)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(handed.params))
    assert handed.bytes == 8 * sum(x.size for x in jax.tree.leaves(params)) * jnp.dtype(dtype).itemsize
    assert handed.seconds > 0


@pytest.mark.longer
@pytest.mark.parametrize(("slots", "tensor"), [(2, 4), (16, 4), (4096, 2)])
def test_weights_handed_over_in_the_cheapest_layout_are_the_same_to_the_bit(slots, tensor, tiny):
    """Few lanes read the weights in pieces; many pay more for all-reduces than the weights they would save."""
    config = tiny(embed=64, heads=4, kv_heads=4, mlp=128)
    params, mesh = init_params(jax.random.key(0), config), make_mesh()
    sampling = SamplingConfig(num_generations=1, slots=slots, max_new_tokens=8)
    chip = dataclasses.replace(CHIPS["cpu"], hbm_bandwidth=1e9, flops=1e15, link=1e10, hop=1e-9)
    goal = sampling_layout(config, "float32", mesh, sampling, chip)
    assert dict(goal.mesh.shape) == {"data": 8 // tensor, "fsdp": 1, "context": 1, "tensor": tensor}
    assert goal.why.startswith(f"tensor {tensor}: a token of {slots} lanes takes ")
    handed = reshard_for_sampling(jax.device_put(params, param_shardings(config, mesh)), config, jnp.float32, goal.mesh)
    jax.tree.map(np.testing.assert_array_equal, handed.params, params)
