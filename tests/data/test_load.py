import json
import tracemalloc

import pytest

from rlhf_jax.data import jsonl
from rlhf_jax.data.funnel import Funnel, TooManyBadRows
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.data.load import load_examples, unique_prompt_ids
from rlhf_jax.data.rows import Example, ParseOptions

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
LINES = [GOOD, {"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a"}, GOOD,
         {"prompt": "r", "responses": ["a"], "rewards": [float("nan")]},
         {"prompt": "s", "responses": ["a", "b"], "rewards": [1, 1]}]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LINES) + '{"prompt": "cut')
    return str(path)


def test_rows_behind_max_samples_are_not_parsed(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(1000)))
    parsed, parse = [], jsonl._parse_line
    monkeypatch.setattr(jsonl, "_parse_line", lambda line: parsed.append(line) or parse(line))
    examples, funnel = load_examples(str(tmp_path / "rows.jsonl"), "prompt", max_samples=10)
    assert [example.prompt for example in examples] == [str(i) for i in range(10)]
    assert funnel.read == 10
    assert len(parsed) == 11  # one more, to know that there is one


@pytest.mark.longer
def test_what_reading_holds_does_not_grow_with_the_rows(tmp_path):
    held = []
    for count in (100, 2000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i} " + "x" * 10_000}) + "\n" for i in range(count)))
        tracemalloc.start()
        examples, _ = load_examples([str(path), str(path)], "prompt", drop_duplicate_prompts=True)
        assert sum(len(example.prompt) > 10_000 for example in examples) == len(examples) == count
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] - held[0] < 2_000_000  # of 20 MB more


def test_every_row_is_counted_and_bad_ones_are_kept_apart(source, tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    examples, funnel = load_examples(source, "preference", max_bad_rows=4, quarantine_path=quarantine)
    assert len(examples) == 2
    assert funnel.to_json() == {
        "read": 7, "valid": 3, "kept": 2, "dropped": {"no_pair": 1}, "notes": {"renamed_prompt_id": 1},
        "invalid": {"identical_chosen_rejected": 1, "missing_column": 1, "non_finite_score": 1, "truncated_json": 1}}
    rows = read_jsonl(quarantine)
    assert [(row["row_number"], row["reason"]) for row in rows] == [
        (2, "identical_chosen_rejected"), (3, "missing_column"), (5, "non_finite_score"), (7, "truncated_json")]
    assert rows[0]["row"] == LINES[1]
    assert rows[2]["row"]["rewards"] == ["nan"]
    assert rows[0]["source"] == source


@pytest.mark.parametrize("budget", [3, 0, 0.5, 0.0])
def test_budget(source, tmp_path, budget):
    quarantine = tmp_path / "quarantine.jsonl"
    with pytest.raises(TooManyBadRows, match=r"(?s)row 2: .*identical.*raise max_bad_rows.*quarantine\.jsonl"):
        load_examples(source, "preference", max_bad_rows=budget, quarantine_path=quarantine)
    assert read_jsonl(quarantine)


def test_prompt_ids_are_unique_and_stable(source):
    examples, _ = load_examples(source, "preference", max_bad_rows=0.9)
    first, second = (example.prompt_id for example in examples)
    assert second == f"{first}#1"
    renamed = unique_prompt_ids([Example("p", prompt_id=i) for i in ("a", "a#1", "a", "a#1", "a")])
    assert [example.prompt_id for example in renamed] == ["a", "a#1", "a#2", "a#1#1", "a#3"]


def test_duplicate_prompts_can_be_dropped(source):
    examples, funnel = load_examples([source, source], "preference", max_bad_rows=0.9, drop_duplicate_prompts=True)
    assert len(examples) == 1
    assert funnel.dropped == {"duplicate_prompt": 3, "no_pair": 2}
    assert funnel.kept == 1


def test_texts_without_a_prompt_are_no_duplicates_of_each_other(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (
        {"text": "one"}, {"text": "two"}, {"prompt": "p", "completion": "c"}, {"prompt": " p", "completion": "d"})))
    examples, funnel = load_examples(str(path), "sft", drop_duplicate_prompts=True)
    assert [example.responses[0] for example in examples] == ["one", "two", "c"]
    assert funnel.dropped == {"duplicate_prompt": 1}
    path.write_text('{"prompt": ""}\n' * 2)
    empty = ParseOptions(allow_empty_prompt=True)
    assert len(load_examples(str(path), "prompt", options=empty, drop_duplicate_prompts=True)[0]) == 2


def test_converters(source):
    both = [{"prompt": "x"}, {"prompt": "y"}]
    examples, funnel = load_examples(source + "[:1]", "prompt", converter=lambda row: both)
    assert [example.prompt for example in examples] == ["x", "y"]
    assert funnel.read == 2
    with pytest.raises(TooManyBadRows, match="converter needs the column 'instruction'"):
        load_examples(source, "sft", converter="alpaca")
    with pytest.raises(ValueError, match="there is no converter 'nope'; known ones are alpaca"):
        load_examples(source, "sft", converter="nope")
    with pytest.raises(ValueError, match=r"(?s)no row .* can be used.*converter_gave_nothing"):
        load_examples(source, "sft", converter=lambda row: [], max_bad_rows=1.0)


@pytest.mark.parametrize(("converter", "row"), [
    ("alpaca", {"instruction": "a", "output": "b", "history": [["only one"]]}),
    ("alpaca", {"instruction": "a", "output": "b", "history": 7}),
    ("webgpt", {"prompt": 7, "responses": []}),
    ("bon_graded", {"prompt": "a", "samples": [7]}),
    ("bon_graded", {"prompt": "a", "samples": None}),
    (None, {"prompt": "a", "tools": "none"}),
    (None, {"prompt": "a", "x": json.loads("[" * 200 + "]" * 200)}),
    (None, {"prompt": "a", "id": "\ud83d"}),
])
def test_one_row_that_is_not_as_expected_is_that_rows_fault(tmp_path, converter, row):
    good = {"alpaca": {"instruction": "p", "output": "o"}, "webgpt": {"prompt": "p", "responses": []},
            "bon_graded": {"prompt": "p", "samples": [{"text": "t", "score": 1}]}}.get(converter, {"prompt": "p"})
    path, quarantine = tmp_path / "rows.jsonl", tmp_path / "quarantine.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (good, row, good)))
    kind = "sft" if converter == "alpaca" else "prompt"
    examples, funnel = load_examples(str(path), kind, converter=converter, max_bad_rows=1, quarantine_path=quarantine)
    assert (len(examples), funnel.read, funnel.invalid.total()) == (2, 3, 1)
    assert [(kept["row_number"], kept["source"]) for kept in read_jsonl(quarantine)] == [(2, str(path))]


def test_columns_named_as_the_funnels_notes_are_columns_like_others(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "joined_rows": "many", "left_out_responses": -3}))
    (example,), funnel = load_examples(str(path), "prompt")
    assert (example.extra, funnel.notes) == ({"joined_rows": "many", "left_out_responses": -3}, {})


def test_answers_under_different_system_messages_are_not_joined(helpsteer):
    rows = [{**graded("p", f"answer {i}", i), "system": system} for i, system in enumerate(("a", "b", "a"))]
    assert [e.responses for e in helpsteer(rows, "graded")[0]] == [("answer 0", "answer 2"), ("answer 1",)]


def graded(prompt, response, score):
    return {"prompt": prompt, "response": response, "helpfulness": score, "correctness": score}


@pytest.fixture
def helpsteer(tmp_path):
    """helpsteer(rows): a file of rows with one graded answer each, read with the converter of that name."""

    def load(rows, kind="preference", **more):
        path = tmp_path / "helpsteer.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_examples(str(path), kind, converter="helpsteer", **more)

    return load


def test_rows_of_one_answer_each_are_joined_by_prompt(helpsteer):
    rows = [graded("p", "bad", 1), graded("q", "only", 2), graded("p", "best", 4), graded(" p\n", "good", 3),
            graded("r", "x", 1), graded("r", "y", 2), graded("p", "worst", 0)]
    examples, funnel = helpsteer(rows)
    assert [(e.prompt, e.responses) for e in examples] == [("p", ("bad", "best", "good", "worst")), ("r", ("x", "y"))]
    assert [scores["data"] for scores in examples[0].scores] == [1.0, 4.0, 3.0, 0.0]
    assert sorted(examples[0].pairs) == [(0, 3), (1, 0), (1, 2), (1, 3), (2, 0), (2, 3)]
    assert funnel.to_json() == {"read": 3, "valid": 3, "kept": 2, "invalid": {}, "dropped": {"no_pair": 1},
                                "notes": {"joined_rows": 4}}
    assert [e.responses for e in helpsteer(rows, "graded")[0]] == [("bad", "best", "good", "worst"), ("only",),
                                                                  ("x", "y")]


def test_a_prompt_is_joined_over_all_sources(helpsteer, tmp_path):
    helpsteer([graded("p", "a", 1)], "graded")
    (tmp_path / "more.jsonl").write_text(json.dumps(graded("p", "b", 2)) + "\n")
    files = [str(tmp_path / name) for name in ("helpsteer.jsonl", "more.jsonl")]
    examples, _ = load_examples(files, "preference", converter="helpsteer")
    assert [(e.responses, e.pairs) for e in examples] == [(("a", "b"), ((1, 0),))]


def test_a_bad_row_costs_no_other_answer_of_its_prompt(helpsteer, tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    rows = [graded("p", "a", 1), graded("p", "b", None), graded("p", "c", 3), graded("p", 7, 3), graded("p", " ", 3),
            graded("", "x", 1), graded("", "y", 2), graded(None, "x", 1), {"prompt": "p", "response": "no score"}]
    examples, funnel = helpsteer(rows, "graded", max_bad_rows=6, quarantine_path=quarantine)
    (example,) = examples
    assert (example.responses, [scores["data"] for scores in example.scores]) == (("a", "c"), [1.0, 3.0])
    assert funnel.invalid == {"not_a_number": 1, "not_messages": 1, "empty_prompt": 2, "missing_column": 2}
    assert funnel.notes == {"joined_rows": 2, "left_out_responses": 1}
    assert [row["row_number"] for row in read_jsonl(quarantine)] == [2, 4, 6, 7, 8, 9]


def test_options_reach_the_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "", "chosen": "a", "rejected": "b"}))
    assert load_examples(str(path), "preference", options=ParseOptions(allow_empty_prompt=True))[0][0].prompt == ""
    with pytest.raises(TooManyBadRows, match="allow_empty_prompt"):
        load_examples(str(path), "preference")


def test_funnel_adds_prints_and_comes_back():
    one, two = Funnel(5), Funnel(3)
    one.invalid["missing_column"] = 2
    two.dropped["prompt_too_long"] = 1
    two.notes["truncated_response"] = 1
    both = one.merged(two)
    assert (both.read, both.valid, both.kept) == (8, 6, 5)
    assert Funnel.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert [line.split() for line in str(both).splitlines()] == [
        ["rows", "read", "8"], ["invalid", "-2", "missing_column"], ["valid", "6"],
        ["dropped", "-1", "prompt_too_long"], ["kept", "5"], ["of", "these", "1", "truncated_response"]]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_columns_are_named_by_the_user(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"question": "q", "best": "a", "worst": "b", "prompt": "another"})
    names = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    (example,), _ = load_examples(path, "preference", columns=names)
    assert (example.prompt, example.responses, example.extra) == ("q", ("a", "b"), {})
    (example,), _ = load_examples(path, "sft", columns={"instruction": "question", "output": "best"},
                                  converter="alpaca")
    assert example.prompt == [{"role": "user", "content": "q"}]
    swapped, _ = load_examples(path, "preference", columns={**names, "chosen": "worst", "rejected": "best"})
    assert swapped[0].responses == ("b", "a")
    with pytest.raises(TooManyBadRows, match="columns names 'text', which the row does not have; it has question"):
        load_examples(path, "preference", columns={"prompt": "text"})
    with pytest.raises(TooManyBadRows, match=r"it has question, .*\. Our name comes first: --columns\.chosen worst"):
        load_examples(path, "preference", columns={"worst": "chosen"})


def test_rows_behind_max_samples_are_not_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(20)) + '{"prompt": "cut')
    examples, funnel = load_examples(str(path), "prompt", max_samples=10, max_bad_rows=0)
    assert (len(examples), funnel.read, funnel.kept) == (10, 10, 10)
    lines(tmp_path / "b.jsonl", {"prompt": ""}, *({"prompt": f"p{i}"} for i in range(200)))
    examples, funnel = load_examples(str(tmp_path / "b.jsonl"), "prompt", max_samples=10, max_bad_rows=0.02)
    assert (len(examples), funnel.read, funnel.invalid) == (10, 11, {"empty_prompt": 1})
    with pytest.raises(TooManyBadRows):
        load_examples(str(tmp_path / "b.jsonl"), "prompt", max_samples=10, max_bad_rows=0.0)


@pytest.mark.parametrize(("where", "row", "prompt"), [
    ("first_user", {"messages": ["s", "u", "a", "u", "a"]}, "su"),
    ("before_last_assistant", {"messages": ["s", "u", "a", "u", "a"]}, "suau"),
    ("before_last_assistant", {"conversations": ["u", "a", "u"]}, "u"),
    ("first_user", {"prompt": ["u"], "completion": ["a", "u", "a"]}, "u"),
    ("before_last_assistant", {"prompt": ["u"], "completion": ["a", "u", "a"]}, "uau"),
    ("first_user", {"chosen": ["u", "a", "u", "a"], "rejected": ["u", "a", "u", "a2"]}, "u"),
])
def test_conversations_serve_as_prompts(tmp_path, where, row, prompt):
    roles = {"s": "system", "u": "user", "a": "assistant"}
    row = {column: [{"role": roles[turn[0]], "content": turn} for turn in turns] for column, turns in row.items()}
    (example,), _ = load_examples(lines(tmp_path / "a.jsonl", row), "prompt",
                                  options=ParseOptions(prompts_from=where))
    assert "".join(message["content"] for message in example.prompt) == prompt


def test_text_is_its_own_prompt(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"})
    (example,), _ = load_examples(path, "prompt", options=ParseOptions(prompts_from="first_user"))
    assert example.prompt == "p"


@pytest.mark.parametrize(("kind", "row", "words"), [
    ("sft", {"instruction": "a", "context": "", "response": "b"}, "can be read with converter: dolly"),
    ("preference", {"question": "q", "chosen": "a", "rejected": "b", "system": ""}, "with converter: orca_pairs"),
    ("prompt", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     "hold whole conversations: set prompts_from"),
    ("prompt", {"instruction": "a", "input": "", "output": "b"}, "prompts_from and converter: alpaca"),
])
def test_an_unreadable_layout_names_the_converter_that_fits(tmp_path, kind, row, words):
    with pytest.raises(TooManyBadRows, match=words):
        load_examples(lines(tmp_path / "a.jsonl", row), kind)
    with pytest.raises(ValueError, match=words):
        load_examples(lines(tmp_path / "a.jsonl", row), kind, max_bad_rows=1.0)
