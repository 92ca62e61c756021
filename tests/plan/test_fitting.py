"""The search for what makes a stage fit, with a made-up compiler."""

import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.plan.fitting import changes, smallest_change
from rlhf_jax.plan.shapes import Assumptions, PassShape, SampleShape, TrainShape

ACCELERATOR = find_accelerator("2x8xH100")
MESH = MeshConfig(data=2, fsdp=8)


@pytest.fixture
def stage(tiny):
    options = PreferenceOptions(train=TrainConfig(micro_rows=4, logits_chunk=512, remat="none"))
    return TrainShape("dpo", tiny(), options, 1024, 2, Assumptions())


def words(stage, mesh=MESH, accelerator=ACCELERATOR):
    return [", ".join(change.words) for change in changes(stage, mesh, accelerator)]


def test_what_costs_least_comes_first_then_all_together(stage):
    assert words(stage) == [
        "logits_chunk 128", "micro_rows 1", "remat full", "mesh fsdp 16", "mesh fsdp 4 x tensor 2",
        "logits_chunk 128, micro_rows 1", "logits_chunk 128, micro_rows 1, remat full",
        "logits_chunk 128, micro_rows 1, remat full, mesh fsdp 16",
        "logits_chunk 128, micro_rows 1, remat full, mesh fsdp 8 x tensor 2",
    ]


def test_tensor_stays_inside_a_host_and_divides_the_key_heads(tiny):
    wide = PassShape("reference", tiny(heads=8, kv_heads=8), "bfloat16", "logps", 1024, 1, 1, Assumptions())
    assert words(wide, MeshConfig(fsdp=4, tensor=4), find_accelerator("v6e-16")) == []  # four chips per host
    assert words(wide, MeshConfig(fsdp=8, tensor=2), find_accelerator("v6e-16")) == ["mesh fsdp 4 x tensor 4"]
    narrow = PassShape("reference", tiny(), "bfloat16", "logps", 1024, 1, 1, Assumptions())
    assert words(narrow, MeshConfig(fsdp=8, tensor=2), find_accelerator("v6e-16")) == []  # two key heads
    scores = PassShape("score", tiny(heads=8, kv_heads=8), "bfloat16", "scores", 1024, 2, 1, Assumptions())
    assert words(scores, MeshConfig(fsdp=8, tensor=2), find_accelerator("v6e-16")) == ["rows_per_batch 1"]  # on a host


def test_slots_stay_a_multiple_of_a_hosts_devices_then_lanes_halve(tiny):
    one = SampleShape("decode", tiny(), SamplingConfig(slots=32, num_generations=4), "bfloat16", 64, Assumptions())
    assert words(one) == ["slots 16", "slots 8", "slots 8, lanes 2"]
    fewest = SampleShape("decode", tiny(), SamplingConfig(slots=8, num_generations=4), "bfloat16", 64, Assumptions())
    assert words(fewest) == ["lanes 2", "lanes 1"]


def test_the_first_change_that_fits_is_taken_and_no_more_is_compiled(stage):
    tried = []

    def compile_it(change):
        tried.append(change)
        return {"micro_rows 1": 10}.get(change.words[0], 99)

    change, size = smallest_change(stage, MESH, ACCELERATOR, 5, compile_it, lambda size: size <= 10)
    assert (change.words, size, change.stage.options.train.micro_rows) == (("micro_rows 1",), 10, 1)
    assert change.stage.options.train.logits_chunk == 512  # the first change did not help: no part of the second
    assert len(tried) == 2


def test_a_search_ends_after_so_many_compilations(stage):
    tried = []
    assert smallest_change(stage, MESH, ACCELERATOR, 3, tried.append, lambda _: False) is None
    assert len(tried) == 3
