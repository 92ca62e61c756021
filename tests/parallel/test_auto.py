import dataclasses

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


@dataclasses.dataclass
class Card:
    """A GPU of a cluster. slice_index: its host's number, as JAX tells it."""

    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    def memory_stats(self):
        return {"bytes_limit": 80e9}


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("rows", [128, 26, 4])
def test_four_hosts_of_eight_gpus_are_laid_out_alike_in_however_many_processes(processes, rows):
    cards = [Card(card * processes // 8, card // 8) for card in range(32)]
    assert len({card.process_index for card in cards}) == 4 * processes
    room = room_here(cards)
    assert room == room_of(find_accelerator("4x8xH100"))._replace(hbm_bytes=80e9)
    assert choose_mesh(room, Need(LLAMA, rows, heads=32)).mesh.data == 4


def test_a_process_is_a_host_of_a_tpu():
    chips = [Card(chip // 4, chip // 16, "tpu", "TPU v5 lite") for chip in range(32)]
    assert room_here(chips) == room_of(find_accelerator("2xv5e-16"))
