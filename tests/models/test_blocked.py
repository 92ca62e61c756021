"""Blocked attention is attention: values and gradients, windows, soft caps, and no block visited in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.models import packed_forward
from rlhf_jax.models.attention import RowIds, attention, packed_mask
from rlhf_jax.models.blocked import blocked_attention, blocked_rows, find_blocks

pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.fixture(scope="module")
def rows(make_groups):
    """Packed rows of 64 tokens, two of them whole of padding."""
    groups = make_groups(12, 5, k=(1, 4), prompt=(1, 9), response=(1, 9))
    cut = pack_rows([group_length(g) for g in groups], 64)
    return pack(groups, cut, row_shape(groups, cut, 64), len(cut) + 2, None)


def visible(rows, window=None):
    return packed_mask(RowIds(*(jnp.asarray(x) for x in (rows.group_ids, rows.branch_ids, rows.positions))), window)


@pytest.mark.longer
@pytest.mark.parametrize("block", [8, 16, 32, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "window", "softcap"), [
    (4, 2, None, None), (2, 2, 5, None), (6, 1, 3, 0.7)])
def test_values_and_gradients_are_those_of_attention_over_whole_rows(rows, block, heads, kv_heads, window, softcap):
    batch, length = rows.tokens.shape
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (batch, length, count, 8)) for key, count in zip(
        keys, (heads, kv_heads, kv_heads), strict=False))
    weights = jax.random.normal(keys[3], q.shape) * (rows.group_ids > 0)[:, :, None, None]
    mask = visible(rows, window)
    rule = {"scale": 0.4, "softcap": softcap}

    def plain(q, k, v):
        out = attention(q, k, v, mask, **rule)
        return jnp.sum(weights * out), out

    def ours(q, k, v):
        out = blocked_attention(q, k, v, find_blocks(mask, block), **rule)
        return jnp.sum(weights * out), out

    (_, expected), expected_grads = jax.value_and_grad(plain, (0, 1, 2), has_aux=True)(q, k, v)
    (_, out), grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(q, k, v)
    real = np.asarray(rows.group_ids > 0)
    np.testing.assert_allclose(out[real], expected[real], atol=1e-5)
    assert np.isfinite(out).all()
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_only_blocks_with_something_to_see_are_visited(rows):
    mask = np.asarray(visible(rows))
    blocks = find_blocks(jnp.asarray(mask), 16)
    for row in range(len(mask)):
        for query in range(4):
            seen = mask[row, query * 16 : query * 16 + 16].reshape(16, 4, 16)
            needed = np.flatnonzero(seen.any(axis=(0, 2))).tolist()
            assert int(blocks.counts[row, query]) == len(needed)
            assert blocks.keys[row, query, : len(needed)].tolist() == needed
    assert int(blocks.counts.sum()) < 0.7 * len(mask) * 16
    assert not np.asarray(blocks.counts[-2:]).any()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_the_decoder_computes_the_same_with_blocks(rows, family, tiny, weights):
    changes = {} if family != "gemma2" else {"window": 4, "full_layers": (1,), "attn_softcap": 2.0, "norms": "both"}
    config = tiny(family, **changes)
    params = weights(config)
    arrays = rows.tokens, rows.positions, rows.group_ids, rows.branch_ids
    plain = packed_forward(params, config, *arrays)
    blocked = packed_forward(params, config, *arrays, rows=blocked_rows(16))
    real = np.asarray(rows.group_ids > 0)
    np.testing.assert_allclose(blocked[real], plain[real], atol=2e-5)
