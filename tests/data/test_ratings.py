import numpy as np
import pytest

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.ratings import ARMORM, UNIT, VERBOSITY, Scale, parse_objective, rated_by, rating_table


def test_there_are_nineteen_objectives_and_verbosity_is_the_fifth():
    assert len(ARMORM) == len({rated.name for rated in ARMORM}) == 19
    assert ARMORM[4].name == VERBOSITY


def test_a_rating_is_the_middle_of_its_step_and_comes_back():
    """Fact 7 of the specification: 5 r - 0.5 gives HelpSteer's numbers back."""
    scale = Scale(0, 4, False)
    np.testing.assert_allclose([scale.to_unit(x) for x in range(5)], [0.1, 0.3, 0.5, 0.7, 0.9])
    for rated in ARMORM:
        low, high = rated.scale.low, rated.scale.high
        assert 0 <= rated.scale.to_unit(low) < rated.scale.to_unit(high) <= 1
        assert rated.scale.from_unit(rated.scale.to_unit(high)) == pytest.approx(high)
    regressed = (np.array([2.78, 2.86, 3.48, 1.38, 1.30]) + 0.5) / 5
    np.testing.assert_allclose(scale.from_unit(regressed), [2.78, 2.86, 3.48, 1.38, 1.30])
    hundredths = np.array([68.99, 69.63, 76.23, 33.49, 35.85])  # DPA's model writes 100 r, and (s - 10) / 20 reads it
    np.testing.assert_allclose(scale.from_unit(hundredths / 100), (hundredths - 10) / 20)
    np.testing.assert_allclose(scale.from_unit(hundredths / 100), [2.95, 2.98, 3.31, 1.17, 1.29], atol=0.005)


def test_rows_of_the_data_sets():
    row = {"prompt": "p", "response": "r", "helpfulness": 3, "correctness": 0, "verbosity": None}
    assert rated_by("helpsteer", row) == pytest.approx({"helpsteer-helpfulness": 0.7, "helpsteer-correctness": 0.1})
    assert rated_by("beavertails", {"is_safe": True}) == {"beavertails-is_safe": 1.0}
    assert rated_by("ultrafeedback", {"overall_score": 7.5}) == pytest.approx({"ultrafeedback-overall_score": 0.7})
    with pytest.raises(BadRow, match="overall_score is rated 11, and its scale is 1 to 10"):
        rated_by("ultrafeedback", {"overall_score": 11})
    with pytest.raises(BadRow, match="none of the ratings of code"):
        rated_by("code", {"helpfulness": 3})


def test_an_objective_is_a_name_or_a_name_with_its_scale():
    assert parse_objective("quality") == ("quality", UNIT)
    assert parse_objective("data/quality").name == "quality"
    assert parse_objective("data").name == "data"
    assert parse_objective("quality:1:5") == ("quality", Scale(1, 5, False))
    for wrong in ("", ":1:5", "quality:1", "quality:a:b", "quality:1:2:3", "quality:5:1", "quality:1.5:2"):
        with pytest.raises(ValueError, match="objective"):
            parse_objective(wrong)


def test_a_table_has_holes_and_no_rating_outside_its_scale():
    objectives = [parse_objective("data/safe"), parse_objective("data/quality:1:5")]
    table = rating_table([{"data/safe": 1.0}, {"data/quality": 4, "proxy": 3.0}, {}], objectives)
    np.testing.assert_allclose(table, [[1.0, np.nan], [np.nan, 0.7], [np.nan, np.nan]])
    with pytest.raises(BadRow, match="data/safe is rated 4, and its scale is 0 to 1") as caught:
        rating_table([{"data/safe": 4}], objectives)
    assert caught.value.reason == "rating_outside_scale"
    with pytest.raises(BadRow, match="data/quality is rated 0"):
        rating_table([{"data/quality": 0}], objectives)
