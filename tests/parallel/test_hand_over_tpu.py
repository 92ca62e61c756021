"""A process finds in its own mesh the parts of a weight that the mesh of all processes gave its devices.

On the devices of real TPU slices, which have places in a network; libtpu describes them without a TPU.
"""

import jax
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.models import config_from_hf, param_specs
from rlhf_jax.parallel import PRESETS, make_mesh, param_shardings
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.parallel.placement import _sampling_mesh, side_by_side
from rlhf_jax.parallel.topology import devices_of, has_tpu_compiler, prepare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not has_tpu_compiler(), reason="libtpu is not installed: pip install 'rlhf_jax[tpu]' brings the TPU's compiler")]
SHAPE = config_from_hf({
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False})


def misplaced(everywhere, devices, tensor):
    """(device, weight) whose part in the mesh of all is not its part in its own process's mesh."""
    shapes = [spec.shape for spec in jax.tree.leaves(param_specs(SHAPE), is_leaf=lambda x: hasattr(x, "axes"))]
    whole = jax.tree.leaves(param_shardings(SHAPE, everywhere, PRESETS["sampling"]))
    wrong = []
    for process in {device.process_index for device in devices}:
        mine = [device for device in devices if device.process_index == process]
        own = jax.tree.leaves(param_shardings(SHAPE, _sampling_mesh(mine, tensor), PRESETS["sampling"]))
        for shape, there, here in zip(shapes, whole, own, strict=True):
            places = there.devices_indices_map(shape)
            wrong += [(device.id, shape) for device, place in here.devices_indices_map(shape).items()
                      if places[device] != place]
    return wrong


@pytest.mark.parametrize(("name", "tensor"), [
    ("v6e-16", 4), ("v5e-64", 4), ("v5p-128", 4), ("v5p-16", 2), ("v6e-16", 2)])
def test_every_device_keeps_its_part(name, tensor):
    prepare()
    devices = list(devices_of(find_accelerator(name)))
    order = np.random.default_rng(0).permutation(len(devices))
    everywhere = side_by_side([devices[i] for i in order], tensor)
    assert everywhere.devices.size == len(devices)
    assert not misplaced(everywhere, devices, tensor)


def test_a_mesh_of_all_devices_at_once_would_misplace_them():
    prepare()
    devices = list(devices_of(find_accelerator("v6e-16")))
    assert misplaced(make_mesh(MeshConfig(data=-1, fsdp=1, tensor=4), devices), devices, 4)
