"""What of an engine's samples is looked at, and what the numbers of those say of it: on samples from made-up logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.remote import Origin
from rlhf_jax.sampling import Rules, drawn, sample_token
from rlhf_jax.sampling.external import EngineMismatch
from rlhf_jax.workflow.engine_gate import EngineGate, Tokens, spread, update_seen

N, NEW = 4, 12
ENGINE = EngineOptions(urls="http://h", model="m", name="fake", version="1")
ROUNDING = {"float32": 1e-5, "bfloat16": 0.02}


@pytest.fixture
def made_up(start):
    """made_up(dtype, told, wrong, **settings of the sampling) -> a gate, and groups drawn from logits that the model of
    the gate gives. told: the field of `Drawn` that the engine calls log-probs. wrong: place of a group -> how far the
    weights that answered it are off, in nats.
    """

    def make(dtype, told="logp", wrong=lambda place: 0.0, prompts=24, **settings):
        sampling = SamplingConfig(num_generations=N, max_new_tokens=NEW, engine=ENGINE, **settings)
        draws, shape = np.random.default_rng(0), (prompts, N, NEW)
        logits = jnp.asarray(2 * draws.normal(size=(*shape, 50)), jnp.float32)
        rules = Rules(*(jnp.broadcast_to(jnp.asarray(rule), shape) for rule in (
            jnp.asarray(sampling.temperatures, jnp.float32)[:, None], jnp.int32(sampling.top_k),
            jnp.float32(sampling.top_p), jnp.float32(sampling.min_p))))
        ids, _ = sample_token(jax.random.split(jax.random.key(0), shape), logits, rules)
        found = drawn(logits, ids, rules)
        off = np.array([wrong(place) for place in range(prompts)])[:, None, None] * draws.choice([-1, 1], shape)
        theirs = getattr(found, told) + draws.normal(size=shape) * ROUNDING[dtype] + off
        numbers, groups = {}, []
        for place in range(prompts):
            responses = tuple(Response(np.asarray(ids[place, i]), np.ones(NEW, bool), logps=np.asarray(
                theirs[place, i], np.float32)) for i in range(N))
            numbers |= {id(r): np.stack([x[place, i] for x in found], -1) for i, r in enumerate(responses)}
            groups.append(PromptGroup(f"p{place}", np.array([1], np.int32), responses))

        def ours(given, groups):
            return [[numbers[id(r)] for r in group.responses] for group in groups]

        return EngineGate(ours, sampling, dtype, start), groups

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("told", "settings", "words"), [
    ("drawn_logp", {"top_p": 0.9}, r"those at temperature 1, top_k 0, top_p 0\.9, min_p 0, after that"),
    ("drawn_logp", {"top_k": 20}, r"those at temperature 1, top_k 20,"),
    ("drawn_logp", {"temperature": 0.9}, r"those at temperature 0\.9, "),
    ("drawn_logp", {"temperature": 0.8, "min_p": 0.05}, r"those at temperature 0\.8, .* min_p 0\.05, after that"),
    ("tempered_logp", {"temperature": (1.0, 1.1)}, r"those at temperature 1\.1, after that"),
    ("tempered_logp", {"temperature": 0.9, "top_p": 0.9}, r"those at temperature 0\.9, after that was applied, .*"
                                                          r"raw_logprobs; .*SGLANG_RETURN_ORIGINAL_LOGPROB=1")])
def test_log_probs_that_are_not_the_models_own_are_named_in_any_precision(made_up, dtype, told, settings, words):
    gate, groups = made_up(dtype, told, **settings)
    with pytest.raises(EngineMismatch, match=words):
        gate.check(None, groups)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [
    {}, {"top_p": 0.9}, {"top_p": 0.99999}, {"top_k": 49}, {"temperature": (1.0, 0.7, 0.0)}, {"temperature": 1.0001},
    {"temperature": 0.9, "top_k": 10, "top_p": 0.9, "min_p": 0.01}, {"temperature": 0.0, "top_p": 0.5}])
def test_the_models_own_log_probs_pass_under_any_setting(made_up, dtype, settings):
    gate, groups = made_up(dtype, **settings)
    assert gate.check(None, groups).mean < 1.5 * ROUNDING[dtype]


@pytest.mark.parametrize("settings", [{"temperature": 0.95}, {"top_p": 0.95}, {"top_p": 0.99}])
def test_a_few_tokens_of_a_sound_engine_are_no_proof_against_it(made_up, settings):
    """With one token any number lies on a line through it."""
    gate, groups = made_up("bfloat16", prompts=60, **settings)
    for group in groups:
        tokens = gate.look(None, [group], gate.sampling.temperatures[0])
        assert all(gate.processed(tokens.at(np.array([place])), 1.0) is None for place in range(len(tokens.ours)))


@pytest.mark.parametrize(("dtype", "changed"), [("float32", 14), ("float32", 23), ("bfloat16", 14)])
def test_weights_that_change_within_a_shard_are_caught(made_up, dtype, changed):
    gate, groups = made_up(dtype, wrong=lambda place: 0.4 * (place >= changed))
    for origins in ((), [[Origin("http://a", place)] for place in range(24)]):
        with pytest.raises(EngineMismatch, match="the engine holds other weights") as error:
            gate.check(None, groups, origins)
        assert ("http://a: " in str(error.value)) == bool(origins)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_server_of_many_answers_unchecked(made_up, dtype):
    """Two of ten hold other weights; in bfloat16 the mean over all that is looked at would still pass."""
    origins = [[Origin(f"http://{place % 10}", place)] for place in range(60)]
    gate, groups = made_up(dtype, prompts=60, wrong=lambda place: 0.3 * (place % 10 == 8))
    with pytest.raises(EngineMismatch, match="http://8: the engine holds other weights"):
        gate.check(None, groups, origins)
    gate, groups = made_up(dtype, prompts=60, temperature=(1.0, 0.7))
    gate.check(None, groups, [[Origin("http://a", 2 * place), Origin("http://b", 2 * place + 1)]
                              for place in range(60)])


def test_the_server_of_each_temperature_is_known(made_up):
    """The samples at 0.7 come from another server than those at 1.0."""
    gate, groups = made_up("float32", told="tempered_logp", temperature=(1.0, 0.7))
    with pytest.raises(EngineMismatch, match=r"http://b: .*those at temperature 0\.7"):
        gate.check(None, groups, [[Origin("http://a", place), Origin("http://b", place)] for place in range(24)])


def test_what_is_looked_at_lies_all_over_a_shard_and_is_of_every_server():
    assert spread(24, 8, ()) == [0, 5, 8, 11, 14, 17, 20, 23]
    assert (spread(1, 8, ()), spread(3, 8, ()), spread(9, 1, ())) == ([0], [0, 1, 2], [0, 8])
    for servers, wanted, most in ((1, 8, 8), (3, 8, 8), (8, 8, 13), (10, 8, 14), (40, 8, 44), (10, 30, 30)):
        origins = [[Origin(str(place % servers), (place * 7) % 625)] for place in range(625)]
        found = spread(625, wanted, origins)
        assert (found[0], found[-1], found == spread(625, wanted, origins)) == (0, 624, True)
        assert wanted <= len(found) <= most
        assert {origins[place][0].url for place in found} == {str(server) for server in range(servers)}
        assert max(np.diff(found)) < 2 * 625 / 4
        for server in range(servers):
            own = {order: place for place, ((url, order),) in enumerate(origins) if url == str(server)}
            assert own[max(own)] in found
            assert own[min(own)] in found or 2 * servers + 2 > wanted


def test_the_share_of_an_update_by_hand():
    moved, noise = np.array([0.1, -0.2, 0.3, 0.0]), np.array([0.3, 0.0, -0.1, 5.0])  # noise is orthogonal to the move
    before = Tokens(np.zeros(4), np.full(4, -1.0), *np.zeros((3, 4)))
    for share in (0.0, 0.4, 1.0):
        after = before._replace(theirs=before.ours + share * moved + noise, ours=before.ours + moved)
        found, error = update_seen(before, after)
        assert found == pytest.approx(share)
        assert error == pytest.approx(np.sqrt(np.mean(noise**2) / np.sum(moved**2)))
    assert update_seen(before, before) == (1.0, np.inf)
