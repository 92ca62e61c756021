"""The batch engine: what a sample may depend on, and that sampler and trainer are one model."""

import copy
import dataclasses
import json
import os
import random
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import LENGTH, STOP, PromptGroup
from rlhf_jax.models import cast
from rlhf_jax.parallel import make_mesh
from rlhf_jax.sampling import Sampler
from rlhf_jax.sampling.decode import View
from rlhf_jax.sampling.engine import LEAST_ROWS
from rlhf_jax.training.compiles import count_compiles


@pytest.mark.longer
@pytest.mark.parametrize("settings", [
    {"slots": 1, "lanes": 1, "block": 64}, {"slots": 16, "lanes": 3, "block": 1}, {"prompt_length": 40},
], ids=str)
def test_samples_do_not_depend_on_slots_lanes_block_or_capacity(tiny, config, params, prompts, sampled, settings):
    assert tiny.sample_ids(config, params, prompts, **settings) == tiny.ids_of(sampled)


def test_samples_do_not_depend_on_refill_order_or_neighbours(tiny, config, params, prompts, sampled):
    sampler, expected = tiny.make_sampler(config), tiny.ids_of(sampled)
    for seed in range(3):
        shuffled = random.Random(seed).sample(prompts, len(prompts))
        assert tiny.ids_of(tiny.run(sampler, params, shuffled)) == expected
    for prompt in prompts[:3]:
        alone = tiny.ids_of(tiny.run(sampler, params, [prompt]))
        assert alone == {prompt.prompt_id: expected[prompt.prompt_id]}


def test_more_generations_keep_the_first_ones(tiny, config, params, prompts, sampled):
    more = tiny.sample_ids(config, params, prompts, num_generations=6, lanes=4)
    assert {name: samples[:4] for name, samples in more.items()} == tiny.ids_of(sampled)


def test_seed_prompt_id_and_sample_index_each_change_the_sample(tiny, config, params, prompts, sampled):
    expected = tiny.ids_of(sampled)
    assert tiny.sample_ids(config, params, prompts, seed=4) != expected
    renamed = [dataclasses.replace(p, prompt_id=f"q{p.prompt_id}") for p in prompts]
    assert list(tiny.sample_ids(config, params, renamed).values()) != list(expected.values())
    assert all(len({tuple(ids) for ids in samples}) > 1 for samples in expected.values())


def test_seeded_shares_the_programs_and_changes_the_samples(tiny, config, params, prompts, sampled):
    sampler = tiny.make_sampler(config)
    tiny.run(sampler, params, prompts)
    with count_compiles() as count:
        other = tiny.run(sampler.seeded(4), params, prompts)
    assert count.programs <= 1  # the empty state is built by a small program of its own
    assert tiny.ids_of(other) == tiny.sample_ids(config, params, prompts, seed=4) != tiny.ids_of(sampled)
    assert tiny.ids_of(tiny.run(sampler, params, prompts)) == tiny.ids_of(sampled)


@pytest.mark.longer
def test_no_value_of_a_sampling_setting_compiles_a_new_decode_program(tiny, config, params, prompts):
    settings = SamplingConfig(num_generations=4, max_new_tokens=5, slots=3, block=4, prompt_length=16)
    sampler = Sampler(config, settings, [tiny.STOP_ID], tiny.one_device(), tiny.words)
    tiny.run(sampler, params, prompts)
    sizes = sampler.prefill_program._cache_size(), sampler.decode_program._cache_size()
    assert sizes == (1, 1)
    for values in ({"temperature": 0.0}, {"temperature": (1.0, 0.7)}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2},
                   {"temperature": 0.3, "top_k": 2, "top_p": 0.9, "min_p": 0.1, "seed": 9}):
        other = copy.copy(sampler)
        other.sampling = dataclasses.replace(sampler.sampling, **values)
        tiny.run(other, params, prompts)
    assert (sampler.prefill_program._cache_size(), sampler.decode_program._cache_size()) == sizes


@pytest.mark.longer
@pytest.mark.parametrize("changes", [{}, {"window": 4}, {"qk_norm": "head", "family": "qwen3", "tie_embeddings": True}],
                         ids=str)
def test_sampler_log_probs_equal_the_trainers_packed_forward(tiny, prompts, changes):
    config = tiny.make_config(**changes)
    params = tiny.make_params(config, seed=1)
    groups = list(tiny.run(tiny.make_sampler(config), params, prompts).values())
    found = tiny.forward_logps(config, params, groups)
    for group, per_response in zip(groups, found, strict=True):
        for r, ours in zip(group.responses, per_response, strict=True):
            assert len(r.logps) == len(r.ids)
            np.testing.assert_allclose(r.logps, ours, atol=1e-4)


def test_log_probs_stay_the_models_own_under_temperature_and_filters(tiny, config, params, prompts):
    sampler = tiny.make_sampler(config, temperature=0.5, top_k=6, top_p=0.9)
    groups = list(tiny.run(sampler, params, prompts).values())
    for group, per_response in zip(groups, tiny.forward_logps(config, params, groups), strict=True):
        for r, ours in zip(group.responses, per_response, strict=True):
            np.testing.assert_allclose(r.logps, ours, atol=1e-4)


@pytest.mark.longer
@pytest.mark.parametrize("window", [None, 4])
def test_greedy_decoding_is_the_argmax_of_a_full_forward_step_by_step(tiny, prompts, window):
    config = tiny.make_config(window=window)
    params = tiny.make_params(config, seed=2)
    sampler = tiny.make_sampler(config, stop_ids=(), temperature=0.0)
    found = tiny.ids_of(tiny.run(sampler, params, prompts[:3]))
    for prompt in prompts[:3]:
        ids = prompt.prompt_ids.tolist()
        for _ in range(12):
            ids.append(int(np.argmax(tiny.next_logits(config, params, ids))))
        assert found[prompt.prompt_id] == [ids[len(prompt.prompt_ids) :]] * 4


@pytest.mark.longer
def test_a_response_that_stops_ends_with_its_one_stop_token(tiny, config, params, prompts):
    sampler = tiny.make_sampler(config, stop_ids=(2, 11, 12, 13), num_generations=6, lanes=4)
    responses = [r for g in tiny.run(sampler, params, prompts).values() for r in g.responses]
    stopped = [r for r in responses if r.finish_reason == STOP]
    cut_off = [r for r in responses if r.finish_reason == LENGTH]
    assert len(stopped) + len(cut_off) == len(responses)
    assert len(stopped) >= 3
    assert len(cut_off) >= 3
    for r in stopped:
        assert r.ids[-1] in (2, 11, 12, 13)
        assert not set(r.ids[:-1].tolist()) & {2, 11, 12, 13}
        assert f"w{r.ids[-1]} " not in r.text
        assert len(r.ids) <= 12
    for r in cut_off:
        assert len(r.ids) == 12
        assert not set(r.ids.tolist()) & {2, 11, 12, 13}
    assert all(r.loss_mask.all() for r in responses)


@pytest.mark.longer
def test_a_stop_token_at_the_last_place_of_the_budget_still_counts_as_stopped(tiny, config, params, prompts, sampled):
    whole = [(name, i, r.ids.tolist()) for name, g in sampled.items() for i, r in enumerate(g.responses)
             if r.finish_reason == LENGTH]
    name, index, ids = next((name, i, ids) for name, i, ids in whole if ids.count(ids[-1]) == 1)
    found = tiny.run(tiny.make_sampler(config, stop_ids=(2, ids[-1])), params, prompts)
    again = found[name].responses[index]
    assert again.finish_reason == STOP
    assert again.ids.tolist() == ids


def test_a_stop_string_cuts_at_the_first_token_that_completes_it(tiny, config, params, prompts, sampled):
    whole = sampled["p2"].responses[1]
    assert len(whole.ids) >= 5
    wanted = f"w{whole.ids[2]} w{whole.ids[3]} "  # completed by the fourth token
    first = next(n for n in range(1, len(whole.ids) + 1) if wanted in tiny.words([], whole.ids[:n].tolist()))
    sampler = tiny.make_sampler(config, stop_strings=(wanted, "never said"))
    found = tiny.run(sampler, params, prompts)
    cut = found["p2"].responses[1]
    assert cut.ids.tolist() == whole.ids[:first].tolist()
    assert cut.finish_reason == STOP
    assert len(cut.logps) == len(cut.ids) == len(cut.loss_mask)
    np.testing.assert_array_equal(cut.logps, whole.logps[:first])
    assert cut.text == tiny.words([], cut.ids.tolist())
    others = [(a, b) for name in sampled for a, b in zip(found[name].responses, sampled[name].responses, strict=True)
              if wanted not in b.text]
    assert all(a.ids.tolist() == b.ids.tolist() and a.finish_reason == b.finish_reason for a, b in others)


def test_a_stop_string_that_is_a_special_token_ends_a_response_as_eos_does(tiny, config, params, prompts, sampled,
                                                                          special_words):
    whole = sampled["p2"].responses[1].ids
    special = int(whole[2])
    text = special_words(special)
    found = tiny.run(tiny.make_sampler(config, decode_text=text, stop_strings=(f"w{special}", "never said")), params,
                     prompts)
    for name, group in sampled.items():
        for ours, theirs in zip(found[name].responses, group.responses, strict=True):
            ids = theirs.ids.tolist()
            end = ids.index(special) + 1 if special in ids else len(ids)
            assert ours.ids.tolist() == ids[:end]
            assert ours.finish_reason == (STOP if special in ids else theirs.finish_reason)
            assert ours.text == text([], ids[:end])
    assert found["p2"].responses[1].text == tiny.words([], whole[: whole.tolist().index(special)].tolist())


def test_what_ends_a_response_follows_its_settings_and_its_tokenizer(tiny, config, special_words):
    sampler = tiny.make_sampler(config, decode_text=special_words(7))
    with_seven = dataclasses.replace(sampler.sampling, stop_strings=("w7", "w8"))
    sampler.sampling = dataclasses.replace(with_seven, stop_strings=())
    assert 7 in sampler.with_settings(with_seven)._ending.stop_ids
    assert list(sampler.with_settings(with_seven)._ending.stop_strings) == ["w8"]
    other = sampler.with_settings(with_seven, special_words(8))._ending
    assert (7 in other.stop_ids, 8 in other.stop_ids, list(other.stop_strings)) == (False, True, ["w7"])
    assert 7 not in sampler._ending.stop_ids


@pytest.mark.parametrize("string", ["w7\n", " w7", "w7w7", "w8 w7 w9", "w2 "])
def test_a_stop_string_that_no_text_can_show_is_refused_by_name(tiny, config, special_words, string):
    """Special tokens are left out of text; alone they end a response by their id."""
    with pytest.raises(ValueError, match=f"{re.escape(repr(string))}, .* special token 'w[27]'"):
        tiny.make_sampler(config, decode_text=special_words(7), stop_strings=("w8", "w7", string))
    sampler = tiny.make_sampler(config, decode_text=special_words(5), stop_strings=("w8", "w7\n"))
    with pytest.raises(ValueError, match="special token 'w7'"):
        sampler.with_settings(sampler.sampling, special_words(7))


def test_no_prompts_and_a_prompt_without_tokens_are_refused_by_name(tiny, config, params, prompts):
    sampler, empty = tiny.make_sampler(config), PromptGroup("e", np.zeros(0, np.int32), ())
    for given, words in (([], "no prompts"), ([empty], "prompt 'e' has no tokens"),
                         ([*prompts, empty], "prompt 'e' has no tokens")):
        with pytest.raises(ValueError, match=words):
            list(sampler.generate(params, given))


@pytest.mark.longer
def test_a_lane_whose_text_has_a_stop_string_ends_with_the_block(tiny, config, params, prompts):
    """Without any stop id all lanes would run to the budget: 60 blocks of one token for two prompts in one slot."""
    settings = {"stop_ids": (), "max_new_tokens": 30, "block": 1, "slots": 1, "num_generations": 2}
    whole = tiny.run(tiny.make_sampler(config, **settings), params, prompts[:2])
    sampler = tiny.make_sampler(config, stop_strings=(" ",), **settings)  # every word has one
    blocks, decode = [], sampler.decode_program
    sampler.decode_program = lambda *arguments: blocks.append(1) or decode(*arguments)
    found = tiny.run(sampler, params, prompts[:2])
    assert len(blocks) == 2
    for name, group in found.items():
        for ours, theirs in zip(group.responses, whole[name].responses, strict=True):
            assert (ours.ids.tolist(), ours.finish_reason) == (theirs.ids[:1].tolist(), STOP)


@pytest.mark.longer
def test_texts_are_made_while_the_next_block_is_decoded(tiny, config, params, prompts):
    """A group is handed out only after the block after its last one has been started."""
    sampler, events = tiny.make_sampler(config, slots=1, lanes=2), []
    decode, text = sampler.decode_program, sampler.decode_text
    sampler.decode_program = lambda *arguments: events.append("block") or decode(*arguments)
    sampler.decode_text = lambda *arguments: events.append("text") or text(*arguments)
    groups = [group for _, group in sampler.generate(params, prompts[:2])]
    assert len(groups) == 2
    first = events.index("text")
    assert len(groups[0].responses) == 4
    ended_in = -(-min(len(r.ids) for g in groups for r in g.responses) // sampler.sampling.block)
    assert events[:first].count("block") > ended_in


def test_a_prompt_of_bos_alone_is_sampled_from_the_models_first_distribution(tiny, config, params, prompts):
    assert prompts[0].prompt_ids.tolist() == [tiny.BOS]
    first = tiny.next_logits(config, params, [tiny.BOS])
    group = tiny.run(tiny.make_sampler(config, temperature=0.0), params, prompts[:1])["p0"]
    assert group.responses[0].ids[0] == int(np.argmax(first))
    np.testing.assert_allclose(group.responses[0].logps[0], jax.nn.log_softmax(first).max(), atol=1e-5)


def test_temperatures_are_assigned_to_the_samples_in_equal_contiguous_shares(tiny, config, params, prompts):
    assert SamplingConfig(num_generations=4, temperature=(1.0, 0.7)).temperatures == (1.0, 1.0, 0.7, 0.7)
    assert SamplingConfig(num_generations=3, temperature=(1.0, 0.7)).temperatures == (1.0, 1.0, 0.7)
    mixed = tiny.sample_ids(config, params, prompts, temperature=(1.0, 0.7))
    hot, warm = (tiny.sample_ids(config, params, prompts, temperature=t) for t in (1.0, 0.7))
    assert hot != warm
    for name, samples in mixed.items():
        assert samples == hot[name][:2] + warm[name][2:]


@pytest.mark.longer
def test_temperatures_follow_the_sample_not_the_lane(tiny, config, params, prompts):
    settings = {"temperature": (1.0, 0.0), "num_generations": 6}
    one_lane = tiny.sample_ids(config, params, prompts, slots=1, lanes=1, block=64, **settings)
    assert one_lane == tiny.sample_ids(config, params, prompts, lanes=4, **settings)
    assert all(samples[3] == samples[4] == samples[5] for samples in one_lane.values())


@pytest.mark.longer
def test_bfloat16_runs_and_reports_finite_log_probs(tiny, config, params, prompts):
    sampling = tiny.make_sampler(config).sampling
    sampler = Sampler(config, sampling, [2], tiny.one_device(), tiny.words, jnp.bfloat16)
    groups = tiny.run(sampler, cast(params, jnp.bfloat16), prompts)
    assert all(np.isfinite(r.logps).all() and r.logps.dtype == np.float32 for g in groups.values() for r in g.responses)


def test_a_prompt_too_long_for_the_capacity_is_an_error_that_says_what_to_raise(tiny, config, params, prompts):
    sampler = tiny.make_sampler(config, prompt_length=4)
    with pytest.raises(ValueError, match="prompt_length is 4; raise prompt_length"):
        tiny.run(sampler, params, prompts)


def test_a_prompt_plus_budget_beyond_the_models_positions_is_an_error(tiny, config, params):
    long = PromptGroup("long", np.full(90, 5, np.int32), ())
    with pytest.raises(ValueError, match=r"90 tokens.*96 positions; lower max_new_tokens"):
        tiny.run(tiny.make_sampler(config), params, [long])


@pytest.mark.parametrize(("settings", "words"), [
    ({"num_generations": 0}, "num_generations"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"slots": 0}, "slots"),
    ({"block": 0}, "block"), ({"lanes": 0}, "lanes"), ({"lanes": 9, "num_generations": 4}, "lanes"),
    ({"temperature": -0.1}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"),
    ({"min_p": 1.0}, "min_p"), ({"top_k": -1}, "top_k"),
    ({"temperature": (), "num_generations": 2}, "temperature"),
    ({"temperature": (1.0, 0.7, 0.5), "num_generations": 2}, "temperature"),
])
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SamplingConfig(**settings)


@pytest.mark.longer
def test_samples_do_not_depend_on_the_number_of_devices(tiny, config, params, xla_flags):
    env = {**os.environ, "XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(tiny.path), "8"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == tiny.sample_ids(config, params, tiny.make_prompts(11))


@pytest.mark.longer
def test_slots_that_do_not_divide_over_the_devices_are_refused(tiny, xla_flags):
    done = subprocess.run(
        [sys.executable, "-c",
         "import runpy, sys; from rlhf_jax.parallel import make_mesh\n"
         "t = runpy.run_path(sys.argv[1]); t['make_sampler'](t['make_config'](), mesh=make_mesh(), slots=4)",
         str(tiny.path)],
        env={**os.environ, "XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False)
    assert "slots = 4 must be a multiple of the 8 ways" in done.stderr


@pytest.mark.longer
def test_blocks_look_no_deeper_than_the_prompts_and_the_lanes_reach(tiny, config, params):
    """Long and short prompts, deep and shallow lanes: the views differ, the samples do not."""
    deep = tiny.make_config(max_position=1024)
    draws = np.random.default_rng(5)
    prompts = [PromptGroup(f"p{n}", draws.integers(3, tiny.VOCAB, n).astype(np.int32), ()) for n in (300, 3, 100, 7)]
    settings = {"num_generations": 2, "max_new_tokens": 180, "block": 40, "slots": 2}
    together = tiny.make_sampler(deep, stop_ids=(), **settings)
    views = []
    look = together._view
    together._view = lambda *arguments: views.append(look(*arguments)) or views[-1]
    found = tiny.ids_of(tiny.run(together, params, prompts))
    assert {view.prompt for view in views} == {64, 511}  # 100 shares its slots with 300, then 7 with 3
    assert {view.suffix for view in views} == {64, 128, 180}  # lanes begin blocks with 0, 40, 80, 120, 160 tokens
    for prompt in prompts:
        alone = tiny.make_sampler(deep, stop_ids=(), prompt_length=512, **{**settings, "block": 180})
        alone._view = lambda slots, prompts, capacity, *_: View(capacity - 1, 180)
        assert tiny.ids_of(tiny.run(alone, params, [prompt])) == {prompt.prompt_id: found[prompt.prompt_id]}


@pytest.mark.longer
def test_blocks_compute_the_lanes_at_work_alone_and_no_sample_changes(tiny, config, params):
    """Where many lanes have ended, fewer rows run through the model (a window and a refill included)."""
    local = tiny.make_config(window=6)
    prompts = tiny.make_prompts(17)
    settings = {"num_generations": 8, "max_new_tokens": 24, "slots": 12, "block": 3}
    few = tiny.make_sampler(local, stop_ids=(2, 11, 12, 13), **settings)
    assert few._least_rows == LEAST_ROWS["cpu"]
    every = copy.copy(few)
    every._least_rows = None
    views = []
    look = few._view
    few._view = lambda *arguments: views.append(look(*arguments)) or views[-1]
    found, expected = (tiny.run(sampler, params, prompts) for sampler in (few, every))
    assert {view.rows for view in views} == {None, 64, 32}
    assert tiny.ids_of(found) == tiny.ids_of(expected)
    for name, group in found.items():
        for ours, theirs in zip(group.responses, expected[name].responses, strict=True):
            np.testing.assert_allclose(ours.logps, theirs.logps, rtol=1e-5, atol=1e-5)


def test_a_mesh_of_several_devices_computes_all_lanes(tiny, config):
    """Its lanes lie where their caches do; and an accelerator's time follows the weights it reads."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert tiny.make_sampler(config, mesh=mesh)._least_rows is None
