"""Checkpoints are of weights, not of meshes: saved on eight devices, restored to the bit on any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.checkpoints import Checkpoints, restore_params, saved_params
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.step import TrainState, init_state, state_shardings


def state_on(config, shape, devices, seed):
    mesh = make_mesh(MeshConfig(**shape), jax.devices()[:devices])
    optimizer = make_optimizer(TrainConfig(), param_specs(config))
    params = init_params(jax.random.key(seed), config)
    return init_state(optimizer, params, state_shardings(optimizer, params, param_shardings(config, mesh), mesh))


def test_a_state_of_another_kind_says_what_to_do(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, TrainState(np.int32(3), {"w": np.ones(2)}, [np.ones(2), np.ones(2)]), [], [])
    checkpoints.close()
    like = jax.tree.map(jnp.asarray, TrainState(np.int32(0), {"w": np.ones(2)}, [np.ones(2)]))
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(ValueError, match=r"(?s)checkpoint of step 3 in .* holds another state .* delete that folder"):
        checkpoints.restore(3, like)
    checkpoints.close()


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(embed=32, vocab_multiple=32)


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """(folder, state): written by eight devices, weights cut over all of them."""
    folder = tmp_path_factory.mktemp("saved")
    state = state_on(config, {"fsdp": 4, "tensor": 2}, 8, seed=0)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(7, state, [{"step": 7, "loss": 0.5}], [])
    checkpoints.close()
    return folder, state


@pytest.mark.parametrize(("shape", "devices"), [
    ({"fsdp": 1}, 1), ({"fsdp": 2}, 2), ({"fsdp": 2, "tensor": 2}, 4), ({"data": 2, "fsdp": 2, "context": 2}, 8)])
def test_restored_to_the_bit_on_another_mesh(shape, devices, config, saved):
    folder, expected = saved
    like = state_on(config, shape, devices, seed=1)
    checkpoints = Checkpoints(folder, keep=1)
    found, log, unlogged = checkpoints.restore(checkpoints.latest(), like)
    checkpoints.close()
    assert (log, unlogged) == ([{"step": 7, "loss": 0.5}], [])
    for (path, wanted), got, place in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found),
                                          jax.tree.leaves(like), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted), err_msg=str(path))
        assert got.sharding == place.sharding


def test_the_weights_alone_are_restored_to_the_bit_on_another_mesh(config, saved):
    folder, expected = saved
    step, shapes = saved_params(folder)
    places = param_shardings(config, make_mesh(MeshConfig(fsdp=2), jax.devices()[:2]))
    found = restore_params(folder, step, jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places))
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(expected.params))
    assert jax.tree.map(lambda x: x.sharding, found) == places


def test_a_folder_without_a_whole_checkpoint_has_no_weights(tmp_path):
    assert saved_params(tmp_path) is None
