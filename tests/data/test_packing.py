import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.packing import (
    RowShape,
    default_row_length,
    empty_rows,
    group_length,
    pack,
    pack_rows,
    row_length_for,
    row_shape,
    unpack_slots,
    unpack_targets,
)

LENGTHS = st.lists(st.integers(1, 20), max_size=40)
CASES = st.tuples(st.integers(1, 6), st.integers(0, 10_000))


def packed(groups, reference=None, capacity=40, spare=1):
    rows = pack_rows([group_length(g) for g in groups], capacity)
    shape = row_shape(groups, rows, capacity)
    return pack(groups, rows, shape, len(rows) + spare, reference), rows, shape


def group(prompt, *responses, pairs=(), margins=()):
    made = tuple(Response(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in responses)
    return PromptGroup("p", np.array(prompt, np.int32), made, pairs=pairs, margins=margins)


def test_the_row_drawn_in_the_documentation_by_hand():
    first = group([10, 11, 12], ([20, 21, 22], [1, 0, 1]), ([30, 31], [1, 1]), pairs=((1, 0),), margins=(0.5,))
    second = group([13, 14], ([40, 41], [0, 1]), ([50, 51, 52, 53], [1, 1, 0, 0]), pairs=((0, 1),), margins=(2.0,))
    reference = [[np.array([-1.0, -2.0]), np.array([-3.0, -4.0])], [np.array([-5.0]), np.array([-6.0, -7.0])]]
    out = pack([first, second], [[0, 1]], RowShape(17, 8, 4, 2), 1, reference)
    assert out.tokens[0].tolist() == [10, 11, 12, 20, 21, 22, 30, 31, 13, 14, 40, 41, 50, 51, 52, 53, 0]
    assert out.group_ids[0].tolist() == [1] * 8 + [2] * 8 + [0]
    assert out.branch_ids[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 2, 2, 0]
    assert out.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2, 3, 2, 3, 4, 5, 0]
    assert out.target[0].tolist() == [20, 22, 30, 31, 41, 50, 51, 0]
    assert out.source[0].tolist() == [2, 4, 2, 6, 10, 9, 12, 0]
    assert out.target_slot[0].tolist() == [0, 0, 1, 1, 2, 3, 3, 0]
    assert out.target_mask[0].tolist() == [True] * 7 + [False]
    assert out.reference_logps[0].tolist() == [-1, -2, -3, -4, -5, -6, -7, 0]
    assert out.slot_end[0].tolist() == [5, 7, 11, 15]
    assert out.slot_mask[0].tolist() == [True] * 4
    assert out.pair_slots[0].tolist() == [[1, 0], [2, 3]]
    assert out.pair_mask[0].tolist() == [True, True]
    assert out.pair_margin[0].tolist() == [0.5, 2.0]


@given(lengths=LENGTHS, capacity=st.integers(20, 64))
def test_rows_hold_every_item_once_and_never_overflow(lengths, capacity):
    rows = pack_rows(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(row == sorted(row) for row in rows)


@given(lengths=LENGTHS)
def test_no_two_rows_could_have_been_one(lengths):
    """Any-fit: a row is opened only when nothing else had room, so two half-empty rows never stand side by side."""
    loads = sorted(sum(lengths[i] for i in row) for row in pack_rows(lengths, 30))
    assert len(loads) < 2 or loads[0] + loads[1] > 30


def plain_best_fit(lengths, capacity):
    """Best fit by looking at every row for every item."""
    rows, free = [], []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [r for r, room in enumerate(free) if room >= lengths[item]]
        row = min(fits, key=lambda r: free[r], default=len(rows))
        if row == len(rows):
            rows.append([])
            free.append(capacity)
        rows[row].append(item)
        free[row] -= lengths[item]
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


@given(lengths=st.lists(st.integers(0, 64), max_size=300), capacity=st.integers(64, 100))
def test_rows_are_those_of_a_plain_best_fit_decreasing(lengths, capacity):
    assert pack_rows(lengths, capacity) == plain_best_fit(lengths, capacity)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_many_items_are_those_of_a_plain_best_fit_decreasing(seed):
    lengths = np.random.default_rng(seed).lognormal(5, 0.8, 1500).clip(1, 1000).astype(int).tolist()
    assert pack_rows(lengths, 1024) == plain_best_fit(lengths, 1024)


class Compared(int):
    """A number that counts how often it is compared."""

    times = 0

    def __lt__(self, other):
        Compared.times += 1
        return int(self) < int(other)

    def __le__(self, other):
        Compared.times += 1
        return int(self) <= int(other)

    def __gt__(self, other):
        Compared.times += 1
        return int(self) > int(other)

    def __ge__(self, other):
        Compared.times += 1
        return int(self) >= int(other)


def test_an_item_is_compared_with_a_few_rows_and_not_with_all():
    lengths = [Compared(x) for x in np.random.default_rng(0).integers(300, 1000, 3000)]
    before = Compared.times
    rows = pack_rows(lengths, 1024)
    assert len(rows) > 1500
    assert Compared.times - before < 40 * len(lengths)  # all rows: a million and more


def test_an_item_goes_to_the_fullest_row_that_takes_it():
    assert pack_rows([6, 7, 3], 10) == [[0], [1, 2]]
    assert pack_rows([5, 5, 5], 10) == [[0, 1], [2]]


def test_a_group_longer_than_a_row_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"has 11 tokens.*holds 10.*row_length"):
        pack_rows([3, 11], 10)


@given(case=CASES)
def test_unpacking_gives_back_what_was_packed(case, make_groups, make_reference):
    count, seed = case
    groups = make_groups(count, seed, k=(1, 4), pairs="some")
    reference = make_reference(groups, seed)
    batch, rows, _ = packed(groups, reference)
    ids, logps = unpack_targets(batch.target, groups, rows), unpack_targets(batch.reference_logps, groups, rows)
    ends = unpack_slots(batch.slot_end, groups, rows)
    row_of = {index: row for row, members in enumerate(rows) for index in members}
    assert sorted(ids) == list(range(count))
    for i, one in enumerate(groups):
        for j, response in enumerate(one.responses):
            np.testing.assert_array_equal(ids[i][j], response.ids[response.loss_mask])
            np.testing.assert_array_equal(logps[i][j], reference[i][j])
        assert [batch.tokens[row_of[i], end] for end in ends[i]] == [r.ids[-1] for r in one.responses]


@given(case=CASES)
def test_following_the_branch_back_from_each_target_reads_the_whole_sequence(case, make_groups):
    """`source` is the place just before the target; what is visible up to it is the prompt and the response so far."""
    count, seed = case
    groups = make_groups(count, seed, k=(1, 4))
    batch, rows, _ = packed(groups)
    for row, members in enumerate(rows):
        at = slot = 0
        for number, index in enumerate(members):
            for branch, response in enumerate(groups[index].responses):
                sequence = np.concatenate([groups[index].prompt_ids, response.ids])
                for place in np.flatnonzero(response.loss_mask) + len(groups[index].prompt_ids):
                    source = batch.source[row, at]
                    seen = (batch.group_ids[row] == number + 1) & np.isin(batch.branch_ids[row], (0, branch + 1))
                    seen &= batch.positions[row] < place
                    np.testing.assert_array_equal(batch.tokens[row, seen], sequence[:place])
                    assert batch.positions[row, source] == place - 1
                    assert seen[source]
                    assert batch.target_slot[row, at] == slot
                    at += 1
                slot += 1
        assert batch.target_mask[row].sum() == at
        assert batch.slot_mask[row].sum() == slot


@given(case=CASES)
def test_pairs_point_at_their_own_responses_and_keep_their_margins(case, make_groups):
    count, seed = case
    groups = make_groups(count, seed, k=(1, 4), pairs="some")
    batch, rows, _ = packed(groups)
    for row, members in enumerate(rows):
        expected = [(groups[i].responses[c].ids[-1], groups[i].responses[r].ids[-1], margin)
                    for i in members for (c, r), margin in zip(groups[i].pairs, groups[i].margins, strict=True)]
        real = batch.pair_mask[row]
        ends = batch.tokens[row, batch.slot_end[row, batch.pair_slots[row, real]]]
        np.testing.assert_array_equal(ends, np.array([e[:2] for e in expected]).reshape(-1, 2))
        np.testing.assert_allclose(batch.pair_margin[row, real], [e[2] for e in expected], rtol=1e-6)


def test_named_numbers_reach_their_slots_in_the_order_asked_for():
    responses = tuple(Response(np.array([5], np.int32), np.ones(1, bool), scores=scores)
                      for scores in ({"label": 0.0}, {"label": 1.0, "data/short": 2.5, "proxy": 9.0}, {}))
    groups = [PromptGroup("p", np.array([1], np.int32), responses)]
    nan = np.nan
    for names, expected in ((("data/short", "label"), [[nan, 0.0], [2.5, 1.0], [nan, nan], [nan, nan]]),
                            ((), np.zeros((4, 0)))):
        batch = pack(groups, [[0]], row_shape(groups, [[0]], 8, names), 1)
        assert batch.slot_values.dtype == np.float32
        np.testing.assert_array_equal(batch.slot_values[0], expected)


def test_row_capacities_are_the_smallest_round_numbers_that_hold_the_rows(make_groups):
    groups = make_groups(5, k=(3, 3), prompt=(2, 2), response=(4, 4), holes=False)
    assert row_shape(groups, [[0, 1], [2, 3, 4]], 128) == RowShape(128, 64, 16, 8)  # 36 targets, 9 slots, 6 pairs
    assert row_shape(groups, [[0]], 14) == RowShape(14, 14, 4, 2)
    assert row_shape(make_groups(1, k=(1, 1), pairs="none"), [[0]], 128) == RowShape(128, 64, 1, 1)
    assert row_shape([], [], 8) == RowShape(8, 8, 1, 1)


def test_default_row_length_is_the_smallest_multiple_that_holds_the_longest_group(make_groups):
    def longest(tokens):
        return make_groups(1, k=(1, 1), prompt=(1, 1), response=(tokens - 1, tokens - 1))

    assert [default_row_length(longest(n)) for n in (5, 128, 129, 256, 257)] == [128, 128, 256, 256, 384]
    assert [row_length_for(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_rows_beyond_the_data_are_padding(make_groups):
    batch, rows, shape = packed(make_groups(2), spare=3)
    padding = jax.tree.map(lambda x: x[len(rows):], batch)
    jax.tree.map(np.testing.assert_array_equal, padding, empty_rows(3, shape))
    assert not padding.target_mask.any()
    assert not padding.slot_mask.any()
    assert not padding.pair_mask.any()
    assert not padding.group_ids.any()


@pytest.mark.parametrize(("field", "change", "words"), [
    ("pair_margin", lambda x: x[..., None], r"pair_margin is float32 of shape \[2, 3, 1\]; it is float32 of \[B, P\], "
                                            "here with B = 2, P = 3"),
    ("pair_slots", lambda x: x[..., 0], r"pair_slots is int32 of shape \[2, 3\].*\[B, P, 2\]"),
    ("target_mask", lambda x: x.astype(np.float32), "target_mask is float32.*it is bool"),
    ("tokens", lambda x: x[0], r"tokens is int32 of shape \[8\].*\[B, T\], here with B = 8"),
    ("reference_logps", lambda x: x[:1], r"reference_logps is float32 of shape \[1, 4\].*B = 2, M = 4"),
    ("slot_end", lambda x: x.astype(np.float64), "slot_end is float64.*int32")])
def test_a_batch_whose_fields_do_not_fit_together_is_refused_by_the_fields_name(field, change, words):
    batch = empty_rows(2, RowShape(8, 4, 5, 3))
    assert batch.checked() is batch
    with pytest.raises(ValueError, match=words):
        batch.replace(**{field: change(getattr(batch, field))}).checked()
