import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data import loader
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.packing import group_length


def plan_of(groups, **changes):
    return BatchPlan(groups, **{"batch_size": 4, "row_length": 32, "micro_rows": 2} | changes)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@given(count=st.integers(1, 30), size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 99),
       shuffle=st.booleans())
def test_every_epoch_takes_every_group_exactly_once(count, size, epochs, seed, shuffle, make_groups):
    plan = plan_of(make_groups(count), batch_size=size, epochs=float(epochs), seed=seed, shuffle=shuffle)
    assert plan.steps == epochs * plan.steps_per_epoch == epochs * -(-count // size)
    for epoch in range(epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        taken = [plan.members(step) for step in steps]
        assert sorted(i for one in taken for i in one) == list(range(count))
        assert all(len(one) == size for one in taken[:-1])
        assert all(sorted(i for row in plan.rows(step) for i in row) == sorted(plan.members(step)) for step in steps)


def test_order_depends_on_seed_and_epoch_alone(make_groups):
    groups = make_groups(16)
    orders = {(seed, epoch): tuple(i for at in range(4) for i in plan_of(groups, seed=seed).members(epoch * 4 + at))
              for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    again = plan_of(groups, seed=1, micro_rows=1, epochs=5.0)
    assert tuple(i for at in range(4) for i in again.members(4 + at)) == orders[1, 1]


@given(count=st.integers(1, 30), size=st.integers(1, 9), seed=st.integers(0, 99), steps=st.lists(st.integers(0, 60)))
def test_a_step_takes_its_slice_of_its_epochs_permutation_whatever_was_asked_before(count, size, seed, steps,
                                                                                    make_groups):
    plan = plan_of(make_groups(count), batch_size=size, seed=seed)
    for step in steps:
        epoch, at = divmod(step, plan.steps_per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        assert plan.members(step) == order[at * size : (at + 1) * size].tolist()


def test_the_data_are_permuted_once_an_epoch_and_not_at_every_step(make_groups, monkeypatch):
    groups, asked = make_groups(40), []

    def default_rng(seed):
        asked.append(seed)
        return np.random.Generator(np.random.PCG64(seed))

    monkeypatch.setattr(loader.np.random, "default_rng", default_rng)
    plan = plan_of(groups, batch_size=2, epochs=3.0, seed=12345)
    assert plan.accumulation == 1
    assert asked == [[12345, 0], [12345, 1], [12345, 2]]
    for step in range(plan.steps):
        plan.members(step)
    assert len(asked) == 6


def test_without_shuffling_the_given_order_is_kept(make_groups):
    plan = plan_of(make_groups(6), shuffle=False, epochs=2.0)
    assert [plan.members(step) for step in range(4)] == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4, 5]]


def test_batches_are_a_pure_function_of_the_step_and_can_start_anywhere(make_groups, make_reference):
    groups = make_groups(13)
    make = {"epochs": 2.0, "seed": 3, "reference": make_reference(groups)}
    whole = list(plan_of(groups, **make).iterate())
    assert [step for step, _, _ in whole] == list(range(8))
    for start in range(9):
        rest = list(plan_of(groups, **make).iterate(start))
        assert len(rest) == 8 - start
        for (step, batch, micro), (step_again, batch_again, micro_again) in zip(whole[start:], rest, strict=True):
            assert (step, micro) == (step_again, micro_again)
            same(batch, batch_again)


def test_a_batch_holds_its_members_and_nothing_else(make_groups):
    groups = make_groups(11, k=(1, 3))
    plan = plan_of(groups, batch_size=5)
    for step, batch, micro in plan.iterate():
        expected = sorted(t for i in plan.members(step) for r in groups[i].responses for t in r.ids[r.loss_mask])
        assert sorted(batch.target[batch.target_mask].tolist()) == expected
        assert batch.tokens.shape == (plan.accumulation, plan.micro_rows, plan.row_length)
        assert (batch.group_ids[:micro] > 0).any(axis=(1, 2)).all()
        assert not batch.group_ids[micro:].any()


def test_reference_log_probs_follow_their_groups_through_the_shuffle(make_groups):
    groups = make_groups(9)
    ids = [[r.ids[r.loss_mask].astype(np.float32) for r in g.responses] for g in groups]
    for _, batch, _ in plan_of(groups, reference=ids).iterate():
        np.testing.assert_array_equal(batch.reference_logps, batch.target)


def test_all_steps_have_one_shape(make_groups):
    plan = plan_of(make_groups(23, k=(1, 4), pairs="some"), epochs=2.0)
    shapes = {tuple(x.shape for x in jax.tree.leaves(batch)) for _, batch, _ in plan.iterate()}
    assert len(shapes) == 1


def test_accumulation_and_efficiency_by_hand(make_groups):
    groups = make_groups(7, k=(1, 1), prompt=(4, 4), response=(8, 8))  # 12 tokens each: two fill a row of 24
    plan = plan_of(groups, batch_size=5, row_length=24, micro_rows=1, shuffle=False)
    assert [plan.micro_batches(0), plan.micro_batches(1)] == [3, 1]
    assert plan.accumulation == 4  # room for three micro-batches, as a power of two
    assert plan.efficiency == 7 * 12 / (4 * 24)
    wide = plan_of(groups, batch_size=5, row_length=24, micro_rows=2, shuffle=False)
    assert [wide.micro_batches(0), wide.micro_batches(1), wide.accumulation] == [2, 1, 2]
    assert wide.efficiency == 7 * 12 / (3 * 2 * 24)
    assert sum(group_length(g) for g in groups) == 84


@pytest.mark.parametrize(("epochs", "max_steps", "steps"),
                         [(1.0, None, 4), (2.5, None, 10), (0.5, None, 2), (0.01, None, 1), (0.3, None, 2),
                          (1.26, None, 6), (3.0, 5, 5), (1.0, 9, 9), (0.5, 9, 9), (3.0, 1, 1)])
def test_epochs_are_rounded_up_to_steps_and_max_steps_replaces_them(epochs, max_steps, steps, make_groups):
    plan = plan_of(make_groups(16), epochs=epochs, max_steps=max_steps)
    assert plan.steps == steps == len(list(plan.iterate()))


def test_more_steps_than_the_epochs_give_go_through_the_data_again(make_groups):
    groups = make_groups(6)
    plan, by_epochs = plan_of(groups, batch_size=2, max_steps=20), plan_of(groups, batch_size=2, epochs=7.0)
    assert plan.steps == 20
    assert [plan.members(step) for step in range(20)] == [by_epochs.members(step) for step in range(20)]
    taken = [i for step in range(18) for i in plan.members(step)]
    assert sorted(taken) == sorted([*range(6)] * 6)


def test_groups_on_disk_make_the_same_batches(make_groups, make_reference):
    groups = make_groups(13, k=(1, 3), pairs="some")
    held = plan_of(groups, epochs=2.0, reference=make_reference(groups))
    read = plan_of(OnDisk(groups), epochs=2.0, reference=OnDisk(make_reference(groups)))
    assert (read.shape, read.accumulation, read.efficiency) == (held.shape, held.accumulation, held.efficiency)
    for (_, batch, micro), (_, batch_again, micro_again) in zip(held.iterate(), read.iterate(), strict=True):
        assert micro == micro_again
        same(batch, batch_again)


@pytest.mark.longer
def test_what_an_epoch_holds_does_not_grow_with_the_groups():
    ids, mask = np.arange(300, dtype=np.int32), np.ones(300, bool)
    held = []
    for count in (200, 4000):
        groups = OnDisk(PromptGroup(str(i), ids, (Response(ids, mask, "x" * 1000),)) for i in range(count))
        tracemalloc.start()
        plan = plan_of(groups, batch_size=8, row_length=640, micro_rows=8, epochs=1.0)
        assert sum(int((batch.group_ids > 0).sum()) for _, batch, _ in plan.iterate()) == 600 * count
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] - held[0] < 500_000  # of 20 MB more


def test_no_groups_is_an_error_that_points_at_the_funnel():
    with pytest.raises(ValueError, match=r"no prompt group is left.*funnel"):
        plan_of([])


def test_a_row_that_cannot_hold_a_group_is_an_error_before_the_first_step(make_groups):
    with pytest.raises(ValueError, match="row_length"):
        _ = plan_of(make_groups(2, prompt=(9, 9)), row_length=8).shape


@pytest.mark.parametrize("parts", [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(3,), (0, 1, 2)]])
def test_processes_that_pack_some_rows_each_pack_the_batch_between_them(parts, make_groups):
    groups = make_groups(20, 3)
    reference = [[np.arange(int(r.loss_mask.sum()), dtype=np.float32) for r in g.responses] for g in groups]
    plan = BatchPlan(groups, 12, 32, 4, reference=reference)
    for step in range(plan.steps):
        whole, micro = plan.batch(step)
        for rows in parts:
            some, their_micro = dataclasses.replace(plan, rows_here=rows).batch(step)
            assert their_micro == micro
            jax.tree.map(lambda a, b, rows=rows: np.testing.assert_array_equal(a, b[:, list(rows)]), some, whole)
