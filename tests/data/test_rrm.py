"""RRM's augmentation: 14 rows for a pair, 6 of them neutral, and no answer to one's own prompt as a foreign one."""

from collections import Counter

import pytest

from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rrm import NEUTRAL, augmented


def pairs(count, prompt="prompt {}"):
    return [Example(prompt.format(i), (f"good {i}", f"bad {i}"), pairs=((0, 1),), margins=(1.0,), prompt_id=str(i))
            for i in range(count)]


def numbers(rows):
    """Of each row's answers whose they are."""
    return [tuple(int(answer.split()[1]) for answer in row.responses) for row in rows]


def test_each_pair_makes_fourteen_rows_in_its_own_prompt():
    funnel = Funnel(read=20)
    made = augmented(pairs(20), 0, funnel)
    assert (len(made), funnel.read, funnel.notes["augmented"]) == (280, 280, 280)
    for i in range(20):
        rows = made[14 * i : 14 * (i + 1)]
        won, neutral = [[row for row in rows if row.extra[NEUTRAL] is same] for same in (False, True)]
        assert (len(won), len(neutral)) == (8, 6)
        assert {row.prompt for row in rows} == {f"prompt {i}"}
        foreign = {answer for row in neutral for answer in row.responses}
        assert len(foreign) == 4
        assert {tuple(row.responses) for row in won} == {
            (mine, theirs) for mine in (f"good {i}", f"bad {i}") for theirs in foreign}
        assert len({frozenset(row.responses) for row in neutral}) == 6
        others = {int(answer.split()[1]) for answer in foreign}
        assert len(others) == 2
        assert i not in others  # j != k != i
        assert {answer.split()[0] for answer in foreign} == {"good", "bad"}
    assert len({row.prompt_id for row in made}) == len(made)


def test_the_same_seed_makes_the_same_rows_and_every_pair_is_taken_as_often():
    one, again, other = (list(augmented(pairs(30), seed, Funnel())) for seed in (1, 1, 2))
    assert one == again != other
    taken = Counter(j for row in one if row.extra[NEUTRAL] for j in set(numbers([row])[0]))
    assert len(taken) == 30
    assert max(taken.values()) <= 3 * min(taken.values())


def test_answers_to_the_same_prompt_are_not_foreign():
    rows = [Example("the  SAME" if i < 4 else f"prompt {i}", (f"good {i}", f"bad {i}"), pairs=((0, 1),),
                    prompt_id=str(i)) for i in range(8)]
    for place, some in ((i, augmented(rows, 0, Funnel())[14 * i : 14 * i + 14]) for i in range(4)):
        foreign = {j for row in some for j in numbers([row])[0]} - {place}
        assert not foreign & {0, 1, 2, 3}


def test_the_pairs_stay_where_that_is_asked():
    made = augmented(pairs(3), 0, Funnel(), keep=True)
    assert len(made) == 45
    assert [row.responses for row in made[::15]] == [(f"good {i}", f"bad {i}") for i in range(3)]


@pytest.mark.parametrize(("count", "prompt"), [(2, "prompt {}"), (6, "one for all"), (0, "prompt {}")])
def test_too_few_prompts_are_an_error(count, prompt):
    with pytest.raises(ValueError, match=f"for each of the {count} pairs, and there are too few"):
        augmented(pairs(count, prompt), 0, Funnel())
