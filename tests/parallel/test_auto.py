import jax
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.parallel import Need, Room, choose_mesh, room_here
from rlhf_jax.parallel.accelerators import find_accelerator, known_names
from rlhf_jax.parallel.auto import room_of

LLAMA = 8_030_261_248


@pytest.mark.parametrize(("name", "params", "rows", "mesh", "reason"), [
    ("v5p-16", LLAMA, 128, MeshConfig(1, 8), "fsdp 8"),  # rows for all: fsdp alone
    ("v5e-256", LLAMA, 128, MeshConfig(1, 128, 1, 2), "tensor 2, since a batch of 128 rows does not feed 256"),
    ("v5e-256", LLAMA, 16, MeshConfig(1, 64, 1, 4), "idle"),  # tensor stays inside a host of four
    ("2xv5p-16", LLAMA, 128, MeshConfig(2, 8), "data 2 across the slices"),
    ("2xv5e-4", LLAMA, 128, MeshConfig(1, 8), "too much for one"),  # 18 bytes per weight, 16 GB per chip
    ("4x8xH100", LLAMA, 128, MeshConfig(4, 8), "data 4 across the slices"),
    ("v5e-1", 1000, 8, MeshConfig(1, 1), "one device"),
    ("cpu-8", 1000, None, MeshConfig(1, 8), "fsdp 8"),
])
def test_the_choice_and_its_reason(name, params, rows, mesh, reason):
    choice = choose_mesh(room_of(find_accelerator(name)), Need(params, rows, heads=32))
    assert choice.mesh == mesh
    assert reason in choice.why


@pytest.mark.parametrize("name", known_names())
@pytest.mark.parametrize("rows", [None, 1, 24, 128])
def test_every_choice_uses_all_devices(name, rows):
    room = room_of(find_accelerator(name))
    mesh = choose_mesh(room, Need(LLAMA, rows, heads=32)).mesh
    assert -1 not in mesh.shape(room.devices)
    assert mesh.tensor <= room.per_host


def test_tensor_divides_the_heads():
    assert choose_mesh(Room(8, 8), Need(LLAMA, 2, heads=6)).mesh == MeshConfig(1, 4, 1, 2)


def test_the_devices_that_are_here():
    assert room_here(jax.devices()) == Room(8, 8, 1, None)
