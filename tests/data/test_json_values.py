import json

import pytest

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.json_values import MAX_DEPTH, check_depth, without_padding, writable


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_may_lie_so_deep_and_no_deeper():
    check_depth({"a": nested(MAX_DEPTH - 2), "b": "text" * 100})
    for row in ({"a": nested(MAX_DEPTH)}, {"b": 1, "a": {"c": nested(50_000)}}):
        with pytest.raises(BadRow, match="nested_too_deep"):
            check_depth(row)
    assert json.dumps(writable({"a": nested(50_000)})).count("[") == MAX_DEPTH


def test_padding_is_null_inside_tools_alone():
    row = {"x": None, "responses": [{"score": None}], "tools": [{"p": {"a": None, "b": [None]}, "q": None}]}
    assert without_padding(row) == {"x": None, "responses": [{"score": None}], "tools": [{"p": {"b": [None]}}]}
