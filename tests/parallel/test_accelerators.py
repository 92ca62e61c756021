import pytest

from rlhf_jax.parallel.accelerators import CHIPS, find_accelerator, known_names, memory_of


@pytest.mark.parametrize(("name", "devices", "topology", "hosts"), [
    ("v4-64", 32, "2x4x4", 8),  # v4 and v5p count TensorCores, two per chip
    ("v5p-16", 8, "2x2x2", 2),
    ("v5p-512", 256, "4x8x8", 64),
    ("v5e-16", 16, "4x4", 4),  # v5e and v6e count chips
    ("v5litepod-16", 16, "4x4", 4),
    ("v6e-256", 256, "16x16", 64),
    ("v5e-4", 4, "2x2", 1),
    ("v5e-8", 8, "2x4", 1),  # one machine with eight chips
    ("v6e-8", 8, "2x4", 1),
    ("2xv6e-8", 16, "2x4", 2),
    ("v5p-8", 4, "2x2x1", 1),
    ("2xv5e-256", 512, "16x16", 128),
    ("8xH100", 8, "", 1),
    ("4x8xH100", 32, "", 4),
    ("2x8xh200", 16, "", 2),
    ("cpu-8", 8, "", 1),
])
def test_names_count_what_their_cloud_counts(name, devices, topology, hosts):
    found = find_accelerator(name)
    assert (found.devices, found.topology) == (devices, topology)
    assert found.devices / found.per_host == hosts


def test_every_known_name_is_found_and_its_topology_has_as_many_chips():
    for name in known_names():
        found = find_accelerator(name)
        sides = [int(side) for side in found.topology.split("x") if side]
        product = 1
        for side in sides:
            product *= side
        assert not sides or product == found.per_slice, name
        assert found.chip.hbm_bytes > 0
        assert found.name in found.describe() or found.chip.name in found.describe()


@pytest.mark.parametrize(("name", "near"), [("v5p-12", "v5p-128"), ("v5-16", "v5e-16"), ("8xA100", "8xH100"),
                                            ("v5p-15", "v5p-16"), ("tpu", "v4-8"), ("v5e-3", "v5e-32"),
                                            ("0xv5e-16", "v5e-16")])
def test_an_unknown_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=r"no accelerator is called .*did you mean") as error:
        find_accelerator(name)
    assert name == "tpu" or near in str(error.value)


def test_more_gpus_than_a_host_holds_are_written_as_hosts():
    with pytest.raises(ValueError, match=r"as 4x8xH100"):
        find_accelerator("32xH100")


@pytest.mark.parametrize(("name", "links"), [
    ("v5p-8", 2),  # 2x2x1: one link each way along two sides
    ("v5p-16", 3),
    ("v5p-128", 6),  # a cube of 4x4x4 closes to a torus
    ("v5e-64", 2),  # 8x8: sides of v5e close at 16
    ("v5e-128", 3),
    ("v5e-256", 4),
    ("8xH100", 1),
])
def test_links_that_a_collective_over_a_slice_can_use(name, links):
    found = find_accelerator(name)
    assert found.links == links
    assert found.inside == links * found.chip.link


def test_a_whole_torus_gives_what_the_vendor_prints_for_both_directions():
    for name, gigabytes in (("v5p-512", 1200), ("v5e-256", 400), ("v6e-256", 800)):
        assert 2 * find_accelerator(name).inside == gigabytes * 1e9


class Device:
    def __init__(self, platform, device_kind="", limit=None):
        self.platform, self.device_kind, self._limit = platform, device_kind, limit

    def memory_stats(self):
        return None if self._limit is None else {"bytes_limit": self._limit}


def test_memory_of_a_device_by_its_kind_or_by_what_it_says():
    assert memory_of(Device("tpu", "TPU v5 lite")) == CHIPS["v5e"].hbm_bytes
    assert memory_of(Device("gpu", "NVIDIA H100", 7)) == 7
    assert memory_of(Device("gpu", "something")) is None
    assert memory_of(Device("cpu")) is None
