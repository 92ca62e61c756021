"""Running over a data set: packed once, and the host is one batch ahead of what it waits for."""

import numpy as np
import pytest

from rlhf_jax.config.training import TrainConfig
from rlhf_jax.data.packing import pack, row_shape, unpack_slots, unpack_targets
from rlhf_jax.losses import PreferenceLoss, weighted_total
from rlhf_jax.training import evaluate
from rlhf_jax.training.evaluate import PackedMap, make_evaluator, overlapped
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import Preference, Sft


@pytest.fixture
def packings(monkeypatch):
    """Numbers of items of every packing from now on."""
    found, pack_rows = [], evaluate.pack_rows
    monkeypatch.setattr(evaluate, "pack_rows", lambda lengths, capacity: found.append(len(lengths)) or pack_rows(
        lengths, capacity))
    return found


def test_a_map_packs_its_groups_once_a_call(packings, make_groups, lone_mesh):
    groups = make_groups(30, k=(1, 3))
    found = PackedMap(lambda params, batch: batch.target, lone_mesh, unpack_targets, row_length=32)({}, groups)
    assert packings == [30]
    for per_response, group in zip(found, groups, strict=True):
        for ids, response in zip(per_response, group.responses, strict=True):
            np.testing.assert_array_equal(ids, response.ids[response.loss_mask])


@pytest.mark.parametrize(("k", "longest", "row"), [((2, 3), 200, 1024), ((4, 5), 100, 2048), ((1, 2), 150, 512)])
def test_calls_on_similar_groups_share_their_programs(make_groups, lone_mesh, k, longest, row):
    scores = PackedMap(lambda params, batch: batch.slot_end, lone_mesh, unpack_slots, row_length=row)
    for number in range(20):
        scores({}, make_groups(24, number, k=k, prompt=(5, 120), response=(5, longest)))
    assert scores.program._cache_size() <= 4


def test_a_row_has_room_for_all_its_targets_whatever_its_length(make_groups, lone_mesh):
    for tokens in (13, 40, 64, 100, 1000):
        groups = make_groups(9, k=(1, 2), prompt=(1, 3), response=(4, 5))
        shape = PackedMap(lambda params, batch: batch.target, lone_mesh, unpack_targets).shape(groups, tokens)
        assert tokens >= shape.targets >= min(tokens - 3, 9 * 4)
        assert shape.targets == tokens or shape.targets % max(64, tokens // 8) == 0


def test_an_evaluator_packs_its_groups_once_for_all_its_calls(packings, make_groups, lone_mesh, bigram):
    compute, model = bigram()
    groups = make_groups(12)
    plan = make_plan(groups, TrainConfig(train_batch_size=4, micro_rows=2, row_length=32), lone_mesh)
    evaluator = make_evaluator(Sft(compute), groups, plan, lone_mesh)
    assert evaluator(model.trained, {}) == evaluator(model.trained, {})
    assert packings == [12]


@pytest.mark.longer
@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", ("aot", "sigmoid"), "sigmoid", ("ipo", "sft")])
def test_the_loss_of_an_evaluation_does_not_depend_on_how_many_rows_are_worked_on_at_a_time(
        loss, make_groups, make_reference, lone_mesh, bigram):
    compute, model = bigram()
    groups = make_groups(23, k=(1, 4), pairs="some")
    reference, objective = make_reference(groups), Preference(compute, PreferenceLoss(loss))
    found = [make_evaluator(objective, groups, make_plan(groups, TrainConfig(
        train_batch_size=23, micro_rows=rows, row_length=length), lone_mesh), lone_mesh, reference=reference)(
            model.trained, {}) for rows, length in ((1, 64), (2, 64), (3, 96), (40, 64))]
    whole = pack(groups, [[i] for i in range(23)], row_shape(groups, [[i] for i in range(23)], 128), 23, reference)
    expected = weighted_total(objective.terms(objective.outputs(model.trained, whole), whole)[0])
    for metrics in found:
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
        for name, value in found[0].items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_each_item_is_given_when_the_next_one_is_under_way_and_none_is_lost():
    begun = []

    def begin(number):
        begun.append(number)
        return number

    seen = [(item, list(begun)) for item in overlapped(begin(i) for i in range(3))]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(overlapped([])) == []
