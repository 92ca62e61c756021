"""Where arrays lie: rows of a process, and weights in the sampler's own layout."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.models import init_params
from rlhf_jax.parallel import (
    batch_sharding,
    make_mesh,
    param_shardings,
    reshard_for_sampling,
    rows_here,
    sampling_mesh,
    tensor_ways,
)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_process_has_all_rows(axis):
    assert rows_here(batch_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), axis), 8, axis) == list(range(8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [MeshConfig(), MeshConfig(fsdp=4, tensor=2)], ids=str)
def test_weights_are_handed_over_to_the_bit_and_counted(shape, dtype, tiny):
    config = tiny()
    params = init_params(jax.random.key(0), config)
    mesh = make_mesh(shape)
    goal = sampling_mesh(config, dtype, mesh)
    assert dict(goal.shape) == {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}
    handed = reshard_for_sampling(jax.device_put(params, param_shardings(config, mesh)), config, jnp.dtype(dtype), goal)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), handed.params, params)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(handed.params))
    assert handed.bytes == 8 * sum(x.size for x in jax.tree.leaves(params)) * jnp.dtype(dtype).itemsize
    assert handed.seconds > 0


def test_weights_are_cut_over_as_few_devices_as_leave_room_for_caches(tiny):
    config = tiny(heads=8, kv_heads=4)
    devices = [SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")] * 8  # 15.75 GiB each
    gib = 2**30
    assert [tensor_ways(config, size * gib, devices) for size in (7, 8, 16, 30, 300)] == [1, 2, 4, 4, 4]
    assert tensor_ways(config, 300 * gib, jax.devices()) == 1
