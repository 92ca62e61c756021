import contextlib
import datetime
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.rows import BadRow, ParseOptions, parse_row


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def reason(row, kind, **options):
    with pytest.raises(BadRow) as caught:
        parse_row(row, kind, ParseOptions(**options))
    return caught.value.reason


@pytest.mark.parametrize("drop_system", [False, True])
@pytest.mark.parametrize("content", ["", " \n", None, [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_says_nothing_is_none(role, content, drop_system):
    options, blank = ParseOptions(drop_system=drop_system), {"role": role, "content": content}
    example = parse_row({"messages": [blank, user("a"), bot("b")], "id": 1}, "sft", options)
    assert example == parse_row({"messages": [user("a"), bot("b")], "id": 1}, "sft", options)
    for row, kind in (({"prompt": [blank, user("a")], "chosen": "b", "rejected": "c"}, "preference"),
                      ({"prompt": [blank, user("a")]}, "prompt"), ({"prompt": "a", "system": " "}, "prompt")):
        found = parse_row({**row, "id": 1}, kind, options)
        assert (found.prompt, found.notes) == ("a" if "system" in row else [user("a")], {})
    assert parse_row({"text": "t", "system": " "}, "sft", options).notes == {}


def test_a_system_message_with_something_else_in_it_or_nothing_behind_it_is_refused():
    assert reason({"messages": [{"role": "system", "content": ""}]}, "sft") == "last_turn_not_assistant"
    said = [{"role": "system", "content": "", "documents": [{"text": "d"}]}, user("a"), bot("b")]
    assert reason({"messages": said}, "sft") == "empty_prompt"


EMPTY_ROUND = [user(" "), bot("")]


@pytest.mark.parametrize(("row", "kind"), [
    ({"messages": [user("a"), bot("b"), *EMPTY_ROUND, user("c"), bot("d")]}, "sft"),
    ({"messages": [*EMPTY_ROUND, *EMPTY_ROUND, user("a"), bot("b"), user("c"), bot("d"), *EMPTY_ROUND]}, "sft"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": ""},
                        {"from": "gpt", "value": None}, user("c"), bot("d")]}, "sft"),
    ({"prompt": "a", "completion": [bot("b"), *EMPTY_ROUND, user("c"), bot("d")]}, "sft"),
    ({"prompt": [user("a"), bot("b"), *EMPTY_ROUND, user("c")], "chosen": "d", "rejected": "e"}, "preference"),
    ({"chosen": [user("a"), bot("b"), *EMPTY_ROUND, user("c"), bot("d")],
      "rejected": [*EMPTY_ROUND, user("a"), bot("b"), user("c"), bot("e")]}, "preference"),
    ({"prompt": [*EMPTY_ROUND, user("a"), bot("b"), user("c")]}, "prompt"),
])
def test_rounds_in_which_nobody_says_anything_are_left_out_with_a_note(row, kind):
    example = parse_row(row, kind)
    assert example.notes == {"dropped_empty_rounds": 1}
    prompt = [user(example.prompt)] if isinstance(example.prompt, str) else example.prompt
    said = [*prompt, *(example.responses[0] if example.responses and kind == "sft" else [])]
    assert [m["content"] for m in said] == (["a", "b", "c", "d"] if kind == "sft" else ["a", "b", "c"])


@pytest.mark.parametrize(("turns", "key"), [
    ((user("a"), bot(""), user("c"), bot("d")), "empty_prompt"),
    ((user("a"), bot("b"), user(""), bot("d")), "empty_prompt"),
    ((user("a"), bot("b"), user("c"), bot("")), "empty_response"),
    (EMPTY_ROUND, "empty_prompt"),
])
def test_rounds_of_which_somebody_says_something_stay_and_are_refused(turns, key):
    assert reason({"messages": turns}, "sft") == key


def test_rounds_that_call_tools_stay():
    calls = {**bot(""), "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = {"messages": [user("a"), calls, {"role": "tool", "content": "3"}, bot("b")]}
    assert (len(parse_row(row, "sft").responses[0]), parse_row(row, "sft").notes) == (3, {})


@pytest.mark.parametrize(("row", "expected"), [
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "a"),
    ({"prompt": "a", "chosen": "", "rejected": "b", "margin": "nan"}, "a"),
    ({"prompt": "a", "chosen": [bot("b")], "rejected": [bot("b")]}, [user("a")]),
    ({"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("b")]}, [user("a")]),
    ({"chosen": [user("a"), bot("b")], "rejected": [user("a"), bot(" ")], "score_chosen": "?", "score_rejected": 1},
     [user("a")]),
    ({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant:"}, [user("a")]),
])
def test_a_prompt_is_good_whatever_its_answers(row, expected):
    assert parse_row(row, "prompt").prompt == expected
    assert reason(row, "preference") in ("identical_chosen_rejected", "empty_response", "non_finite_score",
                                         "not_a_number")


def test_pairs_that_are_judged_may_be_the_same_or_empty_in_every_layout():
    for row in ({"prompt": "a", "chosen": "b", "rejected": "b"},
                {"chosen": [user("a"), bot("")], "rejected": [user("a"), bot("")]}):
        assert parse_row(row, "preference", ParseOptions(to_judge=True)).pairs == ((0, 1),)


HH = "\n\nHuman: sky?\n\nAssistant: It is "
PAIRS = {
    "explicit strings": ({"prompt": "sky?", "chosen": "blue", "rejected": "black"}, "sky?", ("blue", "black")),
    "explicit messages": ({"prompt": [user("sky?")], "chosen": [bot("blue")], "rejected": [bot("black")]},
                          [user("sky?")], ([bot("blue")], [bot("black")])),
    "string prompt, answers as messages": ({"prompt": "sky?", "chosen": [bot("blue")], "rejected": [bot("black")]},
                                           "sky?", ([bot("blue")], [bot("black")])),
    "message prompt, answers as strings": ({"prompt": [user("sky?")], "chosen": "blue", "rejected": "black"},
                                           [user("sky?")], ("blue", "black")),
    "ultrafeedback": ({"prompt": "sky? ", "chosen": [user("sky?"), bot("blue")],
                       "rejected": [user("sky?"), bot("black")]}, [user("sky?")], ([bot("blue")], [bot("black")])),
    "implicit messages": ({"chosen": [user("sky?"), bot("blue")], "rejected": [user("sky?"), bot("black")]},
                          [user("sky?")], ([bot("blue")], [bot("black")])),
    "implicit hh strings": ({"chosen": HH + "blue.", "rejected": HH + "black."}, [user("sky?")],
                            ([bot("It is blue.")], [bot("It is black.")])),
    "sharegpt": ({"conversations": [{"from": "human", "value": "sky?"}], "chosen": {"from": "gpt", "value": "blue"},
                  "rejected": {"from": "gpt", "value": "black"}}, [user("sky?")], ([bot("blue")], [bot("black")])),
    "context_messages": ({"context_messages": [user("sky?")], "chosen": "blue", "rejected": "black"}, [user("sky?")],
                         ("blue", "black")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preference_layouts(name):
    row, prompt, responses = PAIRS[name]
    example = parse_row(row, "preference")
    assert (example.prompt, example.responses, example.pairs) == (prompt, responses, ((0, 1),))
    in_chat = isinstance(prompt, str) and not isinstance(responses[0], str)
    assert parse_row(row, "prompt").prompt == ([user(prompt)] if in_chat else prompt)


@pytest.mark.parametrize(("row", "prompt", "response"), [
    ({"prompt": "a", "completion": " b"}, "a", " b"),
    ({"prompt": [user("a")], "completion": [bot("b")]}, [user("a")], [bot("b")]),
    ({"prompt": [user("a")], "completion": "b"}, [user("a")], "b"),
    ({"text": "whole"}, "", "whole"),
    ({"messages": [user("a"), bot("b"), user("c"), bot("d")]}, [user("a")], [bot("b"), user("c"), bot("d")]),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                        {"from": "gpt", "value": "b"}]}, [{"role": "system", "content": "s"}, user("a")], [bot("b")]),
])
def test_sft_layouts(row, prompt, response):
    example = parse_row(row, "sft")
    assert (example.prompt, example.responses) == (prompt, (response,))


@pytest.mark.parametrize(("row", "prompt"), [
    ({"prompt": "a"}, "a"), ({"prompt": [user("a")]}, [user("a")]), ({"context_messages": [user("a")]}, [user("a")]),
    ({"messages": [user("a")]}, [user("a")]), ({"conversations": [{"from": "human", "value": "a"}]}, [user("a")]),
])
def test_prompt_layouts(row, prompt):
    example = parse_row({**row, "answer": 7}, "prompt")
    assert (example.prompt, example.responses, example.extra) == (prompt, (), {"answer": 7})


def test_graded_layouts():
    cells = [{"text": "a", "score": 1}, {"text": "b", "score": None}]
    objects = parse_row({"prompt": "p", "responses": cells}, "graded")
    assert (objects.responses, objects.scores) == (("a", "b"), ({"data": 1.0}, {}))
    loop = parse_row({"prompt": [user("p")], "responses": ["a", "b"], "rewards": [0.5, -1]}, "graded")
    assert (loop.responses, loop.scores, loop.pairs) == (("a", "b"), ({"data": 0.5}, {"data": -1.0}), ())
    rated = [{"text": "a", "scores": {"tone": 2, "help": None}}, {"text": "b", "score": 1, "scores": {"help": 0.5}}]
    several = parse_row({"prompt": "p", "responses": rated}, "graded")
    assert several.scores == ({"data/tone": 2.0}, {"data": 1.0, "data/help": 0.5})
    for scores in ([1], {"": 1}, {"tone": "high"}):
        wrong = {"prompt": "p", "responses": [{"text": "a", "scores": scores}]}
        assert reason(wrong, "graded") == "not_a_number"


def test_an_empty_graded_response_is_left_out_alone():
    cells = [{"text": t, "score": s, "model": t} for t, s in (("a", 1), (" ", 0), ("b", 3))]
    example = parse_row({"prompt": "p", "responses": cells}, "graded")
    assert example.scores == ({"data": 1.0}, {"data": 3.0})
    assert (example.extra, example.notes) == ({"response_models": ["a", "b"]}, {"left_out_responses": 1})
    assert reason({"prompt": "p", "responses": cells[1:2]}, "graded") == "empty_response"


def test_graded_rows_as_preferences():
    row = {"prompt": "p", "responses": ["a", "b", "c"], "rewards": [1.0, 3.0, 0.0]}
    example = parse_row(row, "preference")
    assert example.pairs == ((1, 0), (1, 2), (0, 2))
    assert example.margins == (2.0, 3.0, 1.0)
    for options in (ParseOptions(pair_rule="best_worst"), ParseOptions(min_gap=2.5)):
        one = parse_row(row, "preference", options)
        assert (one.responses, one.pairs) == (("b", "c"), ((0, 1),))  # "a" is in no pair
        assert one.scores == ({"data": 3.0}, {"data": 0.0})
    drawn = [parse_row(row, "preference", ParseOptions(pair_rule="best_random", seed=s)) for s in range(20)]
    assert {tuple(one.responses[i] for i in one.pairs[0]) for one in drawn} == {("b", "a"), ("b", "c")}
    assert reason({**row, "rewards": [1, 1, 1]}, "preference") == "no_pair"
    named = {"prompt": "p", "responses": [{"text": t, "score": s, "model": t.upper()} for t, s in zip("abc", (1, 3, 0),
                                                                                                  strict=True)]}
    best_worst = parse_row(named, "preference", ParseOptions(pair_rule="best_worst"))
    assert best_worst.extra["response_models"] == ["B", "C"]


def test_several_grades_make_pairs_by_the_one_that_is_named():
    cells = [{"text": t, "scores": {"tone": s, "help": -s}} for t, s in zip("ab", (1, 2), strict=True)]
    for name, pair in (("data/tone", ("b", "a")), ("data/help", ("a", "b"))):
        example = parse_row({"prompt": "p", "responses": cells}, "preference", ParseOptions(pair_score=name))
        assert tuple(example.responses[i] for i in example.pairs[0]) == pair
    with pytest.raises(BadRow, match=r"'data'.*the row has data/help, data/tone: set pair_score"):
        parse_row({"prompt": "p", "responses": cells}, "preference")


def test_unpaired():
    example = parse_row({"prompt": "p", "completion": "c", "label": 1}, "unpaired")
    assert (example.responses, example.scores) == (("c",), ({"label": 1.0},))
    assert reason({"prompt": "p", "completion": "c", "label": "yes"}, "unpaired") == "bad_label"


@pytest.mark.parametrize(("label", "value"), [("True", 1.0), ("1", 1.0), ("false", 0.0), (" 0 ", 0.0), ("FALSE", 0.0)])
def test_labels_of_text_files_are_read(label, value):
    example = parse_row({"prompt": "p", "completion": "c", "label": label}, "unpaired")
    assert example.scores == ({"label": value},)


def test_margins():
    row = PAIRS["explicit strings"][0]
    assert parse_row(row, "preference").margins == ()
    assert parse_row({**row, "margin": 2}, "preference").margins == (2.0,)
    assert parse_row({**row, "score_chosen": 8.5, "score_rejected": 8}, "preference").margins == (0.5,)
    assert reason({**row, "margin": float("nan")}, "preference") == "non_finite_score"
    assert reason({**row, "margin": "big"}, "preference") == "not_a_number"


@pytest.mark.parametrize(("row", "kind", "key"), [
    ({"chosen": "a"}, "preference", "missing_column"),
    ({"prompt": "p"}, "sft", "missing_column"),
    ({"question": "p"}, "prompt", "missing_column"),
    ({"prompt": None}, "prompt", "missing_column"),
    ({"prompt": " ", "completion": "a"}, "sft", "empty_prompt"),
    ({"prompt": "p", "completion": "\n"}, "sft", "empty_response"),
    ({"text": ""}, "sft", "empty_response"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "preference", "identical_chosen_rejected"),
    ({"chosen": HH + "a", "rejected": HH + "a"}, "preference", "identical_chosen_rejected"),
    ({"chosen": "A: It is blue.", "rejected": "A: It is black."}, "preference", "implicit_prompt_needs_messages"),
    ({"prompt": "p", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, "preference",
     "prompt_mismatch"),
    ({"prompt": "p", "chosen": [user("p"), bot("a")], "rejected": [bot("b")]}, "preference", "mixed_chosen_rejected"),
    ({"messages": [bot("a"), user("b"), bot("c")]}, "sft", "not_alternating"),
    ({"messages": [user("a")]}, "sft", "last_turn_not_assistant"),
    ({"prompt": [user("a"), bot("b")]}, "prompt", "prompt_ends_with_assistant"),
    ({"prompt": "p", "responses": ["a"], "rewards": [float("inf")]}, "graded", "non_finite_score"),
    ({"prompt": "p", "responses": ["a"], "rewards": [1, 2]}, "graded", "unequal_lists"),
    ({"prompt": "p", "responses": []}, "graded", "no_responses"),
    ({"prompt": "p", "responses": ["a"]}, "graded", "missing_score"),
    ({"prompt": 5}, "prompt", "not_messages"),
])
def test_bad_rows(row, kind, key):
    assert reason(row, kind) == key


def test_unknown_kind():
    with pytest.raises(ValueError, match="known kinds are prompt"):
        parse_row({"prompt": "p"}, "dpo")


def test_empty_prompt_only_when_allowed():
    row = {"prompt": "", "chosen": "a", "rejected": "b"}
    assert reason(row, "preference") == "empty_prompt"
    assert parse_row(row, "preference", ParseOptions(allow_empty_prompt=True)).prompt == ""


@pytest.mark.parametrize(("row", "kind", "said"), [
    ({"prompt": [user("a"), bot("b")]}, "prompt", "'prompt' ends with an assistant turn; a prompt ends with the user"),
    ({"prompt": [user("a"), bot("b")], "steps": ["a"], "labels": ["+"]}, "steps", "ends with an assistant turn"),
    ({"messages": [user("a")]}, "sft", "'messages' ends with a user turn; a conversation"),
    ({"question": "q"}, "prompt", "Map its names, ours first: --columns.prompt NAME; or use a converter"),
    ({"prompt": "q", "best": "a"}, "preference", "Map its names, ours first: --columns.chosen NAME"),
])
def test_a_bad_row_says_what_it_holds_and_which_key_helps(row, kind, said):
    with pytest.raises(BadRow, match=re.escape(said)):
        parse_row(row, kind)


def test_prompt_ids():
    assert parse_row({"prompt": "p", "id": 0, "prompt_id": "x"}, "prompt").prompt_id == "x"
    assert parse_row({"prompt": "p", "index": 0}, "prompt").prompt_id == "0"
    plain, spaced, other = (parse_row({"prompt": p}, "prompt").prompt_id for p in ("a b", " a  b\n", "a c"))
    assert plain == spaced != other
    assert parse_row({"text": "a"}, "sft").prompt_id != parse_row({"text": "b"}, "sft").prompt_id


def test_prompts_that_differ_in_what_a_tool_was_asked_have_different_ids():
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("add", "sub")]
    asked = [[user("a"), {**bot("b"), "tool_calls": [call]}, {"role": "tool", "content": "3"}] for call in calls]
    first, second = (parse_row({"prompt": prompt}, "prompt") for prompt in asked)
    assert first.prompt_id != second.prompt_id
    assert first.prompt == asked[0]


def test_columns_that_json_cannot_hold_are_kept_as_it_can():
    day = datetime.datetime(2024, 5, 1, 12)
    row = {"x": float("nan"), "y": [float("inf"), 2.5], "when": day, "raw": b"\xff", "z": {"k": (1, day)}}
    example = parse_row({"prompt": "p", **row}, "prompt")
    assert example.extra == {"x": None, "y": [None, 2.5], "when": "2024-05-01T12:00:00", "raw": "\\xff",
                             "z": {"k": [1, "2024-05-01T12:00:00"]}}
    assert example.notes == {"non_finite_as_null": 2}


@pytest.mark.parametrize(("row", "kind", "key"), [
    ({"prompt": "p", "tools": "none"}, "prompt", "bad_tools"),
    ({"prompt": "p", "tools": 7}, "prompt", "bad_tools"),
    ({"prompt": "p", "tools": {"name": "x"}}, "prompt", "bad_tools"),
    ({"prompt": "p", "tools": ["x"]}, "prompt", "bad_tools"),
    ({"prompt": "p", "tools": "[" * 200_000}, "prompt", "bad_tools"),
    ({"prompt": "p", "tools": [{"name": "\ud83d"}]}, "prompt", "lone_surrogate"),
    ({"prompt": "p", "chat_template_kwargs": "thinking"}, "prompt", "bad_chat_template_kwargs"),
    ({"prompt": "p", "chat_template_kwargs": ["thinking"]}, "prompt", "bad_chat_template_kwargs"),
    ({"prompt": "p", "chat_template_kwargs": {"add_generation_prompt": False}}, "prompt", "bad_chat_template_kwargs"),
    ({"prompt": "p", "chat_template_kwargs": {"x": float("nan")}}, "prompt", "non_finite_number"),
    ({"prompt": "p", "id": "\ud83d"}, "prompt", "lone_surrogate"),
    ({"prompt": "p", "responses": ["a", "b"], "rewards": [1, 0], "index": "\ud83d"}, "preference", "lone_surrogate"),
    ({"prompt": "p", "system": 3}, "prompt", "not_text_content"),
    ({"prompt": "p", "system": "\ud83d"}, "prompt", "lone_surrogate"),
    ({"prompt": "p", "system": "a", "system_prompt": "b"}, "prompt", "two_system_messages"),
    ({"messages": [{"role": "system", "content": "a"}, user("b"), bot("c")], "system": "d"}, "sft",
     "two_system_messages"),
    ({"text": "whole", "system": "a"}, "sft", "system_beside_text"),
    ({"prompt": "p", "images": ["a.png"]}, "prompt", "media_not_rendered"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "image": {"path": "a.png"}}, "preference", "media_not_rendered"),
    ({"prompt": "p", "responses": ["a"], "rewards": [10**400]}, "graded", "not_a_number"),
])
def test_columns_beside_the_texts_that_cannot_be_meant(row, kind, key):
    assert reason(row, kind) == key


@pytest.mark.parametrize(("row", "kind"), [
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
    ({"chosen": HH + "blue.", "rejected": HH + "black."}, "preference"),
    ({"prompt": "p", "completion": "a"}, "sft"),
    ({"prompt": "p", "completion": "a", "label": True}, "unpaired"),
])
def test_a_system_column_is_the_first_message(row, kind):
    example = parse_row({**row, "system": "Be brief."}, kind)
    assert example.prompt[0] == {"role": "system", "content": "Be brief."}
    assert example.prompt[1]["role"] == "user"
    assert parse_row({**row, "system": "Be brief.", "prompt_id": "x"}, kind).responses == example.responses
    assert parse_row({**row, "system": "", "images": [], "tools": None}, kind) == parse_row(
        {**row, "tools": None, "images": []}, kind)


@pytest.mark.parametrize("row", [
    {"prompt": "a", "completion": "b", "system": "s"}, {"prompt": "a", "completion": "b", "system_prompt": "s"},
    {"messages": [{"role": "system", "content": "s"}, user("a"), bot("b")]},
    {"messages": [{"role": "developer", "content": "s"}, user("a"), bot("b")], "system": "another"},
])
def test_system_messages_are_left_out_and_counted_where_that_is_asked_for(row):
    example = parse_row(row, "sft", ParseOptions(drop_system=True))
    assert example.prompt in ("a", [user("a")])
    assert example.notes == {"dropped_system": 1}
    plain = parse_row({"prompt": "a", "completion": "b", "system": ""}, "sft", ParseOptions(drop_system=True))
    assert (plain.prompt, plain.notes) == ("a", {})


def test_a_system_column_that_repeats_the_system_message_is_one():
    messages = [{"role": "system", "content": "a"}, user("b"), bot("c")]
    assert parse_row({"messages": messages, "system": " a\n"}, "sft").prompt == messages[:2]


def test_result_does_not_depend_on_the_hash_seed():
    code = ("from rlhf_jax.data.rows import parse_row\n"
            "m = lambda r, t: {'role': r, 'content': t}\n"
            "print(parse_row({'prompt': 'q', 'chosen': [m('user', 'q'), m('assistant', 'a')],"
            " 'rejected': [m('user', 'q'), m('assistant', 'b')], 'z': 1, 'y': 2}, 'preference'))")
    printed = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                              capture_output=True, text=True).stdout for seed in ("0", "1")}
    assert len(printed) == 1


words = st.text("abc xyz", min_size=1, max_size=8).filter(str.strip)


@given(st.lists(words, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2), words, words)
def test_implicit_prompt_is_whole_messages(turns, chosen, rejected):
    prompt = [user(t) if i % 2 == 0 else bot(t) for i, t in enumerate(turns)]
    row = {"chosen": [*prompt, bot(chosen)], "rejected": [*prompt, bot(rejected)]}
    if chosen == rejected:
        assert reason(row, "preference") == "identical_chosen_rejected"
    else:
        example = parse_row(row, "preference")
        assert example.prompt == prompt
        assert example.responses == ([bot(chosen)], [bot(rejected)])


rows = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "messages", "responses", "rewards", "label",
                                        "completion", "text"]),
                       st.recursive(st.none() | st.integers(0, 1) | st.floats() | st.text("ab ", max_size=3),
                                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
                                        st.sampled_from(["role", "content", "text", "score"]), inner, max_size=2)))


@given(rows, st.sampled_from(["prompt", "sft", "preference", "graded", "unpaired"]))
def test_any_row_is_parsed_or_a_bad_row(row, kind):
    with contextlib.suppress(BadRow):
        assert parse_row(row, kind).prompt_id
