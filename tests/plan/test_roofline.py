"""What kernels leave undone, by formula."""

import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.parallel import make_mesh
from rlhf_jax.plan import roofline
from rlhf_jax.plan.shapes import Assumptions, SampleShape, TrainShape, reference_shape

ASSUME = Assumptions(prompt_tokens=100, response_tokens=60)


def test_decoding_by_kernels_reads_what_lanes_see(tiny):
    config = tiny()
    sampling = SamplingConfig(slots=16, num_generations=4, max_new_tokens=128, block=32)
    stage = SampleShape("decode", config, sampling, "bfloat16", 512, ASSUME)
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    deep, seen = (roofline.work_of(stage, mesh, kernels) for kernels in (0, 4))
    position = 2 * config.layers * config.kv_heads * config.head_dim * 2  # bytes of k and v in bfloat16
    slots = 16 / 8  # of a device; 30 of a response's 60 tokens are there on average
    assert deep.hbm - seen.hbm == 32 * position * slots * ((512 - 100) + 4 * (128 - 30))
    assert deep.useful == seen.useful
    attention = 4 * config.heads * config.head_dim * config.layers  # operations for each query and key
    assert deep.executed - seen.executed == 32 * 16 * 4 * attention * (512 + 128 - 100 - 30)


@pytest.mark.parametrize(("platform", "kernels", "keys"), [("tpu", 1, 512), ("gpu", 1, 64), ("gpu", 0, None)])
def test_a_query_is_multiplied_with_what_it_sees_and_a_block_more(monkeypatch, tiny, platform, kernels, keys):
    config, length = tiny(), 4096
    options = PreferenceOptions(train=TrainConfig(row_length=length, micro_rows=1))
    stage = reference_shape(TrainShape("dpo", config, options, length, 2, ASSUME))
    monkeypatch.setattr(roofline, "platform_of", lambda mesh: platform)
    mesh = make_mesh(MeshConfig())
    attention = 4 * config.heads * config.head_dim * config.layers
    seen = (100 * 101 / 2 + 2 * (60 * 100 + 60 * 61 / 2)) / 220  # of a prompt and two responses
    rest = roofline.work_of(stage, mesh, 0).executed - 8 * length * attention * length
    executed = roofline.work_of(stage, mesh, kernels).executed
    assert executed - rest == pytest.approx(8 * length * attention * (length if keys is None else seen + keys))
