"""Log-likelihoods of continuations against one sequence at a time, whatever shares a row, on one device or eight."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.evaluation.harness import branches
from rlhf_jax.evaluation.harness.branches import Asked, likelihood_map, likelihoods, questions, shared_beginnings
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
    examples = tuple(rng.integers(0, 48, 60).tolist())  # before seven questions, of which one begins another
    tails = [tuple(rng.integers(0, 48, size).tolist()) for size in (5, 9, 30, 12, 2, 7)]
    for tail in [*tails, tails[2][:8]]:
        asked += [Asked(examples + tail, tuple(rng.integers(0, 48, length).tolist())) for length in (3, 1)]
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
    program.program.clear_cache()
    monkeypatch.setattr(program, "shape", lambda groups: lengths.append(shape(groups)) or lengths[-1])
    likelihoods(program, params, asked, Kept())
    assert len(lengths) == 14
    assert len({one.tokens for one in lengths}) == program.program._cache_size() == 2
    assert len({(one.targets, one.slots) for one in lengths}) > 1  # shapes differed before they were made few


def test_examples_that_stand_before_several_questions_are_read_once(case):
    _, _, asked = case
    groups, places = questions(asked)
    shared = [group for group in groups if len(group.responses) == 14]
    assert [len(group.prompt_ids) for group in shared] == [60]
    for one, (number, branch) in zip(asked, places, strict=True):
        response = groups[number].responses[branch]
        whole = (*groups[number].prompt_ids.tolist(), *response.ids.tolist())
        assert whole == one.context + one.continuation
        assert response.ids[response.loss_mask].tolist() == list(one.continuation)
    assert len(groups) == 9


@pytest.mark.parametrize(("contexts", "found"), [
    ([((1, 2), [1]), ((1, 2, 3), [1]), ((4,), [2])], [(2, [0, 1]), (1, [2])]),  # one context begins another
    ([((1, *range(9)), [1]), ((1, *range(20, 29)), [1])], [(10, [0]), (10, [1])]),  # one token is not worth it
    ([((*range(40), 1), [1]), ((*range(40), 2), [1]), ((*range(20), 1), [1])], [(40, [0, 1]), (21, [2])]),
    ([(tuple(range(3000)), [1] * 5)], [(3000, [0])]),
])
def test_what_contexts_share(contexts, found):
    order = sorted(range(len(contexts)), key=lambda i: contexts[i][0])
    plan = shared_beginnings([contexts[i] for i in order])
    assert sorted((some.length, sorted(order[i] for i in some.members)) for some in plan) == sorted(found)


def test_examples_before_very_many_questions_are_read_once_a_row():
    examples = tuple(range(1000, 1900))
    plan = shared_beginnings([((*examples, number, *range(99)), [1]) for number in range(100)])
    assert [some.length for some in plan] == [900] * 4  # rows of 4,096 tokens, the power of two from three times 900 on
    assert [len(some.members) for some in plan] == [31, 31, 31, 7]  # of 101 tokens each
    plan = shared_beginnings([((*examples[:300], number, *range(99)), [1]) for number in range(100)])
    assert [len(some.members) for some in plan] == [17] * 5 + [15]  # 1,748 are left of 2,048
    plan = shared_beginnings([((*range(5000), number, *range(99)), [1]) for number in range(100)])
    assert [len(some.members) for some in plan] == [31, 31, 31, 7]  # 3,192 are left of 8,192
    assert len(shared_beginnings([((*range(9000), number), [1]) for number in range(100)])) == 1  # and of 16,384


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
                                     st.lists(st.integers(1, 3), min_size=1, max_size=3)),
                           min_size=1, max_size=12, unique_by=lambda pair: pair[0]), st.sampled_from([16, 24, 2048]))
def test_every_context_has_one_group_whose_beginning_it_has_and_fewer_tokens_are_read(contexts, row):
    contexts = sorted(contexts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "LONG_ROW", row)
        plan = shared_beginnings(contexts)
    assert sorted(i for some in plan for i in some.members) == list(range(len(contexts)))
    tokens = 0
    for length, members in plan:
        assert length > 0
        assert len({contexts[i][0][:length] for i in members}) == 1
        tokens += length + sum(len(contexts[i][1]) * (len(contexts[i][0]) - length) + sum(contexts[i][1])
                               for i in members)
    assert tokens <= sum(len(context) + sum(ends) for context, ends in contexts)


def test_a_context_that_shares_a_row_with_no_other_is_read_once_for_its_continuations(monkeypatch):
    """84 tokens and seven times 22 share a row of 256."""
    monkeypatch.setattr(branches, "LONG_ROW", 64)
    plan = shared_beginnings([((*range(84), *(number,) * 9), [2, 2]) for number in range(8)])
    assert [(some.length, some.members) for some in plan] == [(84, list(range(7))), (93, [7])]


def test_contexts_share_nothing_where_long_rows_cost_their_square():
    asked = [Asked((*range(40), number), (1,)) for number in range(5)]
    assert len(questions(asked).groups) == 1
    assert len(questions(asked, share=False).groups) == 5


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


@pytest.mark.longer
def test_what_was_answered_before_a_command_was_killed_is_not_asked_again(case, tmp_path, monkeypatch):
    monkeypatch.setattr(branches, "SHARD", 6)
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

    dying.shape, dying.limit = program.shape, program.limit
    with pytest.raises(KeyboardInterrupt):
        likelihoods(dying, params, asked, Kept(tmp_path))
    assert likelihoods(dying, params, asked, Kept(tmp_path)) == whole
    assert calls == [2, 1, 2, 2, 2, 2]
    kept = Kept(tmp_path)
    kept.drop()
    assert not list(tmp_path.iterdir())
