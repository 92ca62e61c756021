"""Pages of response caches: none is held twice, none is lost, and a sampler that runs out of them draws the same."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.sampling import Sampler, decode, engine, lanes, pages
from rlhf_jax.sampling.pages import PAGE, Pages, pages_each, pages_of

SLOTS, LANES, WAYS, TOKENS = 4, 3, 2, 5 * PAGE
PLACES = [(slot, lane) for slot in range(SLOTS) for lane in range(LANES)]


def test_pages_of_a_number_of_tokens():
    assert [pages_of(n) for n in (0, 1, PAGE, PAGE + 1, 5 * PAGE)] == [0, 1, 1, 2, 5]
    assert pages_each(1.0, SLOTS, LANES, TOKENS, WAYS) == 2 * 3 * 5
    assert pages_each(0.4, SLOTS, LANES, TOKENS, WAYS) == 12
    assert pages_each(0.01, SLOTS, LANES, TOKENS, WAYS) == 5  # what one lane needs


@settings(max_examples=60, deadline=None)
@given(each=st.integers(5, 20), seed=st.integers(0, 2**32 - 1))
def test_a_lane_that_writes_has_its_pages_alone_and_keeps_them(each, seed):
    """A life of lanes that grow, end at random and come back: every block somebody of each device goes on."""
    draws = np.random.default_rng(seed)
    held, written = Pages(SLOTS, LANES, TOKENS, WAYS, each), dict.fromkeys(PLACES, 0)
    ends = {place: int(draws.integers(1, TOKENS + 1)) for place in PLACES}
    before = {}
    for _ in range(60):
        order = sorted(PLACES, key=lambda place: -written[place])
        wanted = {place: min(written[place] + 40, TOKENS) for place in order}
        served, dropped = held.allot(wanted)
        owned = {place: held.table[place][: pages_of(wanted[place] if place in served else written[place])].tolist()
                 for place in PLACES if place not in dropped}
        for way in range(WAYS):
            here = [place for place in PLACES if place[0] // 2 == way]
            assert set(here) & served
            used = [page for place in here for page in owned.get(place, [])]
            assert len(used) == len(set(used))
            assert set(used) <= set(range(each))
            assert not set(here) & set(dropped) or len(set(here) & served) == 1
        for place in set(owned) & set(before):
            assert owned[place][: len(before[place])] == before[place]
        for place in PLACES:
            written[place] = 0 if place in dropped else wanted[place] if place in served else written[place]
            if written[place] >= ends[place]:
                held.release(place)
                written[place], ends[place] = 0, int(draws.integers(1, TOKENS + 1))
        before = {place: owned[place] for place in owned if written[place]}
    for place in PLACES:
        held.release(place)
    assert [sorted(free) for free in held._free] == [list(range(each))] * WAYS


def test_who_has_written_most_goes_first_and_who_has_written_least_gives_way():
    held = Pages(1, 3, TOKENS, 1, 5)
    assert held.allot({(0, 0): 2 * PAGE, (0, 1): 2 * PAGE, (0, 2): 2 * PAGE}) == ({(0, 0), (0, 1)}, [])
    assert held.allot({(0, 0): 3 * PAGE, (0, 1): 3 * PAGE, (0, 2): PAGE}) == ({(0, 0)}, [])
    assert held.allot({(0, 0): 4 * PAGE, (0, 1): 3 * PAGE}) == ({(0, 0)}, [(0, 1)])
    assert held.allot({(0, 0): 4 * PAGE, (0, 2): PAGE}) == ({(0, 0), (0, 2)}, [])


@pytest.mark.longer
@pytest.mark.parametrize(("shape", "way"), [
    (None, None), pytest.param(None, "gpu", marks=pytest.mark.slow), pytest.param(None, "tpu", marks=pytest.mark.slow),
    *(pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), way, marks=pytest.mark.slow) for way in (None, "gpu", "tpu"))])
def test_a_sampler_that_runs_out_of_pages_draws_the_same(shape, way, tiny, prompts, lone_mesh, monkeypatch):
    """Pages of 8 tokens, three for a lane and few for all: lanes wait, some begin anew, and nothing is lost."""
    for module in (decode, engine, lanes, pages):
        monkeypatch.setattr(module, "PAGE", 8)
    monkeypatch.setattr(lanes, "_TILE", 8)
    monkeypatch.setattr(engine, "LEAST_ROWS", {"cpu": 2})
    config = tiny.make_config(head_dim=16, attn_softcap=2.0, window=9, full_layers=(1,))
    params, mesh = tiny.make_params(config), lone_mesh if shape is None else make_mesh(shape)

    def draw(share, cache_dtype="auto"):
        settings = SamplingConfig(4, max_new_tokens=24, slots=4, block=5, seed=3, cache_share=share,
                                  cache_dtype=cache_dtype)
        sampler = Sampler(config, settings, [5], mesh, lambda prompt, ids: "")
        return dict(sampler.generate(jax.device_put(params, param_shardings(config, mesh)), prompts))

    waits, drops, allot = 0, 0, Pages.allot

    def watched(self, wanted):
        nonlocal waits, drops
        served, dropped = allot(self, wanted)
        waits, drops = waits + len(wanted) - len(served) - len(dropped), drops + len(dropped)
        return served, dropped

    def same(plain, ours):
        assert sum(len(r.ids) for g in plain.values() for r in g.responses) > 200
        for index, group in plain.items():
            for one, other in zip(group.responses, ours[index].responses, strict=True):
                np.testing.assert_array_equal(one.ids, other.ids)
                np.testing.assert_allclose(one.logps, other.logps, atol=5e-5)

    monkeypatch.setattr(Pages, "allot", watched)
    plain = draw(1.0)
    assert waits == drops == 0
    if way is None:
        same(draw(1.0, "int8"), draw(0.3, "int8"))
    if way:
        monkeypatch.setattr(engine, "paged_attention", lambda *_: tiny.WAYS[way])
    same(plain, draw(0.3))
    assert waits > 5
    assert drops > 0
