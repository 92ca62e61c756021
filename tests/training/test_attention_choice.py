"""Which attention runs where, and what is refused."""

import jax
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models.attention import WHOLE_ROWS, RowIds, _by_jax, attention, packed_mask
from rlhf_jax.models.blocked import blocked_attention
from rlhf_jax.parallel import make_mesh
from rlhf_jax.training.attention import row_attention, skips_blocks


@pytest.fixture
def lone():
    return make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize(("length", "block"), [(640, 64), (160, 32), (100, None)])
def test_one_cpu_device_visits_blocks_where_rows_are_long_enough(tiny, lone, length, block):
    found = row_attention("auto", tiny(), lone, length)
    assert skips_blocks(lone)
    assert found is WHOLE_ROWS if block is None else found.prepare.keywords == {"block": block}
    assert (found.attend is blocked_attention) == (block is not None)


def test_many_cpu_devices_or_no_mesh_look_at_whole_rows(tiny):
    assert not skips_blocks(make_mesh())
    assert row_attention("auto", tiny(), make_mesh(), 640) is WHOLE_ROWS
    assert row_attention("auto", tiny(), None, 640) is WHOLE_ROWS


@pytest.mark.parametrize(("wanted", "what"), [
    ("splash", "is a TPU kernel and there is no TPU here"), ("cudnn", "needs an NVIDIA GPU"),
    ("triton", "needs an NVIDIA GPU"),
    ("blocked", r"here are 8 device\(s\), rows of 640")])
def test_what_cannot_work_here_is_refused(tiny, wanted, what):
    with pytest.raises(ValueError, match=what):
        row_attention(wanted, tiny(), make_mesh(), 640)


@pytest.mark.parametrize(("context", "length", "kind"), [(1, 640, "triton"), (1, 100, "xla"), (2, 640, "xla")])
def test_gpus_visit_blocks_unless_a_row_is_cut_or_fits_no_block(tiny, monkeypatch, context, length, kind):
    monkeypatch.setattr("rlhf_jax.training.attention.platform_of", lambda mesh: "gpu")
    mesh = make_mesh(MeshConfig(context=context))
    found = row_attention("auto", tiny(), mesh, length)
    assert (found is WHOLE_ROWS) == (kind == "xla")
    assert skips_blocks(mesh) == (context == 1)


def test_a_choice_has_an_effect(tiny, lone):
    assert row_attention("xla", tiny(), lone, 640) is WHOLE_ROWS


def test_cudnn_computes_in_half_precision():
    with pytest.raises(ValueError, match="set dtype: bfloat16"):
        TrainConfig(attn_implementation="cudnn")


@pytest.mark.longer
def test_the_call_that_cudnn_gets_is_attention():
    """The same call under jax's own XLA implementation: layouts, mask and scale are as cuDNN will see them."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 16, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    groups = np.repeat([[1, 2]], 8, axis=1).repeat(2, axis=0)
    places = np.tile(np.arange(8), (2, 2))
    mask = packed_mask(RowIds(groups, np.zeros_like(groups), places))
    np.testing.assert_allclose(_by_jax("xla", q, k, v, mask, scale=0.3, softcap=None),
                               attention(q, k, v, mask, scale=0.3), atol=1e-6)
