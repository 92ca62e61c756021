import pytest

from rlhf_jax.data.converters import CONVERTERS, sentiment_pairs
from rlhf_jax.data.funnel import load_examples
from rlhf_jax.data.rows import BadRow, ParseOptions, parse_row


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def converted(name, kind, row):
    return parse_row(CONVERTERS[name](row), kind)


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
    assert (best.responses, best.scores, best.notes["left_out_responses"]) == (("a",), (0.5,), 1)
    with pytest.raises(BadRow, match="no_responses"):
        CONVERTERS["bon_graded"]({"prompt": "p", "samples": samples[1:]})
    steer = {"prompt": "p", "response": "r", "helpfulness": 4, "correctness": 3}
    assert converted("helpsteer", "graded", steer).scores == (3.5,)
    assert converted("webgpt", "preference", {"prompt": " p ", "responses": cells}).pairs == ((1, 0),)


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
])
def test_real_sources(shared, source, kind, converter, header):
    examples, funnel = load_examples(str(shared / source), kind, converter=converter, header=header, max_bad_rows=0)
    assert funnel.kept == len(examples) > 0
    assert len({e.prompt_id for e in examples}) == len(examples)
