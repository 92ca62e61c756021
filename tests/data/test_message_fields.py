import pytest

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.turns import as_messages, is_empty

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def only(**fields):
    (message,) = as_messages([{"role": "assistant", "content": "x", **fields}], "messages")
    return {key: value for key, value in message.items() if key not in ("role", "content")}


def test_fields_that_say_nothing_are_no_fields():
    assert only(tool_calls=None, refusal=None, annotations=[], audio={}, reasoning_content="") == {}


def test_fields_for_the_template_are_kept():
    assert only(reasoning_content="because", tool_calls=[CALL]) == {"reasoning_content": "because",
                                                                    "tool_calls": [CALL]}


def test_a_turn_that_calls_a_tool_needs_no_text():
    messages = as_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}], "messages")
    assert messages == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert not is_empty(messages)


@pytest.mark.parametrize("said", ["", "  "])
def test_a_tool_may_answer_nothing_and_nobody_else(said):
    turns = [{"role": "user", "content": "Stop."}, {"role": "assistant", "tool_calls": [CALL]},
             {"role": "tool", "content": said}]
    assert not is_empty(as_messages(turns, "messages"))
    assert is_empty(as_messages([*turns, {"role": "user", "content": " "}], "messages"))


@pytest.mark.parametrize(("written", "read"), [('{"a": 1}', {"a": 1}), ("", {}), ({"a": "1"}, {"a": "1"})])
def test_arguments_written_as_json_are_read_as_the_object(written, read):
    """As OpenAI's rows have them; a template would write the string in quotes."""
    call = {"name": "add", "arguments": written}
    assert only(tool_calls=[{"id": "x", "function": call}, call]) == {"tool_calls": [
        {"id": "x", "function": {"name": "add", "arguments": read}}, {"name": "add", "arguments": read}]}


@pytest.mark.parametrize("fields", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train_on_turn": False},
                                    {"loss": 0}, {"mask": True}, {"masked": 1}, {"mask": True, "weight": 0}])
def test_a_turn_can_say_that_it_is_not_trained_on(fields):
    assert only(**fields) == {"train": False}


@pytest.mark.parametrize("fields", [{"weight": 1}, {"train": True}, {"mask": False}, {"weight": None}])
def test_a_turn_that_is_trained_on_says_nothing(fields):
    assert only(**fields) == {}


def test_turns_of_the_user_are_never_trained_on():
    turn = {"role": "user", "content": "x"}
    assert as_messages([{**turn, "weight": 0}], "messages") == [turn]
    with pytest.raises(BadRow, match=r"user turn with weight = 1.*\[trained_turn_not_assistant\]"):
        as_messages([{**turn, "weight": 1}], "messages")


@pytest.mark.parametrize(("fields", "key"), [
    ({"weight": 0.5}, "bad_turn_weight"), ({"weight": "0"}, "bad_turn_weight"), ({"train": []}, "bad_turn_weight"),
    ({"weight": 1, "masked": True}, "bad_turn_weight"), ({"tool_calls": "add(1)"}, "bad_tool_calls"),
    ({"tool_calls": ["add"]}, "bad_tool_calls"), ({"tool_calls": [{"arguments": "{a"}]}, "bad_tool_calls"),
    ({"tool_calls": [{"function": {"arguments": "[1]"}}]}, "bad_tool_calls"),
    ({"reasoning_content": "\ud83d"}, "lone_surrogate"),
    ({"tool_calls": [{"function": {"name": "a", "arguments": {"x": float("nan")}}}]}, "non_finite_number"),
    ({"name": b"a"}, "not_json"),
])
def test_fields_that_cannot_be_meant(fields, key):
    with pytest.raises(BadRow) as caught:
        only(**fields)
    assert caught.value.reason == key
    assert "'messages'" in caught.value.message
