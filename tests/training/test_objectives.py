"""Objectives on outputs written by hand: what a pair's side adds up, whatever else shares its row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.packing import RowShape, pack
from rlhf_jax.losses import PreferenceLoss, TokenStats, weighted_total
from rlhf_jax.training.objectives import Preference

SHAPE = RowShape(tokens=64, targets=64, slots=16, pairs=16)


def group_of(lengths, pairs, masks=None):
    responses = tuple(Response(ids=np.ones(n, np.int32), loss_mask=np.ones(n, bool) if masks is None else masks[i])
                      for i, n in enumerate(lengths))
    return PromptGroup("p", np.ones(2, np.int32), responses, pairs=pairs)


def found(groups, logps, reference, **options):
    """The objective's terms and metrics where the policy gives the trained tokens of each response `logps`."""
    rows = [[i] for i in range(len(groups))]
    batch = pack(groups, rows, SHAPE, len(groups), reference)
    policy = jnp.asarray(pack(groups, rows, SHAPE, len(groups), logps).reference_logps)
    zeros = jnp.zeros_like(policy)
    return Preference(None, PreferenceLoss(beta=1.0), **options).terms(
        (policy, TokenStats(*(zeros for _ in TokenStats._fields))), batch)


A, B, C = [-1.0, -2.0], [-1.0, -1.0, -2.0, -2.0], [-3.0, -1.0, -1.0]
LOGPS = [[np.array(x, np.float32) for x in (A, B, C)]]
ONES = [[-np.ones(len(x), np.float32) for x in (A, B, C)]]


@pytest.mark.longer
@pytest.mark.parametrize(("alpha", "margins", "chosen"), [
    # per pair: (chosen - reference) - (rejected - reference), of sums to the shared length 2, then 3, and alpha beyond
    (0.5, [0.0, 0.5], -4.0),  # (-3 + 2) - (-4 + 3), (-5 + 3.5) - (-5 + 3); sums of the chosen -3 and -5
    (0.0, [-1.0, 1.0], -3.5),  # (-3 + 2) - (-2 + 2), (-4 + 3) - (-5 + 3); sums -3 and -4
    (1.0, [1.0, 0.0], -4.5),  # (-3 + 2) - (-6 + 4), (-6 + 4) - (-5 + 3); sums -3 and -6
])
def test_a_response_in_two_pairs_is_cut_at_each_pairs_own_shared_length(alpha, margins, chosen):
    (term,), metrics = found([group_of((2, 4, 3), ((0, 1), (1, 2)))], LOGPS, ONES, ld_alpha=alpha)
    np.testing.assert_allclose(term.values[:2], np.log1p(np.exp(-np.array(margins))), rtol=1e-6)
    total, weight = metrics.means["logps/chosen"]
    assert float(total / weight) == pytest.approx(chosen)


def random_case(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 5)
    masks = [np.arange(n) % 3 != 1 for n in lengths]  # some tokens are not trained on
    pairs = ((0, 1), (1, 2), (3, 1), (1, 4), (4, 0), (2, 3))
    logps, known = ([-rng.gamma(2.0, 1.0, int(mask.sum())).astype(np.float32) for mask in masks] for _ in range(2))
    return group_of(lengths, pairs, masks), logps, known


@pytest.mark.longer
@pytest.mark.parametrize("options", [{"ld_alpha": 0.5}, {"ld_alpha": 0.0}, {"ld_alpha": 1.0}, {},
                                     {"use_weighting": True}, {"ld_alpha": 0.25, "use_weighting": True}])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_that_share_responses_are_each_what_they_are_alone(options, seed):
    group, logps, known = random_case(seed)
    terms, metrics = found([group], [logps], [known], **options)
    alone = [found([PromptGroup("p", group.prompt_ids, (group.responses[a], group.responses[b]), pairs=((0, 1),))],
                   [[logps[a], logps[b]]], [[known[a], known[b]]], **options) for a, b in group.pairs]
    np.testing.assert_allclose(terms[0].values[:6], [one[0].values[0] for (one, _) in alone], rtol=1e-5)
    for name in ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/margins", "rewards/accuracies"):
        expected = sum(float(means.means[name][0]) for _, means in alone)
        np.testing.assert_allclose(float(metrics.means[name][0]), expected, rtol=1e-5, err_msg=name)


@pytest.mark.longer
def test_the_gradient_of_a_shared_response_is_the_sum_over_its_pairs():
    group, logps, known = random_case(7)
    batch = pack([group], [[0]], SHAPE, 1, [known])
    policy = jnp.asarray(pack([group], [[0]], SHAPE, 1, [logps]).reference_logps)
    objective = Preference(None, PreferenceLoss(beta=1.0), ld_alpha=0.5)
    zeros = TokenStats(*(jnp.zeros_like(policy) for _ in TokenStats._fields))

    def loss(values, mask):
        return weighted_total(objective.terms((values, zeros), dataclasses.replace(batch, pair_mask=mask))[0])

    both = jax.grad(loss)(policy, batch.pair_mask)
    each = [jax.grad(loss)(policy, (np.arange(SHAPE.pairs) == i)[None]) for i in range(6)]
    np.testing.assert_allclose(both, sum(each) / 6, atol=1e-6)


def flagged(*flags):
    """Three answers, two of them a pair each, and whose they are: 1 for the other policy, None where nobody says."""
    group = group_of((2, 4, 3), ((0, 1), (1, 2)))
    return dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={} if flag is None else {"by_other": flag})
        for r, flag in zip(group.responses, flags, strict=True)))


def xpo(alpha, group, policy=None):
    """The terms with XPO's, and the policy's log-probs they are of."""
    objective = Preference(None, PreferenceLoss(beta=1.0), xpo_alpha=alpha)
    batch = pack([group], [[0]], dataclasses.replace(SHAPE, values=objective.reads), 1, ONES)
    given = jnp.asarray(pack([group], [[0]], SHAPE, 1, LOGPS).reference_logps) if policy is None else policy
    zeros = TokenStats(*(jnp.zeros_like(given) for _ in TokenStats._fields))
    return objective.terms((given, zeros), batch), given, batch


@pytest.mark.longer
def test_xpo_adds_alpha_times_the_mean_log_probability_of_the_others_answers():
    ((dpo,), _), _, _ = xpo(0.0, flagged(1.0, 0.0, 1.0))
    ((same, optimism), metrics), _, _ = xpo(0.25, flagged(1.0, 0.0, 1.0))
    np.testing.assert_array_equal(same.values, dpo.values)
    expected = 0.25 * (sum(A) + sum(C)) / 2  # -3 and -5; the policy's own answer is not pushed away from
    np.testing.assert_allclose(weighted_total([optimism]), expected)
    np.testing.assert_allclose(weighted_total([dpo, optimism]), weighted_total([dpo]) + expected, rtol=1e-6)
    total, weight = metrics.means["loss/xpo"]
    np.testing.assert_allclose(total / weight, expected)  # TRL's metric of this name


@pytest.mark.longer
def test_the_gradient_of_xpos_term_is_alpha_over_the_count_at_each_of_the_others_tokens():
    group = flagged(0.0, 1.0, 1.0)
    _, policy, batch = xpo(0.5, group)

    def total(alpha):
        return jax.grad(lambda values: weighted_total(xpo(alpha, group, values)[0][0]))(policy)

    theirs = np.isin(batch.target_slot, (1, 2)) & batch.target_mask
    np.testing.assert_allclose(total(0.5) - total(0.0), np.where(theirs, 0.5 / 2, 0.0), atol=1e-6)


def test_xpo_at_the_reference_is_ln_2_and_the_mean_log_probability():
    group = flagged(1.0, 0.0, 0.0)
    objective = Preference(None, PreferenceLoss(beta=1.0), xpo_alpha=2.0)
    batch = pack([group], [[0]], dataclasses.replace(SHAPE, values=objective.reads), 1, ONES)
    policy = jnp.asarray(batch.reference_logps)
    terms, _ = objective.terms((policy, TokenStats(*(jnp.zeros_like(policy) for _ in TokenStats._fields))), batch)
    np.testing.assert_allclose(weighted_total(terms), np.log(2) + 2.0 * -2.0, rtol=1e-6)


def test_answers_of_nobody_or_of_the_policy_alone_add_nothing():
    for group in (flagged(0.0, 0.0, 0.0), flagged(None, None, None)):
        ((dpo, optimism), _), _, _ = xpo(1.0, group)
        assert float(weighted_total([optimism])) == 0.0
        assert np.isfinite(weighted_total([dpo, optimism]))


def test_alpha_0_reads_no_number_and_has_no_term():
    objective = Preference(None, PreferenceLoss())
    assert (objective.reads, Preference(None, PreferenceLoss(), xpo_alpha=0.0)) == ((), objective)


def test_sppo_reads_the_win_rate_of_each_side_by_its_name():
    group = group_of((2, 4, 3), ((0, 1), (1, 2)))
    wins = (0.9, 0.5, 0.2)
    group = dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={"judge": win}) for r, win in zip(group.responses, wins, strict=True)))
    objective = Preference(None, PreferenceLoss("sppo", beta=0.5), win_rate="judge")
    assert objective.reads == ("judge",)
    batch = pack([group], [[0]], dataclasses.replace(SHAPE, values=objective.reads), 1, ONES)
    policy = jnp.asarray(pack([group], [[0]], SHAPE, 1, LOGPS).reference_logps)
    (term,), _ = objective.terms((policy, TokenStats(*(jnp.zeros_like(policy) for _ in TokenStats._fields))), batch)
    # log-ratios -3 + 2, -6 + 4, -5 + 3; targets (p - 1/2) / 0.5
    a, b, c = (-1 - 0.8) ** 2, (-2 - 0.0) ** 2, (-2 + 0.6) ** 2
    np.testing.assert_allclose(term.values[:2], [a + b, b + c], rtol=1e-6)
    assert np.isfinite(term.values).all()
