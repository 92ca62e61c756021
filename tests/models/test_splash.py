"""The TPU kernel, run by Pallas's interpreter, is attention: values and gradients, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.models import packed_forward
from rlhf_jax.models.attention import RowIds, attention, packed_mask
from rlhf_jax.models.splash import splash_rows
from rlhf_jax.parallel import auto_inside, make_mesh, replicated

TOKENS = 256


pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.fixture(scope="module")
def rows(make_groups):
    """Four packed rows of 256 tokens, the last one whole of padding."""
    groups = make_groups(14, 5, k=(1, 4), prompt=(5, 60), response=(1, 30))
    cut = pack_rows([group_length(g) for g in groups], TOKENS)[:3]
    return pack(groups, cut, row_shape(groups, cut, TOKENS), 4, None)


def check(rows, mesh, heads, kv_heads, window, softcap):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (*rows.tokens.shape, count, 32)) for key, count in zip(
        keys, (heads, kv_heads, kv_heads), strict=False))
    real = np.asarray(rows.group_ids > 0)
    weights = jax.random.normal(keys[3], q.shape) * real[:, :, None, None]
    ids = RowIds(*(jnp.asarray(x) for x in (rows.group_ids, rows.branch_ids, rows.positions)))
    mask = packed_mask(ids, window)
    rule = {"scale": 0.4, "softcap": softcap}
    splash = splash_rows(mesh, TOKENS, softcap, interpret=True)

    def plain(q, k, v):
        out = attention(q, k, v, mask, **rule)
        return jnp.sum(weights * out), out

    def ours(q, k, v):
        out = splash.attend(q, k, v, splash.prepare(ids, window), **rule)
        return jnp.sum(weights * out), out

    ours_and_gradients = auto_inside(jax.value_and_grad(ours, (0, 1, 2), has_aux=True), mesh, replicated(mesh))

    (_, expected), expected_grads = jax.value_and_grad(plain, (0, 1, 2), has_aux=True)(q, k, v)
    (_, out), grads = jax.jit(ours_and_gradients)(*jax.device_put((q, k, v), replicated(mesh)))
    np.testing.assert_allclose(np.asarray(out)[real], np.asarray(expected)[real], atol=1e-5)
    assert np.isfinite(out).all()
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.longer
@pytest.mark.parametrize(("heads", "kv_heads", "window", "softcap"), [(4, 2, None, None), (4, 1, 7, 0.7)])
def test_values_and_gradients_are_those_of_attention_over_whole_rows(rows, lone_mesh, heads, kv_heads, window, softcap):
    check(rows, lone_mesh, heads, kv_heads, window, softcap)


@pytest.mark.longer
@pytest.mark.parametrize("shape", [MeshConfig(data=2, fsdp=2, context=2), MeshConfig(fsdp=2, tensor=4),
                                   MeshConfig(fsdp=4, tensor=2, axis_types="explicit")], ids=str)
def test_the_same_with_rows_positions_and_heads_cut_over_a_mesh(rows, shape):
    check(rows, make_mesh(shape), 4, 2, None, None)


@pytest.mark.longer
def test_the_decoder_with_mixed_windows_computes_the_same(rows, lone_mesh, tiny, weights):
    config = tiny("gemma2", window=4, full_layers=(1,), attn_softcap=2.0, norms="both")
    params = weights(config)
    arrays = rows.tokens, rows.positions, rows.group_ids, rows.branch_ids
    plain = packed_forward(params, config, *arrays)
    by_kernel = packed_forward(params, config, *arrays, rows=splash_rows(lone_mesh, TOKENS, 2.0, interpret=True))
    real = np.asarray(rows.group_ids > 0)
    np.testing.assert_allclose(np.asarray(by_kernel)[real], np.asarray(plain)[real], atol=2e-5)


def test_rows_that_the_kernel_cannot_cut_are_refused():
    with pytest.raises(ValueError, match=r"row_length = 384 over 2 device.s. of the .context. axis is no multiple"):
        splash_rows(make_mesh(MeshConfig(context=2)), 384, None)
