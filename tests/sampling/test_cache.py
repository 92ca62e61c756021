"""The dtype of the caches: "auto" changes nothing, the others cost what rounding costs and save what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models.attention import KeyValues, Stored, decode_attention
from rlhf_jax.sampling import Sampler, logp_tolerance
from rlhf_jax.sampling.cache import (
    append_tokens,
    empty_cache,
    first,
    quantized,
    scatter_pages,
    store_pages,
    stored_dtype,
    write_prompts,
    write_token,
)
from rlhf_jax.sampling.decode import View, decode_block, empty_state

FAMILIES = [{}, {"window": 4}, {"qk_norm": "head", "family": "qwen3", "tie_embeddings": True}]
SIZES = {"slots": 8, "lanes": 8, "prompt_capacity": 256, "response_capacity": 256}


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def sample(tiny, config, params, prompts, cache_dtype, dtype=jnp.float32, **settings):
    """Groups that a sampler with this cache makes, four shared-prompt lanes each."""
    settings = SamplingConfig(4, max_new_tokens=12, slots=4, block=5, seed=3, cache_dtype=cache_dtype, **settings)
    sampler = Sampler(config, settings, [tiny.STOP_ID], tiny.one_device(), tiny.words, dtype)
    return list(tiny.run(sampler, params, prompts).values())


def gaps(tiny, config, params, groups):
    """|sampler - trainer| log-prob differences of all tokens."""
    found = tiny.forward_logps(config, params, groups)
    return np.concatenate([np.abs(ours - r.logps) for group, per in zip(groups, found, strict=True)
                           for r, ours in zip(group.responses, per, strict=True)])


@pytest.mark.longer
@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_auto_is_the_compute_dtype_to_the_bit(tiny, prompts, changes):
    config = tiny.make_config(**changes)
    params = tiny.make_params(config, seed=1)
    auto, named = (sample(tiny, config, params, prompts, name) for name in ("auto", "float32"))
    for a, b in zip(auto, named, strict=True):
        for x, y in zip(a.responses, b.responses, strict=True):
            np.testing.assert_array_equal(x.ids, y.ids)
            np.testing.assert_array_equal(x.logps, y.logps)
    assert gaps(tiny, config, params, auto).max() < 1e-4
    assert stored_dtype("auto", jnp.bfloat16) == jnp.bfloat16


@pytest.mark.longer
@pytest.mark.parametrize("changes", FAMILIES[:2], ids=str)
@pytest.mark.parametrize(("cache_dtype", "mean"), [("bfloat16", 0.02), ("int8", 0.04)])
def test_a_coarser_cache_moves_log_probs_by_rounding_alone(tiny, prompts, changes, cache_dtype, mean):
    config = tiny.make_config(**changes)
    params = tiny.make_params(config, seed=1)
    found = gaps(tiny, config, params, sample(tiny, config, params, prompts, cache_dtype))
    allowed = logp_tolerance(jnp.float32, cache_dtype)
    assert 1e-4 < found.max() < allowed.largest
    assert 1e-5 < found.mean() < mean < allowed.mean


@pytest.mark.longer
@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_weights_in_eight_bits_move_log_probs_by_rounding_alone(tiny, prompts, changes):
    config = tiny.make_config(**changes)
    params = tiny.make_params(config, seed=1)
    found = gaps(tiny, config, params, sample(tiny, config, params, prompts, "auto", weights_dtype="int8"))
    allowed = logp_tolerance(jnp.float32, "auto", "int8")
    assert 1e-4 < found.max() < allowed.largest
    assert 1e-5 < found.mean() < 0.06 < allowed.mean


@pytest.mark.longer
def test_samples_of_weights_in_eight_bits_depend_on_no_neighbour(tiny, prompts, config):
    params = tiny.make_params(config, seed=1)
    together = {g.prompt_id: g for g in sample(tiny, config, params, prompts, "auto", weights_dtype="int8")}
    for prompt in prompts[:2]:
        (alone,) = sample(tiny, config, params, [prompt], "auto", weights_dtype="int8")
        for x, y in zip(alone.responses, together[prompt.prompt_id].responses, strict=True):
            np.testing.assert_array_equal(x.ids, y.ids)


def test_the_tolerance_is_that_of_the_coarser_of_compute_and_cache():
    assert logp_tolerance(jnp.float32) == logp_tolerance(jnp.float32, "float32") == (1e-4, 1e-4)
    for cache_dtype in ("auto", "float32", "bfloat16"):
        assert logp_tolerance(jnp.bfloat16, cache_dtype) == logp_tolerance(jnp.float32, "bfloat16")
    assert logp_tolerance(jnp.bfloat16, "int8") == logp_tolerance(jnp.float32, "auto", "int8")
    assert logp_tolerance(jnp.float32, "int8") > logp_tolerance(jnp.bfloat16, "auto") > (1e-4, 1e-4)


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", (4 + 4) / (4 * 4))])
def test_bytes_of_the_caches(tiny, config, dtype, share):
    """int8: a head of four entries takes four bytes and its scale another four."""
    assert config.head_dim == 4
    state = jax.eval_shape(lambda: empty_state(config, *SIZES.values(), jnp.dtype(dtype)))
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.prompt, state.suffix)))
    tokens = SIZES["slots"] * (SIZES["prompt_capacity"] + SIZES["lanes"] * SIZES["response_capacity"])
    assert stored == share * 4 * 2 * tokens * config.layers * config.kv_heads * config.head_dim


@pytest.mark.longer
def test_no_dequantised_copy_of_a_cache_is_made(tiny):
    """A decode program over int8 caches keeps less beside them than the caches would take in float32."""
    config = tiny.make_config(head_dim=32, layers=8)
    params = jax.eval_shape(lambda: tiny.make_params(config))
    state = jax.eval_shape(lambda: empty_state(config, *SIZES.values(), jnp.int8))
    block = jax.jit(lambda params, state, seed: decode_block(
        params, config, View(256, 256), state, seed, jnp.array([2]), 4), donate_argnums=1)
    memory = block.lower(params, state, jax.random.key(0)).compile().memory_analysis()
    caches = sum(x.size * 4 for x in jax.tree.leaves((state.prompt.k, state.prompt.v, state.suffix.k, state.suffix.v)))
    assert memory.temp_size_in_bytes < 0.5 * caches


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_int8_is_within_half_a_step_and_zero_stays_zero(scale):
    x = (scale * random(50, 3, 16)).at[7].set(0.0)
    stored, steps = quantized(x, jnp.dtype("int8"))
    assert (stored.dtype, steps.dtype, steps.shape) == (jnp.int8, jnp.float32, (50, 3))
    error = np.abs(stored * steps[..., None] - x)
    assert (error <= steps[..., None] * 0.5001).all()
    assert np.abs(np.asarray(stored, np.int32)).max() == 127
    np.testing.assert_array_equal(stored[7], 0)


@pytest.mark.longer
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_attention_over_a_stored_cache_is_attention_over_what_it_stands_for(tiny, dtype, softcap):
    """The scales of keys and values, folded into scores and probabilities, against a cache multiplied out."""
    config = tiny.make_config(head_dim=8, layers=1)
    slots, lanes, depth, written = 3, 2, 5, 4
    keys, values = (random(1, slots, depth, 2, 8, seed=i) for i in (1, 2))
    prompt = write_prompts(empty_cache(config, (slots,), depth + 2, jnp.dtype(dtype)), keys, values, jnp.arange(slots))
    suffix = empty_cache(config, (slots, lanes), written + 1, jnp.dtype(dtype))
    for place in range(written):
        new = (random(1, slots, lanes, 2, 8, seed=10 * place + i) for i in (3, 4))
        suffix = write_token(suffix, *new, jnp.int32(place))
    prompt, suffix = (jax.tree.map(lambda x: x[0], first(*x)) for x in ((prompt, depth), (suffix, written)))

    def multiplied_out(cache):
        k, v = (x.astype(jnp.float32) for x in cache[:2])
        return cache if cache.k_scale is None else KeyValues(
            k * cache.k_scale[..., None, :], v * cache.v_scale[..., None])

    q, (k, v) = random(slots, lanes, 4, 8), (random(slots, lanes, 2, 8, seed=i) for i in (5, 6))
    masks = jnp.arange(depth) < jnp.array([5, 1, 3])[:, None, None], jnp.arange(written) < jnp.array(
        [[0, 4], [2, 1], [3, 3]])[..., None]
    masks = jnp.broadcast_to(masks[0], (slots, lanes, depth)), masks[1]
    with jax.default_matmul_precision("highest"):
        found, expected = (decode_attention(q, k, v, Stored(a, masks[0]), [Stored(b, masks[1])], scale=0.4,
                                            softcap=softcap)
                           for a, b in ((prompt, suffix), map(multiplied_out, (prompt, suffix))))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    exact = keys[0].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(multiplied_out(prompt).k.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.longer
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_lane_appends_from_its_own_place_on(tiny, dtype):
    """Against writing token by token; what lies before is kept, and a lane without room ends at the last place."""
    config = tiny.make_config(head_dim=8, layers=2)
    slots, lanes, capacity, count = 2, 3, 9, 4
    places = jnp.array([[0, 3, 5], [1, 0, 7]])
    old, new = (empty_cache(config, (slots, lanes), size, jnp.dtype(dtype)) for size in (capacity, count))
    for cache, size, seed in ((old, capacity, 0), (new, count, 100)):
        for place in range(size):
            cache = write_token(cache, *(random(2, slots, lanes, 2, 8, seed=seed + 2 * place + i) for i in (1, 2)),
                                jnp.int32(place))
        old, new = (cache, new) if size == capacity else (old, cache)
    found = jax.jit(append_tokens)(old, new, places)
    for name, axis in (("k", -1), ("v", -2), ("k_scale", -1), ("v_scale", -1)):
        if getattr(old, name) is None:
            continue
        before, added, after = (np.moveaxis(np.asarray(getattr(x, name)), axis, 3) for x in (old, new, found))
        for slot, lane in np.ndindex(slots, lanes):
            start = min(int(places[slot, lane]), capacity - count)
            expected = before[:, slot, lane].copy()
            expected[:, start : start + count] = added[:, slot, lane]
            np.testing.assert_array_equal(after[:, slot, lane], expected)


def test_an_unknown_cache_dtype_is_refused():
    with pytest.raises(ValueError, match=r"cache_dtype = 'int4'; choose from auto, float32, bfloat16, int8"):
        SamplingConfig(cache_dtype="int4")


@pytest.mark.parametrize(("dtype", "block"), [("float32", 6), ("int8", 6), ("float32", 40)])
def test_pages_are_stored_in_one_scatter_as_row_after_row(dtype, block):
    """Into one page and over the edge of the next, into three at once, up to a lane's last place; idle rows change
    nothing, whose pages may be another's; and a part of a block that has no page any more is dropped."""
    size, draws = 16, np.random.default_rng(0)

    def stored(*shape):
        k, v = (jnp.asarray(draws.normal(size=(*shape[:-1], *ends)), jnp.float32)
                for ends in ((shape[-1], 4), (shape[-1], 4)))
        (k, k_scale), (v, v_scale) = (quantized(x, jnp.dtype(dtype)) for x in (k, v))
        return KeyValues(jnp.swapaxes(k, -1, -2), v, k_scale, v_scale)

    pages, new = stored(2, 9, 3, size), stored(2, 6, 3, block)
    table = jnp.asarray([[1, 4], [7, 0], [3, 3], [2, 8], [1, 1], [5, 6]], jnp.int32)
    places, written = jnp.asarray([0, 13, 2, 26, 9, 10]), jnp.asarray([True, True, False, True, False, True])
    found = [jax.jit(store)(pages, new, places, table, written) for store in (scatter_pages, store_pages)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found[0].v, pages.v)
    np.testing.assert_array_equal(found[0].v[:, 3], pages.v[:, 3])
