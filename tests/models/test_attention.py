import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models.attention import KeyValues, RowIds, Stored, attention, decode_attention, packed_mask


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


pytestmark = pytest.mark.usefixtures("exact_matmul")


ROW = {"group_ids": [1, 1, 1, 1, 1, 1, 2, 2, 0], "branch_ids": [0, 0, 1, 1, 2, 2, 0, 1, 0],
       "positions": [0, 1, 2, 3, 2, 3, 0, 1, 0]}


def mask_of(window=None):
    arrays = [jnp.asarray([ROW[name]], jnp.int32) for name in ("group_ids", "branch_ids", "positions")]
    return np.asarray(packed_mask(RowIds(*arrays), window))[0]


def test_a_query_sees_its_prompt_and_its_own_branch_by_hand():
    picture = ["1........", "11.......", "111......", "1111.....", "11..1....", "11..11...", "......1..", "......11.",
               "........."]
    assert ["".join("1" if x else "." for x in row) for row in mask_of()] == picture


def test_the_window_counts_positions_along_the_branch_and_not_along_the_row():
    picture = ["1........", "11.......", ".11......", "..11.....", ".1..1....", "....11...", "......1..", "......11.",
               "........."]
    assert ["".join("1" if x else "." for x in row) for row in mask_of(2)] == picture


def test_a_wide_window_hides_nothing():
    np.testing.assert_array_equal(mask_of(4), mask_of())
    assert mask_of(3).sum() == mask_of().sum() - 2  # the last tokens of both branches lose the first prompt token


@pytest.mark.longer
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_softmax_one_query_and_one_head_at_a_time(heads, kv_heads, softcap):
    q, k, v = random(2, 5, heads, 8), random(2, 7, kv_heads, 8, seed=1), random(2, 7, kv_heads, 8, seed=2)
    mask = jax.random.bernoulli(jax.random.key(3), 0.5, (2, 5, 7)).at[:, :, 0].set(True)
    out = attention(q, k, v, mask, scale=0.4, softcap=softcap)
    for b in range(2):
        for t in range(5):
            for h in range(heads):
                seen = np.flatnonzero(mask[b, t])
                shared = h // (heads // kv_heads)
                scores = np.asarray(k[b, seen, shared] @ q[b, t, h]) * 0.4
                scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                weights = np.exp(scores) / np.exp(scores).sum()
                np.testing.assert_allclose(out[b, t, h], weights @ v[b, seen, shared], atol=1e-5)


@pytest.mark.longer
def test_a_query_that_sees_nothing_stays_finite_with_finite_gradients():
    q, k, v = random(1, 2, 2, 4), random(1, 3, 2, 4, seed=1), random(1, 3, 2, 4, seed=2)
    mask = jnp.zeros((1, 2, 3), bool)
    grads = jax.grad(lambda *x: attention(*x, mask, scale=0.5).sum(), (0, 1, 2))(q, k, v)
    assert all(np.isfinite(x).all() for x in (attention(q, k, v, mask, scale=0.5), *grads))


@pytest.mark.longer
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("cut", [0, 3])
def test_decoding_in_parts_equals_attention_over_the_whole_sequence(heads, kv_heads, softcap, cut):
    """P prompts of different lengths, n lanes each at different depths: prompt, suffix and self under one softmax.

    The suffix comes in one piece or, cut, in two.
    """
    prompts, lanes, slots, written, width = 3, 2, 5, 4, 8
    q = random(prompts, lanes, heads, width)
    k, v = (random(prompts, lanes, kv_heads, width, seed=i) for i in (1, 2))
    prompt_k, prompt_v = (random(prompts, slots, kv_heads, width, seed=i) for i in (3, 4))
    suffix_k, suffix_v = (random(prompts, lanes, written, kv_heads, width, seed=i) for i in (5, 6))
    prompt_lengths, depths = jnp.array([5, 1, 3]), jnp.array([[0, 4], [2, 1], [3, 3]])
    prompt_mask = jnp.broadcast_to((jnp.arange(slots) < prompt_lengths[:, None])[:, None], (prompts, lanes, slots))
    prompt_mask = prompt_mask.at[0, 1, :2].set(False)  # a window has moved past this lane's first tokens
    suffix_mask = jnp.arange(written) < depths[..., None]
    rule = {"scale": 0.4, "softcap": softcap}
    # heads before positions, and positions of keys last
    prompt, suffix = (KeyValues(jnp.moveaxis(keys, -3, -1), jnp.swapaxes(values, -2, -3)) for keys, values in (
        (prompt_k, prompt_v), (suffix_k, suffix_v)))
    own = [Stored(suffix, suffix_mask)] if not cut else [
        Stored(KeyValues(suffix.k[..., part], suffix.v[..., part, :]), suffix_mask[..., part])
        for part in (slice(cut), slice(cut, None))]
    out = decode_attention(q, k, v, Stored(prompt, prompt_mask), own, **rule)
    for p in range(prompts):
        for n in range(lanes):
            keys, values = (jnp.concatenate([a[p], b[p, n], c[p, n][None]])[None] for a, b, c in (
                (prompt_k, suffix_k, k), (prompt_v, suffix_v, v)))
            mask = jnp.concatenate([prompt_mask[p, n], suffix_mask[p, n], jnp.ones(1, bool)])
            expected = attention(q[p, n][None, None], keys, values, mask[None, None], **rule)
            np.testing.assert_allclose(out[p, n], expected[0, 0], atol=1e-5)
