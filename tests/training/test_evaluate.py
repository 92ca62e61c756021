"""Running over a data set: the host is one batch ahead of what it waits for."""

from rlhf_jax.training.evaluate import one_late


def test_each_item_is_given_when_the_next_one_is_under_way_and_none_is_lost():
    begun = []

    def begin(number):
        begun.append(number)
        return number

    seen = [(item, list(begun)) for item in one_late(begin(i) for i in range(3))]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
    assert list(one_late([])) == []
