"""Log-likelihoods of continuations against one sequence at a time, whatever shares a row, on one device or eight."""

import jax
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.evaluation.harness import branches
from rlhf_jax.evaluation.harness.branches import Asked, likelihood_map, likelihoods, questions
from rlhf_jax.evaluation.harness.kept import Kept
from rlhf_jax.models import output_head
from rlhf_jax.parallel import make_mesh
from rlhf_jax.training.objectives import Compute

LONGEST = 150


@pytest.fixture(scope="module")
def case(tiny, weights):
    """A config, its weights, and requests: contexts of 1 to 150 tokens with 1 to 5 continuations, some asked twice."""
    config, rng = tiny(), np.random.default_rng(0)
    asked = []
    for size in (1, 3, 40, 7, LONGEST, 12, 100, 5):
        context = tuple(rng.integers(0, 48, size).tolist())
        lengths = rng.integers(1, 20, rng.integers(1, 6))
        asked += [Asked(context, tuple(rng.integers(0, 48, length).tolist())) for length in lengths]
    return config, weights(config, 3), [*asked, asked[0], asked[5]]


@pytest.fixture(scope="module")
def alone(case, plain):
    """(sum of log-probs, greedy) of each request, computed by itself with a plain decoder; what stands behind a token
    changes nothing, so all are padded to one length and one program serves them."""
    config, params, asked = case
    compiled = jax.jit(lambda ids: jax.nn.log_softmax(plain(params, config, ids) @ output_head(params).T))
    found = []
    for context, continuation in asked:
        ids = np.zeros(LONGEST + 20, np.int32)
        ids[:len(context) + len(continuation)] = context + continuation
        logps = np.asarray(compiled(ids))[len(context) - 1:][:len(continuation)]
        found.append((float(logps[np.arange(len(continuation)), list(continuation)].sum()),
                      logps.argmax(-1).tolist() == list(continuation)))
    return found


@pytest.mark.parametrize(("devices", "row_length", "shard"), [(1, None, 1024), (1, 256, 3), (8, None, 1024)])
def test_they_are_those_of_each_sequence_alone_for_every_bucketing_and_number_of_devices(
        devices, row_length, shard, case, alone, exact_matmul, monkeypatch):
    monkeypatch.setattr(branches, "SHARD", shard)
    config, params, asked = case
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    program = likelihood_map(Compute(config, mesh=mesh), mesh)
    program._row_length = row_length
    found = likelihoods(program, params, asked, Kept())
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in alone], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
    assert likelihoods(program, params, asked[::-1], Kept()) == found[::-1]


def test_a_program_is_compiled_for_each_length_of_rows_and_not_for_each_shard(case, monkeypatch):
    monkeypatch.setattr(branches, "SHARD", 2)
    config, params, asked = case
    mesh = make_mesh(MeshConfig(), jax.devices())
    program, lengths = likelihood_map(Compute(config, mesh=mesh), mesh), []
    shape = program.shape
    monkeypatch.setattr(program, "shape", lambda groups: lengths.append(shape(groups)) or lengths[-1])
    likelihoods(program, params, asked, Kept())
    assert len(lengths) == 4
    assert len({one.tokens for one in lengths}) == program.program._cache_size() == 2
    assert len({(one.targets, one.slots) for one in lengths}) > 1  # shapes differed before they were made few


def test_a_context_is_read_once_and_a_continuation_that_is_asked_twice_too():
    asked = [Asked((1, 2), (3,)), Asked((1, 2), (4, 5)), Asked((1, 2), (3,)), Asked((1,), (3,))]
    groups, places = questions(asked)
    assert [(group.prompt_ids.tolist(), [r.ids.tolist() for r in group.responses]) for group in groups] == [
        ([1, 2], [[3], [4, 5]]), ([1], [[3]])]
    assert places == [(0, 0), (0, 1), (0, 0), (1, 0)]


def test_what_is_too_long_loses_the_beginning_of_its_context():
    assert Asked((1, 2, 3), (4, 5)).within(4) == ((1, 2, 3), (4, 5))  # the last token is never read
    assert Asked((1, 2, 3), (4, 5)).within(3) == ((2, 3), (4, 5))
    assert Asked((1, 2, 3), (4, 5)).within(2) == ((3,), (4, 5))
    with pytest.raises(ValueError, match="a continuation has 2 tokens and the model 1 positions"):
        Asked((1, 2, 3), (4, 5)).within(1)


def test_what_was_answered_before_a_command_was_killed_is_not_asked_again(case, tmp_path, monkeypatch):
    monkeypatch.setattr(branches, "SHARD", 2)
    config, params, asked = case
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = likelihood_map(Compute(config, mesh=mesh), mesh)
    whole = likelihoods(program, params, asked, Kept())
    calls = []

    def dying(params, groups, shape=None):
        calls.append(len(groups))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return program(params, groups, shape=shape)

    dying.shape = program.shape
    with pytest.raises(KeyboardInterrupt):
        likelihoods(dying, params, asked, Kept(tmp_path))
    assert likelihoods(dying, params, asked, Kept(tmp_path)) == whole
    assert calls == [2, 2, 2, 2, 2]
    kept = Kept(tmp_path)
    kept.drop()
    assert not list(tmp_path.iterdir())
