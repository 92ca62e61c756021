"""Packed and prefix-shared results equal one response at a time, each alone in its own row behind its own prompt."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_jax.data.packing import RowShape, group_length, pack, pack_rows
from rlhf_jax.losses import PairLogps, PreferenceLoss, preference_loss, weighted_total
from rlhf_jax.models import as_classifier
from rlhf_jax.training.objectives import BradleyTerry, Compute, Preference, Sft
from rlhf_jax.training.step import make_grads, whole

SHAPE = RowShape(tokens=48, targets=48, slots=16, pairs=16)
ROWS, BRANCHES, PAIRS, LONGEST = 4, 16, 16, 16
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
OF_LARGEST = 5e-5
"""Rounding of a gradient in float32, as a share of its largest entry or of 1: at most 1.1e-5 in 20,000 random problems,
2,500 of each objective, all against float64, and about twice that in unoptimised programs, which add up in order. An
entry that is small because large terms cancel carries their rounding, so 1e-5 of each entry would be less than rounding
in one problem of a thousand (Bradley-Terry) to one of forty (ipo)."""
SEEDS = st.tuples(st.integers(1, 4), st.integers(0, 10**6))
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


pytestmark = pytest.mark.usefixtures("exact_matmul")


def packed(groups, reference):
    rows = pack_rows([group_length(g) for g in groups], SHAPE.tokens)
    return pack(groups, rows, SHAPE, ROWS, reference)


def one_by_one(groups, reference):
    """Every response of every group behind its prompt in a row of its own (arrays of one size for all examples)."""
    out = {"ids": np.zeros((BRANCHES, LONGEST), np.int32), "trained": np.zeros((BRANCHES, LONGEST), bool),
           "reference": np.zeros((BRANCHES, LONGEST), np.float32), "last": np.zeros(BRANCHES, np.int32),
           "real": np.zeros(BRANCHES, bool), "pairs": np.zeros((PAIRS, 2), np.int32),
           "pair_real": np.zeros(PAIRS, bool), "margin": np.zeros(PAIRS, np.float32)}
    at = pair = 0
    for group, logps in zip(groups, reference, strict=True):
        for (chosen, rejected), margin in zip(group.pairs, group.margins, strict=True):
            out["pairs"][pair], out["margin"][pair], out["pair_real"][pair] = (at + chosen, at + rejected), margin, True
            pair += 1
        for response, known in zip(group.responses, logps, strict=True):
            start, end = len(group.prompt_ids), len(group.prompt_ids) + len(response.ids)
            out["ids"][at, :end] = [*group.prompt_ids, *response.ids]
            out["trained"][at, start:end] = response.loss_mask
            out["reference"][at, np.flatnonzero(out["trained"][at])] = known
            out["last"][at], out["real"][at] = end - 1, True
            at += 1
    return out


def plain_sft(logps, rows):
    return -jnp.sum(jnp.where(rows["trained"], logps, 0.0)) / jnp.sum(rows["trained"])


def plain_bradley_terry(score, rows, *, margin, center):
    chosen, rejected = score[rows["pairs"][:, 0]], score[rows["pairs"][:, 1]]
    gap = chosen - rejected - (rows["margin"] if margin else 0.0)
    values = jnp.log1p(jnp.exp(-gap)) + center * (chosen + rejected) ** 2
    return jnp.sum(jnp.where(rows["pair_real"], values, 0.0)) / jnp.maximum(jnp.sum(rows["pair_real"]), 1)


def plain_preference(logps, rows, *, loss):
    trained = rows["trained"]
    policy = jnp.sum(jnp.where(trained, logps, 0.0), -1)
    reference, length = jnp.sum(rows["reference"] * trained, -1), jnp.sum(trained, -1) * 1.0
    sides = [x[rows["pairs"][:, side]] for x in (policy, reference, length) for side in (0, 1)]
    return weighted_total(preference_loss(PairLogps(*sides), loss, rows["pair_real"], rows["margin"]))


def in_float64(function):
    """A function compiled for double precision, whatever the precision of what it is given; its results in NumPy."""
    compiled = jax.jit(function)

    def call(*args):
        args = jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x, args)
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, compiled(*args))

    return call


@pytest.fixture(scope="module")
def problem(tiny, weights, plain):
    """(family, classifier) -> config, parameters, and (parameters, ids, last) -> outputs of the plain decoder, and
    their pullback: [R] scores of a classifier, else [R, N] log p(token n | tokens before n), 0 for the first."""

    @cache
    def build(family, classifier=False):
        params, config = weights(tiny(family)), tiny(family, num_labels=int(classifier))
        params = as_classifier(params, jax.random.key(9), config) if classifier else params

        def outputs(params, ids, last):
            hidden = jax.vmap(lambda row: plain(params, config, row))(ids)
            if classifier:
                return jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0] @ params["score"][0]
            table = jax.nn.log_softmax(hidden @ params["head"].T)
            return jnp.pad(jnp.take_along_axis(table[:, :-1], ids[:, 1:, None], -1)[..., 0], ((0, 0), (1, 0)))

        def pullback(params, ids, last, cotangent):
            return jax.vjp(lambda q: outputs(q, ids, last), params)[1](cotangent)[0]

        return config, params, in_float64(outputs), in_float64(pullback)

    return build


OBJECTIVES = {
    "sft": (Sft, plain_sft, False),
    "bradley_terry": (BradleyTerry, partial(plain_bradley_terry, margin=False, center=0.0), True),
    "bradley_terry_margin_centred": (partial(BradleyTerry, use_margin=True, center_rewards_coefficient=0.1),
                                     partial(plain_bradley_terry, margin=True, center=0.1), True),
} | {
    name: (partial(Preference, loss=loss), partial(plain_preference, loss=loss), False)
    for name, loss in {
        "sigmoid": PreferenceLoss("sigmoid", beta=0.3),
        "ipo": PreferenceLoss("ipo", beta=0.3),
        "simpo": PreferenceLoss("simpo", beta=2.0),
        "sigmoid_and_sft": PreferenceLoss(("sigmoid", "sft"), loss_weights=(0.8, 0.5), beta=0.3),
        "kl_margin": PreferenceLoss("kl", beta=0.3),
    }.items()
}


SLOW = ("bradley_terry", "sigmoid", "ipo", "simpo")  # the mixtures beside them take the same paths


@pytest.mark.longer
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OBJECTIVES])
def test_loss_and_gradients_equal_one_sequence_at_a_time(name, problem, make_groups, make_reference):
    objective, plain_loss, classifier = OBJECTIVES[name]
    config, params, forward, backward = problem("mistral", classifier)
    ours = jax.jit(make_grads(objective(Compute(config, logits_chunk=7)), whole, jnp.float32))
    theirs = in_float64(jax.value_and_grad(plain_loss))

    @FEW
    @given(case=SEEDS, halves=st.booleans())
    def check(case, halves):
        groups = make_groups(*case, k=(1, 4), prompt=(1, 8), response=(1, 8), pairs="some")
        reference = make_reference(groups, case[1])
        batch = jax.tree.map(lambda x: x.reshape(2, ROWS // 2, *x.shape[1:]), packed(groups, reference))
        batch = batch if halves else jax.tree.map(lambda x: x[::-1], batch)  # padding first: it must weigh nothing
        grads, loss, _ = ours(params, {}, batch, np.int32(2))
        rows = one_by_one(groups, reference)
        expected_loss, cotangent = theirs(forward(params, rows["ids"], rows["last"]), rows)
        expected = backward(params, rows["ids"], rows["last"], cotangent)
        np.testing.assert_allclose(loss, expected_loss, **TOLERANCE)
        allowed = OF_LARGEST * max(1.0, *(np.abs(g).max() for g in jax.tree.leaves(expected)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=allowed), grads, expected)

    check()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_log_probs_equal_one_sequence_at_a_time(family, problem, make_groups, make_reference):
    config, params, forward, _ = problem(family)
    ours = jax.jit(lambda p, batch: Compute(config, logits_chunk=16).target_logps(p, batch)[0])

    @FEW
    @given(case=SEEDS)
    def check(case):
        groups = make_groups(*case, k=(1, 4), prompt=(1, 8), response=(1, 8))
        batch = packed(groups, make_reference(groups))
        rows = one_by_one(groups, make_reference(groups))
        found = np.asarray(ours(params, batch))[batch.target_mask]
        expected = np.asarray(forward(params, rows["ids"], rows["last"]))
        order = [i for row in pack_rows([group_length(g) for g in groups], SHAPE.tokens) for i in row]
        first = np.cumsum([0, *(len(g.responses) for g in groups)])
        branches = [b for i in order for b in range(first[i], first[i + 1])]
        np.testing.assert_allclose(found, np.concatenate([expected[b][rows["trained"][b]] for b in branches]),
                                   **TOLERANCE)

    check()


def test_scores_equal_one_sequence_at_a_time(problem, make_groups, make_reference):
    config, params, forward, _ = problem("qwen3", True)
    ours = jax.jit(lambda p, batch: Compute(config).slot_scores(p, batch)[..., 0])

    @FEW
    @given(case=SEEDS)
    def check(case):
        groups = make_groups(*case, k=(1, 4), prompt=(1, 8), response=(1, 8))
        batch, rows = packed(groups, make_reference(groups)), one_by_one(groups, make_reference(groups))
        order = [i for row in pack_rows([group_length(g) for g in groups], SHAPE.tokens) for i in row]
        first = np.cumsum([0, *(len(g.responses) for g in groups)])
        expected = np.asarray(forward(params, rows["ids"], rows["last"]))
        np.testing.assert_allclose(np.asarray(ours(params, batch))[batch.slot_mask],
                                   np.concatenate([expected[first[i] : first[i + 1]] for i in order]), **TOLERANCE)

    check()


def test_a_branch_is_blind_to_its_siblings_and_neighbours(problem, make_groups, make_reference):
    """Changing every token of one branch moves that branch's log-probs and nobody else's, to the bit."""
    config, params, *_ = problem("llama")
    groups = make_groups(3, 5, k=(3, 3), prompt=(3, 3), response=(3, 3), holes=False)
    batch = packed(groups, make_reference(groups))
    row, = np.flatnonzero(batch.slot_mask.sum(-1) == 9)
    ours = jax.jit(lambda b: Compute(config).target_logps(params, b)[0])
    before = np.asarray(ours(batch))[row]
    mine = (batch.group_ids == 2) & (batch.branch_ids == 2)
    after = np.asarray(ours(batch.replace(tokens=np.where(mine, (batch.tokens + 7) % 48, batch.tokens))))[row]
    own = batch.target_slot[row] == 4
    others = ~own & batch.target_mask[row]
    np.testing.assert_array_equal(before[others], after[others])
    assert np.abs(before - after)[own][1:].min() > 1e-4  # its first token is predicted from the prompt alone
