"""The GPU kernel, run by Pallas's interpreter, is attention: values and gradients, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.models import packed_forward
from rlhf_jax.models.attention import RowIds, attention, packed_mask
from rlhf_jax.models.triton import find_visits, triton_rows
from rlhf_jax.parallel import auto_inside, make_mesh, replicated

TOKENS = 128
pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.fixture(scope="module")
def rows(make_groups):
    """Four packed rows of 128 tokens, the last one whole of padding."""
    groups = make_groups(14, 5, k=(1, 4), prompt=(5, 30), response=(1, 15))
    cut = pack_rows([group_length(g) for g in groups], TOKENS)[:3]
    return pack(groups, cut, row_shape(groups, cut, TOKENS), 4, None)


def ids_of(rows):
    return RowIds(*(jnp.asarray(x) for x in (rows.group_ids, rows.branch_ids, rows.positions)))


def check(rows, mesh, heads, kv_heads, window, softcap, head_dim=16):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (*rows.tokens.shape, count, head_dim)) for key, count in zip(
        keys, (heads, kv_heads, kv_heads), strict=False))
    real = np.asarray(rows.group_ids > 0)
    weights = jax.random.normal(keys[3], q.shape) * real[:, :, None, None]
    ids, rule = ids_of(rows), {"scale": 0.4, "softcap": softcap}
    kernel = triton_rows(mesh, TOKENS, interpret=True)

    def plain(q, k, v):
        out = attention(q, k, v, packed_mask(ids, window), **rule)
        return jnp.sum(weights * out), out

    def ours(q, k, v):
        out = kernel.attend(q, k, v, kernel.prepare(ids, window), **rule)
        return jnp.sum(weights * out), out

    ours_and_gradients = auto_inside(jax.value_and_grad(ours, (0, 1, 2), has_aux=True), mesh, replicated(mesh))
    (_, expected), expected_grads = jax.value_and_grad(plain, (0, 1, 2), has_aux=True)(q, k, v)
    (_, out), grads = jax.jit(ours_and_gradients)(*jax.device_put((q, k, v), replicated(mesh)))
    np.testing.assert_allclose(np.asarray(out)[real], np.asarray(expected)[real], atol=1e-5)
    assert not np.asarray(out)[~real].any()
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.longer
@pytest.mark.parametrize(("heads", "kv_heads", "window", "softcap", "head_dim"), [
    (4, 2, None, None, 12), pytest.param(4, 1, 7, 0.7, 16, marks=pytest.mark.slow)])
def test_values_and_gradients_are_those_of_attention_over_whole_rows(rows, lone_mesh, heads, kv_heads, window, softcap,
                                                                     head_dim):
    check(rows, lone_mesh, heads, kv_heads, window, softcap, head_dim)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=2, tensor=4),
                                   MeshConfig(fsdp=4, tensor=2, axis_types="explicit")], ids=str)
def test_the_same_with_rows_and_heads_cut_over_a_mesh(rows, shape):
    check(rows, make_mesh(shape), 4, 2, None, None)


def test_only_blocks_with_something_to_see_are_visited(rows):
    ids, block = ids_of(rows), 32
    mask = np.asarray(packed_mask(ids)).reshape(4, 4, block, 4, block).any(axis=(2, 4))
    visits = find_visits(ids, None, block)
    for row, first, second in np.ndindex(4, 4, 1):
        del second
        for needed, places, counts in ((mask[row, first], visits.keys, visits.key_counts),
                                       (mask[row, :, first], visits.queries, visits.query_counts)):
            assert places[row, first, : counts[row, first]].tolist() == np.flatnonzero(needed).tolist()
            assert counts[row, first] == needed.sum()
    assert mask.sum() < 0.6 * mask.size


@pytest.mark.longer
def test_padding_neither_takes_nor_gives_a_gradient(rows, lone_mesh):
    """A cotangent at padding, which no loss makes, must not reach anything."""
    ids, kernel = ids_of(rows), triton_rows(lone_mesh, TOKENS, interpret=True)
    q, k, v = jax.random.normal(jax.random.key(1), (3, *rows.tokens.shape, 2, 16))
    _, pull = jax.vjp(lambda q, k, v: kernel.attend(q, k, v, kernel.prepare(ids, None), scale=0.3, softcap=None),
                      q, k, v)
    padding = jnp.asarray(rows.group_ids == 0)[:, :, None, None]
    for gradient in pull(jnp.broadcast_to(padding, q.shape).astype(q.dtype)):
        assert not np.asarray(gradient).any()


@pytest.mark.slow
def test_the_decoder_with_mixed_windows_computes_the_same(rows, lone_mesh, tiny, weights):
    config = tiny("gemma2", window=4, full_layers=(1,), attn_softcap=2.0, norms="both")
    params, real = weights(config), np.asarray(rows.group_ids > 0)
    arrays = rows.tokens, rows.positions, rows.group_ids, rows.branch_ids
    plain = packed_forward(params, config, *arrays)
    ours = packed_forward(params, config, *arrays, rows=triton_rows(lone_mesh, TOKENS, interpret=True))
    np.testing.assert_allclose(ours[real], plain[real], atol=2e-5)


@pytest.mark.parametrize(("shape", "length", "what"), [
    (MeshConfig(), 100, "no multiple of 32"), (MeshConfig(context=2, fsdp=4), 128, "context = 2")])
def test_rows_it_cannot_take_are_refused(shape, length, what):
    with pytest.raises(ValueError, match=what):
        triton_rows(make_mesh(shape), length)
