import pytest

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.turns import as_dialogue, as_messages, as_text, check_alternation, parse_hh, split_pair


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def reason(function, *args, **kwargs):
    with pytest.raises(BadRow) as caught:
        function(*args, **kwargs)
    return caught.value.reason


def test_messages_in_three_notations_are_one():
    expected = [user("hi"), bot("yo")]
    assert as_messages(expected, "c") == expected
    assert as_messages([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "c") == expected
    assert as_messages({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "c") == expected[:1]


@pytest.mark.parametrize(("cell", "key"), [
    (7, "not_messages"), ([], "not_messages"), (["hi"], "not_messages"),
    ([{"role": "wizard", "content": "hi"}], "unknown_role"),
    ([{"role": "user", "content": None}], "not_text_content"),
    ([{"role": "user", "content": "\ud83d"}], "lone_surrogate"),
    ([{"role": "user", "content": [{"type": "text"}]}], "not_text_content"),
    ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "not_text_content"),
    ([{"role": "user", "content": [{"type": "image", "path": "a.png"}]}], "not_text_content"),
    ([{"role": ["user"], "content": "a"}], "unknown_role"),
])
def test_cells_that_are_no_messages(cell, key):
    assert reason(as_messages, cell, "prompt") == key


def test_error_names_column_and_remedy():
    with pytest.raises(BadRow, match=r"'chosen'.*\"role\".*\[not_messages\]"):
        as_text(3, "chosen")


def test_alternation():
    check_alternation([{"role": "system", "content": "s"}, user("a"), bot("b")], "c")
    check_alternation([bot("b"), user("a"), bot("b")], "c", first="assistant")
    check_alternation([user("a"), bot("b"), *[{"role": "tool", "content": "3"}] * 2, bot("c"), user("d")], "c")
    assert reason(check_alternation, [{"role": "tool", "content": "3"}, bot("c")], "c") == "not_alternating"
    assert reason(check_alternation, [user("a"), {"role": "tool", "content": "3"}, bot("c")], "c") == "not_alternating"
    assert reason(check_alternation, [user("a"), user("b")], "c") == "not_alternating"
    assert reason(check_alternation, [bot("a")], "c") == "not_alternating"


def test_hh_dialogue():
    text = "\n\nHuman: Who?\n\nAssistant: Me: a\n\nlist\n\nHuman: ok\n\nAssistant: bye "
    assert parse_hh(text, "chosen") == [user("Who?"), bot("Me: a\n\nlist"), user("ok"), bot("bye")]
    assert reason(parse_hh, "A: It is blue.", "chosen") == "implicit_prompt_needs_messages"


def test_dialogue_must_be_whole():
    assert reason(as_dialogue, [user("a")], "c") == "last_turn_not_assistant"
    assert reason(as_dialogue, [user(""), bot("b")], "c") == "empty_prompt"


def test_split_pair_keeps_the_rlhflow_filter():
    shared = [user("a"), bot("b"), user("c")]
    assert split_pair([*shared, bot("x")], [*shared, bot("y")]) == (shared, [bot("x")], [bot("y")])
    assert reason(split_pair, [user("a"), bot("b")], [*shared, bot("x")]) == "unequal_turns"
    other = [user("a"), bot("other"), user("c")]
    assert reason(split_pair, [*shared, bot("x")], [*other, bot("y")]) == "differs_before_last_turn"
