"""Attention over pages, by the GPU kernels and the TPU kernel in Pallas's interpreters and by XLA, is the attention of
decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models.attention import KeyValues, Stored, decode_attention
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.sampling import Sampler
from rlhf_jax.sampling.cache import Caches, Spans
from rlhf_jax.sampling.pages import PAGE

pytestmark = pytest.mark.usefixtures("exact_matmul")
LAYERS, PROMPTS, DIM = 2, 3, 16
WAYS = "gpu", "tpu", "xla"


def cache(key, *rows, depth):
    one, two = jax.random.split(key)
    return KeyValues(jax.random.normal(one, (LAYERS, PROMPTS, *rows, DIM, depth)),
                     jax.random.normal(two, (LAYERS, PROMPTS, *rows, depth, DIM)))


def in_pages(cache):
    """k [L, P, n, K, Dh, U] as pages in no order, and the table [P, n, J] of them."""
    slots, lanes = cache.k.shape[1:3]
    count = slots * lanes * cache.k.shape[-1] // PAGE
    table = np.random.default_rng(0).permutation(count + 3)[:count].reshape(slots, lanes, -1)  # three hold nothing

    def paged(x, axis):
        x = jnp.stack(jnp.split(x, table.shape[2], axis=axis), axis=3)  # [L, P, n, J, K, ...]
        x = x.reshape(LAYERS, count, *x.shape[4:])
        return jnp.zeros((LAYERS, count + 3, *x.shape[2:])).at[:, table.reshape(-1)].set(x)

    return KeyValues(paged(cache.k, -1), paged(cache.v, -2)), jnp.asarray(table, jnp.int32)


@pytest.mark.longer
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("lanes", "heads", "kv_heads", "window", "softcap", "places"), [
    (3, 6, 2, 70, 0.7, None), (3, 6, 2, None, None, [1, 2, 6, 7, 9, 9]),
    pytest.param(8, 4, 2, None, None, None, marks=pytest.mark.slow),
    pytest.param(8, 4, 2, 70, None, [3, 4, 5, 6, 7, 9, 23, 24], marks=pytest.mark.slow),
    pytest.param(1, 2, 2, None, None, None, marks=pytest.mark.slow)])
def test_the_kernels_see_what_the_masks_show(lanes, heads, kv_heads, window, softcap, places, way, tiny):
    """places: of the rows in the grid; its size stands for no lane."""
    keys = jax.random.split(jax.random.key(0), 7)
    q = jax.random.normal(keys[0], (PROMPTS, lanes, heads, DIM))
    k, v = (jax.random.normal(key, (PROMPTS, lanes, kv_heads, DIM)) for key in keys[1:3])
    caches = Caches(cache(keys[3], kv_heads, depth=192), cache(keys[4], lanes, kv_heads, depth=2 * PAGE),
                    cache(keys[5], lanes, kv_heads, depth=64))
    length = jnp.asarray([0, 65, 192])[:, None]
    written = jax.random.randint(keys[6], (PROMPTS, lanes), 0, 2 * PAGE)
    step = 5
    position = length + written + step
    lowest = jnp.zeros_like(position) if window is None else position - window + 1

    def span(start, count):
        return jnp.clip(lowest - start, 0, None), jnp.broadcast_to(count, written.shape)

    spans = Spans(span(0, length), span(length, written), span(length + written, step))
    every = np.arange(PROMPTS * lanes)
    here = every if places is None else np.asarray(places)
    real = here < every.size

    def rows(x, empty=0):
        x = x.reshape(-1, *x.shape[2:])[np.minimum(here, every.size - 1)]
        return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, empty)

    recent = KeyValues(*(jnp.moveaxis(rows(jnp.moveaxis(x, 0, 2)), 1, 0) for x in caches.recent[:2]))
    suffix, table = in_pages(caches.suffix)
    first = None if places is None else jnp.searchsorted(here, np.arange(PROMPTS + 1) * lanes).astype(jnp.int32)
    out = tiny.WAYS[way].attend(rows(q), rows(k), rows(v), Caches(caches.prompt, suffix, recent), 1,
                           jax.tree.map(rows, spans), rows(table), first, lanes=lanes, depth=192, scale=0.3,
                           softcap=softcap)

    def stored(cache, pair):
        places = jnp.arange(cache.v.shape[-2])
        mask = (places >= pair[0][..., None]) & (places < pair[1][..., None])
        return Stored(KeyValues(cache.k[1], cache.v[1]), mask)

    expected = decode_attention(q, k, v, stored(caches.prompt, spans.prompt),
                                [stored(caches.suffix, spans.suffix), stored(caches.recent, spans.recent)], scale=0.3,
                                softcap=softcap)
    np.testing.assert_allclose(out[real], rows(expected)[real], atol=2e-6)


@pytest.mark.longer
@pytest.mark.parametrize("way", WAYS)
def test_an_idle_lane_sees_its_own_token_alone(way, tiny):
    keys = jax.random.split(jax.random.key(1), 6)
    rows = PROMPTS * 2
    q, k, v = (jax.random.normal(key, (rows, 2, DIM)) for key in keys[:3])
    recent = KeyValues(*(x.reshape(LAYERS, rows, *x.shape[3:]) for x in cache(keys[5], 2, 2, depth=64)[:2]))
    suffix, table = in_pages(cache(keys[4], 2, 2, depth=PAGE))
    caches = Caches(cache(keys[3], 2, depth=64), suffix, recent)
    nothing = (jnp.zeros(rows, jnp.int32),) * 2
    out = tiny.WAYS[way].attend(q, k, v, caches, 0, Spans(nothing, nothing, nothing), table.reshape(rows, -1), lanes=2,
                           depth=64, scale=1.0, softcap=None)
    np.testing.assert_allclose(out, v, atol=1e-6)


def draw(config, params, mesh, prompts, weights_dtype):
    sampling = SamplingConfig(8, max_new_tokens=20, slots=16, block=6, seed=3, weights_dtype=weights_dtype)
    sampler, views = Sampler(config, sampling, [5, 6, 7], mesh, lambda prompt, ids: ""), []
    look = sampler._view
    sampler._view = lambda *arguments: views.append(look(*arguments)) or views[-1]
    found = dict(sampler.generate(jax.device_put(params, param_shardings(config, mesh)), prompts))
    return found, {view.rows for view in views}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "weights_dtype"), [
    (None, "auto"), (MeshConfig(fsdp=2, tensor=2, data=2), "auto"), (MeshConfig(fsdp=2, tensor=2, data=2), "int8")],
    ids=["one", "mesh", "int8"])
def test_a_sampler_with_the_kernels_draws_what_one_without_draws(shape, weights_dtype, way, tiny, lone_mesh,
                                                                 monkeypatch):
    """Where lanes have ended, fewer rows are computed: 16 of 32 on each of four devices, 64 and less of 128 on one."""
    monkeypatch.setattr("rlhf_jax.sampling.engine.LEAST_ROWS", {"cpu": 16})
    prompts = tiny.make_prompts(15)
    config = tiny.make_config(head_dim=16, window=6, full_layers=(1,), attn_softcap=2.0)
    params, mesh = tiny.make_params(config), lone_mesh if shape is None else make_mesh(shape)
    plain, _ = draw(config, params, mesh, prompts, weights_dtype)
    monkeypatch.setattr("rlhf_jax.sampling.engine.paged_attention", lambda *_: tiny.WAYS[way])
    ours, rows = draw(config, params, mesh, prompts, weights_dtype)
    assert rows >= ({None, 64, 32} if shape is None else {None, 16})
    assert sum(len(r.ids) for g in plain.values() for r in g.responses) > 20
    for index, group in plain.items():
        for one, other in zip(group.responses, ours[index].responses, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_allclose(one.logps, other.logps, atol=5e-5)
