import inspect
import json
from pathlib import Path

import pytest

from rlhf_jax.data.converters import CONVERTERS, find_converter, sentiment_pairs
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.rows import BadRow, ParseOptions, parse_row

ROWS = json.loads((Path(__file__).parent / "published_rows.json").read_text(encoding="utf-8"))
"""One row of each public set, in its published layout; long texts are shortened."""


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def converted(name, kind, row):
    return parse_row(CONVERTERS[name](row), kind)


def grades(example):
    return [numbers["data"] for numbers in example.scores]


def test_hh_rlhf():
    head = "\n\nHuman: a\n\nAssistant: "
    example = converted("hh_rlhf", "preference", {"chosen": head + "b", "rejected": head + "c"})
    assert (example.prompt, example.responses) == ([user("a")], ([bot("b")], [bot("c")]))


def test_alpaca_and_lima():
    example = converted("alpaca", "sft", {"instruction": "do", "input": "this", "output": "done", "id": 4})
    assert (example.prompt, example.responses, example.prompt_id) == ([user("do\n\nthis")], ([bot("done")],), "4")
    lima = converted("alpaca", "sft", {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]})
    assert (lima.prompt, lima.responses) == ([user("a")], ([bot("b"), user("c"), bot("d")],))


def test_alpaca_pairs():
    row = {"instruction": "do", "input": "", "chosen": "a", "rejected": "b"}
    assert converted("alpaca_pairs", "preference", row).prompt == [user("do")]


def test_graded_sources():
    cells = [{"model": "m", "text": "a", "score": 0.1}, {"model": "n", "text": "b", "score": 0.9}]
    graded = converted("alpacaeval_graded", "graded", {"index": 3, "dataset": "koala", "prompt": "p", "baseline": "x",
                                                       "responses": cells})
    assert (graded.prompt_id, graded.extra["baseline"]) == ("koala-3", "x")
    assert graded.scores == ({"data": 0.1}, {"data": 0.9})
    samples = [{"k": 0, "text": "a", "score": 0.5}, {"k": 1, "text": "b", "score": None}]
    best = converted("bon_graded", "graded", {"prompt": "p", "samples": samples})
    assert (best.responses, grades(best), best.notes["left_out_responses"]) == (("a",), [0.5], 1)
    with pytest.raises(BadRow, match="no_responses"):
        CONVERTERS["bon_graded"]({"prompt": "p", "samples": samples[1:]})
    steer = {"prompt": "p", "response": "r", "helpfulness": 4, "correctness": 3}
    (graded,) = converted("helpsteer", "graded", steer).scores
    assert graded == pytest.approx({"data": 3.5, "data/helpsteer-helpfulness": 0.9, "data/helpsteer-correctness": 0.7})
    assert converted("webgpt", "preference", {"prompt": " p ", "responses": cells}).pairs == ((1, 0),)


def test_armorm():
    row = {"messages": [user("a"), bot("b")], "helpsteer-coherence": 0.5, "beavertails-is_safe": None}
    graded = converted("armorm", "graded", row)
    assert (graded.prompt, graded.responses) == ([user("a")], ([bot("b")],))
    assert graded.scores == ({"data/helpsteer-coherence": 0.5},)
    with pytest.raises(BadRow, match="helpsteer-coherence is rated 4, and its scale is 0 to 1"):
        CONVERTERS["armorm"]({**row, "helpsteer-coherence": 4})


def test_sharegpt():
    turns = [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert converted("sharegpt", "sft", {"conversations": turns}).prompt == [user("a")]
    chosen, rejected = ({"from": "gpt", "value": text} for text in "xy")
    pair = {"conversations": turns[1:2], "chosen": chosen, "rejected": rejected}
    assert converted("sharegpt", "preference", pair).responses == ([bot("x")], [bot("y")])


@pytest.mark.parametrize(("name", "kind", "row"), [
    ("alpaca", "sft", {"instruction": "do", "input": "", "output": "done", "text": "Instruction: do ..."}),
    ("alpaca_pairs", "preference", {"instruction": "do", "chosen": "a", "rejected": "b"}),
    ("sharegpt", "sft", {"conversations": [{"from": "human", "value": "do"}, {"from": "gpt", "value": "b"}]}),
    ("ultrafeedback_binarized", "preference", {"prompt": "do", "chosen": "a", "rejected": "b", "messages": []}),
    ("webgpt", "preference", {"prompt": "do", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 0}]}),
    ("bon_graded", "graded", {"prompt": "do", "samples": [{"text": "a", "score": 1}]}),
    ("helpsteer", "graded", {"prompt": "do", "response": "a", "helpfulness": 1, "correctness": 1}),
    ("story_prompt", "prompt", {"prompt": "do"}),
])
def test_no_converter_loses_the_system_message(name, kind, row):
    example = converted(name, kind, {**row, "system": "Be brief.", "id": "x"})
    assert example.prompt == [{"role": "system", "content": "Be brief."}, user("do")]
    assert "system" not in example.extra


def test_columns_that_instructions_do_not_use_are_kept_for_scorers_and_templates():
    row = {"instruction": "do", "output": "done", "source": "web", "tools": "[]"}
    assert converted("alpaca", "sft", row).extra == {"source": "web", "tools": "[]"}


def test_greetings_that_sharegpt_leaves_out_are_counted():
    turns = [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert converted("sharegpt", "sft", {"conversations": turns}).notes == {"left_out_greetings": 1}
    assert converted("sharegpt", "sft", {"conversations": turns[1:]}).notes == {}


def test_ultrafeedback_binarized():
    row = {"prompt": "a", "prompt_id": "h", "chosen": [user("a"), bot("b")], "rejected": [user("a"), bot("c")],
           "messages": [user("a"), bot("b")], "score_chosen": 8.0, "score_rejected": 5.5}
    example = converted("ultrafeedback_binarized", "preference", row)
    assert (example.prompt, example.margins, example.prompt_id, example.extra) == ([user("a")], (2.5,), "h", {})


def read(tmp_path, rows, name, kind="preference", **more):
    """A file of foreign rows, read with the converter of that name."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(str(path), kind, converter=name, max_bad_rows=0, **more)


def test_every_option_in_the_table_is_a_keyword_and_every_keyword_has_an_option():
    for name, converter in CONVERTERS.items():
        functions = [f for f in (converter.function, converter.join_by_prompt) if f is not None]
        keywords = {p.name for f in functions for p in inspect.signature(f).parameters.values()
                    if p.kind is p.KEYWORD_ONLY}
        assert keywords == set(converter.options), name


def test_options_of_a_converter_are_checked():
    assert find_converter("shp", {"min_ratio": 3}).options == {"min_ratio": 3, "max_pairs": 5}
    with pytest.raises(ValueError, match="'shp' has no option 'ratio'; it has min_ratio, max_pairs"):
        find_converter("shp", {"ratio": 3})
    with pytest.raises(ValueError, match="'dolly' has no option 'x'; it has none"):
        find_converter("dolly", {"x": 3})
    with pytest.raises(ValueError, match=r"converter_options\.min_ratio = 'big'; give a value like 2\.0"):
        find_converter("shp", {"min_ratio": "big"})
    with pytest.raises(ValueError, match="disagreeing is 'keep'; it is drop or safe"):
        find_converter("pku_saferlhf", {"disagreeing": "keep"})(ROWS["pku"])


def test_shp_keeps_large_ratios_and_the_best_five_pairs_of_a_post(tmp_path):
    example = converted("shp", "preference", ROWS["shp"])
    assert (example.prompt, example.responses) == (ROWS["shp"]["history"], ("Ask about the group.", "Nothing."))
    assert example.margins == (ROWS["shp"]["score_ratio"],)
    assert converted("shp", "preference", {**ROWS["shp"], "labels": 0}).responses[0] == "Nothing."
    posts = [{**ROWS["shp"], "score_ratio": ratio, "human_ref_A": f"answer {ratio}"}
             for ratio in (2.0, 3, 9, 2.5, 4, 5, 6)]
    other = {**ROWS["shp"], "history": "Another post?"}
    examples, funnel = read(tmp_path, [*posts[:3], other, *posts[3:]], "shp")
    assert [e.margins[0] for e in examples] == [3, 9, 4, 5, 6, ROWS["shp"]["score_ratio"]]
    assert funnel.dropped == {"small_score_ratio": 1, "beyond_max_pairs": 1}
    examples, funnel = read(tmp_path, posts, "shp", converter_options={"min_ratio": 4, "max_pairs": 2})
    assert [e.margins[0] for e in examples] == [9, 6]
    assert funnel.dropped == {"small_score_ratio": 4, "beyond_max_pairs": 1}


def test_helpsteer_grades_by_the_objective_that_is_named(tmp_path):
    assert grades(converted("helpsteer", "graded", ROWS["helpsteer"])) == [3.5]
    assert grades(converted("helpsteer2", "graded", ROWS["helpsteer"])) == [3.0]
    two = [ROWS["helpsteer2"], {**ROWS["helpsteer2"], "response": "for (;;) {}", "helpfulness": 4, "correctness": 1}]
    (example,), _ = read(tmp_path, two, "helpsteer2")
    assert example.prompt == [user("c#"), bot("C# is a language."), user("Show a loop.")]
    assert (example.responses[example.pairs[0][0]], example.margins) == ("for (;;) {}", (1.0,))
    (example,), _ = read(tmp_path, two, "helpsteer2", converter_options={"objective": "verbosity+correctness"})
    assert example.margins == (1.5,)


def test_helpsteer2s_preferences():
    example = converted("helpsteer2_preference", "preference", ROWS["helpsteer2_preference"])
    assert (example.responses, example.margins) == (("Hello!", "No."), (2.0,))
    stronger = {**ROWS["helpsteer2_preference"], "preference_strength": 3}
    assert converted("helpsteer2_preference", "preference", stronger).responses == ("No.", "Hello!")
    with pytest.raises(BadRow, match="equal_ratings"):
        CONVERTERS["helpsteer2_preference"]({**stronger, "preference_strength": 0})


def test_pku_saferlhf_merges_safety_and_helpfulness(tmp_path):
    alike = {**ROWS["pku"], "is_response_0_safe": True, "better_response_id": 0, "safer_response_id": 1}
    disagreeing = {**ROWS["pku"], "better_response_id": 0}
    examples, funnel = read(tmp_path, [ROWS["pku"], alike, disagreeing], "pku_saferlhf")
    assert [e.responses[0] for e in examples] == ["Call a locksmith.", "Break it."]
    assert funnel.dropped == {"labels_disagree": 1}
    examples, _ = read(tmp_path, [disagreeing], "pku_saferlhf", converter_options={"disagreeing": "safe"})
    assert examples[0].responses == ("Call a locksmith.", "Break it.")


def test_ultrafeedback_makes_all_unequal_pairs_of_four_answers():
    example = converted("ultrafeedback", "preference", ROWS["ultrafeedback"])
    assert grades(example) == [4.5, 4.75, pytest.approx(4 / 3), 1.0]  # a rating that is N/A is no rating
    assert len(example.pairs) == 6
    assert example.extra["response_models"] == ["a", "b", "c", "d"]
    overall = parse_row(find_converter("ultrafeedback", {"objective": "overall_score"})(ROWS["ultrafeedback"]),
                        "preference")
    assert len(overall.pairs) == 5  # the last two are equal
    given = {**ROWS["ultrafeedback"], "completions": [{**c, "fine-grained_score": i} for i, c in enumerate(
        ROWS["ultrafeedback"]["completions"])]}
    assert grades(converted("ultrafeedback", "graded", given)) == [0, 1, 2, 3]
    del given["completions"][0]["annotations"]
    assert converted("ultrafeedback", "graded", given).scores[0] == pytest.approx(
        {"data": 0, "data/ultrafeedback-overall_score": 0.8})


def test_ultrafeedback_keeps_the_ratings_of_each_aspect_on_armorms_scales():
    first = converted("ultrafeedback", "graded", ROWS["ultrafeedback"]).scores[0]
    assert first == pytest.approx({"data": 4.5, **{f"data/ultrafeedback-{name}": value for name, value in {
        "overall_score": 0.8, "instruction_following": 0.9, "truthfulness": 0.9, "honesty": 0.7, "helpfulness": 0.7,
    }.items()}})
    not_given = {f"data/ultrafeedback-{aspect}" for numbers, answer in zip(
        converted("ultrafeedback", "graded", ROWS["ultrafeedback"]).scores, ROWS["ultrafeedback"]["completions"],
        strict=True) for aspect, note in answer["annotations"].items()
        if note["Rating"] == "N/A" and f"data/ultrafeedback-{aspect}" not in numbers}
    assert not_given
    broken = json.loads(json.dumps(ROWS["ultrafeedback"]))
    broken["completions"][1]["annotations"]["honesty"]["Rating"] = "6"
    with pytest.raises(BadRow, match="honesty is rated 6, and its scale is 1 to 5"):
        CONVERTERS["ultrafeedback"](broken)


def test_beavertails_joins_the_answers_of_a_prompt_and_keeps_whether_they_are_safe(tmp_path):
    (example,), _ = read(tmp_path, [ROWS["beavertails"], {**ROWS["beavertails"], "response": "No.", "is_safe": True}],
                         "beavertails", "graded")
    assert (example.prompt, example.responses) == (ROWS["beavertails"]["prompt"], ("Pick the lock.", "No."))
    assert example.scores == ({"data": 0.0, "data/beavertails-is_safe": 0.0},
                              {"data": 1.0, "data/beavertails-is_safe": 1.0})
    assert example.notes == {"joined_rows": 1}
    with pytest.raises(BadRow, match="none of the ratings of beavertails: is_safe"):
        CONVERTERS["beavertails"]({**ROWS["beavertails"], "is_safe": None})


def test_ultrainteract_continues_its_trajectory():
    example = converted("ultrainteract", "preference", ROWS["ultrainteract"])
    assert example.prompt == [user("2 + 2?"), bot("Let me see."), user("Go on.")]
    assert (example.responses, example.prompt_id) == (("It is 4.", "It is 5."), "37d04ee5")


def test_code_ultrafeedback_and_prometheus2():
    code = converted("code_ultrafeedback", "preference", ROWS["code_ultrafeedback"])
    assert (code.responses, code.pairs, code.margins) == (("print(1)", "1"), ((0, 1),), (3.0,))
    assert code.notes == {"left_out_responses": 1}
    assert [numbers["data/code-readability"] for numbers in code.scores] == pytest.approx([0.9, 0.3])
    with pytest.raises(BadRow, match="none of the ratings of code"):
        CONVERTERS["code_ultrafeedback"]({**ROWS["code_ultrafeedback"], "preference": "speed"})
    kind = converted("prometheus2", "preference", ROWS["prometheus2"])
    assert (kind.prompt, kind.responses[kind.pairs[0][0]], kind.margins) == ("Greet me.", "Hello, dear!", (3.0,))


@pytest.mark.parametrize(("name", "row", "equal", "chosen", "margin"), [
    ("argilla_math", ROWS["argilla_math"], {"rejected_rating": 5}, "Assume p.", 3.0),
    ("orca_pairs", ROWS["orca"], {"rating": [9.0, 9.0]}, "Good", 2.0),
    ("capybara", ROWS["capybara"], {"rating_rejected": 5}, [bot("good")], 2.0),
])
def test_equal_ratings_make_no_pair(tmp_path, name, row, equal, chosen, margin):
    (example,), funnel = read(tmp_path, [row, {**row, **equal}], name)
    assert (example.responses[0], example.margins) == (chosen, (margin,))
    assert funnel.dropped == {"equal_ratings": 1}


ALONE = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q"}}


@pytest.mark.parametrize(("name", "row", "prompt"), [
    ("argilla_math", {**ROWS["argilla_math"], "rejected_rating": 5}, [user(ROWS["argilla_math"]["instruction"])]),
    ("orca_pairs", {**ROWS["orca"], "rating": [9.0, 9.0]}, [user(ROWS["orca"]["input"])]),
    ("capybara", {**ROWS["capybara"], "rating_rejected": 5}, [user("a"), bot("b"), user("c")]),
    ("shp", {**ROWS["shp"], "score_ratio": 1.1}, ROWS["shp"]["history"]),
    ("pku_saferlhf", {**ROWS["pku"], "better_response_id": 0}, ROWS["pku"]["prompt"]),
    ("helpsteer2_preference", {**ROWS["helpsteer2_preference"], "preference_strength": 0},
     ROWS["helpsteer2_preference"]["prompt"]),
    ("oasst", ALONE, [user("q")]), ("oasst_ranked", ALONE, [user("q")]),
])
def test_a_prompt_stays_where_no_answer_is_preferred(tmp_path, name, row, prompt):
    (example,), funnel = read(tmp_path, [row], name, "prompt")
    system = [m for m in example.prompt if not isinstance(m, str) and m["role"] == "system"]
    assert example.prompt == (prompt if isinstance(prompt, str) else [*system, *prompt])
    assert (funnel.kept, funnel.dropped, funnel.invalid) == (1, {}, {})
    with pytest.raises(ValueError, match=r"no row of .* can be used as preference data|1 of .* rows cannot be used"):
        read(tmp_path, [row], name)


def test_capybara_keeps_all_turns_and_orca_its_system_message():
    assert converted("capybara", "preference", ROWS["capybara"]).prompt == [user("a"), bot("b"), user("c")]
    intel = {"system": "Be brief.", "question": "q", "chosen": "a", "rejected": "b"}
    example = converted("orca_pairs", "preference", intel)
    assert example.prompt == [{"role": "system", "content": "Be brief."}, user("q")]


def test_summaries_and_domains():
    example = converted("summarize", "preference", ROWS["summarize"])
    assert example.prompt == [user("Summarize the following text:\n\nMy cat\n\nIt is ill. I went to the vet.")]
    assert (example.responses, example.prompt_id) == (("Cat ill, vet seen.", "A cat."), "t3_1")
    pairs = find_converter("dsp", {"domain": "business"})(ROWS["dsp"])
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("A cost.", "A force."), ("A cost.", "It pulls.")]


def test_dolly_and_self_instruct():
    example = converted("dolly", "sft", ROWS["dolly"])
    assert example.prompt == [user("When did it start?\n\nIt started in 2000.")]
    assert (example.responses, example.extra) == (([bot("In 2000.")],), {"category": "closed_qa"})
    examples = [parse_row(row, "sft") for row in CONVERTERS["self_instruct"](ROWS["self_instruct"])]
    assert [(e.prompt[0]["content"], e.responses[0][0]["content"]) for e in examples] == [
        ("Is there anything I can eat?", "Yes, oats."), ("Is there anything I can eat?\n\nNo oats.", "Fruit.")]


def test_openassistant_trees_as_conversations_and_as_graded_answers():
    example = converted("oasst", "sft", ROWS["oasst"])
    assert (example.prompt, example.responses) == ([user("q")], ([bot("best"), user("more"), bot("last")],))
    (graded,) = (parse_row(row, "preference") for row in CONVERTERS["oasst_ranked"](ROWS["oasst"]))
    assert (graded.prompt, [graded.responses[i] for i in graded.pairs[0]]) == ([user("q")], ["best", "worse"])
    alone = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q"}}
    with pytest.raises(BadRow, match="no_responses"):
        CONVERTERS["oasst"](alone)
    with pytest.raises(BadRow, match="no_pair"):
        CONVERTERS["oasst_ranked"](alone)


def test_sentiment_pairs():
    labelled = [("good", 1), ("bad", 0), ("fine", 1), ("awful", 0), ("great", 1)]
    rows = sentiment_pairs(labelled, seed=0, max_pairs=5)
    assert rows == sentiment_pairs(labelled, seed=0, max_pairs=5)
    assert len(rows) == 2
    assert {row["rejected"] for row in rows} == {"bad", "awful"}
    assert {row["chosen"] for row in rows} < {"good", "fine", "great"}
    assert len({str(sentiment_pairs(labelled, seed, 5)) for seed in range(8)}) > 1
    assert len(sentiment_pairs(labelled, 0, 1, prompt_text="Review:")) == 1
    assert parse_row(rows[0], "preference", ParseOptions(allow_empty_prompt=True)).prompt == ""
    with pytest.raises(ValueError, match="neither 0"):
        sentiment_pairs([("x", 2)], 0, 1)
    with pytest.raises(ValueError, match="make no pair"):
        sentiment_pairs([("x", 1)], 0, 1)


@pytest.mark.parametrize(("folder", "converter"), [("hh-rlhf/helpful_train", "hh_rlhf"),
                                                   ("hh-rlhf/harmless_train", None)])
def test_real_hh_rlhf_loses_under_two_percent(shared, folder, converter):
    examples, funnel = load_examples(str(shared / f"preference/{folder}.jsonl.gz"), "preference", converter=converter)
    assert funnel.kept == len(examples)
    assert funnel.read == funnel.kept + funnel.invalid.total()
    assert 0 < funnel.invalid.total() < 0.02 * funnel.read
    assert all(e.prompt[-1]["role"] == "user" and len(e.responses[0]) == 1 for e in examples)


@pytest.mark.parametrize(("source", "kind", "converter", "header"), [
    ("preference/alpacaeval-graded/valid.jsonl.gz[:20]", "graded", "alpacaeval_graded", None),
    ("preference/bon-tulu2-dpo-13b/valid.jsonl.gz[:20]", "preference", "bon_graded", None),
    ("preference/webgpt/valid.jsonl.gz", "preference", "webgpt", None),
    ("preference/dpo-demo/valid.jsonl.gz", "preference", "sharegpt", None),
    ("preference/alpaca-strong-vs-weak/valid.jsonl.gz", "preference", "alpaca_pairs", None),
    ("sft/lima/train.jsonl.gz[:50]", "sft", "alpaca", None),
    ("prompts/story-openings/valid.jsonl.gz", "prompt", "story_prompt", None),
    ("classify/sst2/dev.tsv.gz[:50]", "sft", None, ("text", "label")),
    ("preference/dsp-domains/valid.jsonl.gz[:20]", "preference", "dsp", None),
    ("sft/self-instruct-seed/seed_tasks.jsonl.gz", "sft", "self_instruct", None),
])
def test_real_sources(shared, source, kind, converter, header):
    examples, funnel = load_examples(str(shared / source), kind, converter=converter, header=header, max_bad_rows=0)
    assert funnel.kept == len(examples) > 0
    assert len({e.prompt_id for e in examples}) == len(examples)
