"""`rlhf-jax benchmark`: policies, official files and judges in every combination that is offered, on small twins."""

import csv
import gzip
import json
import math
import re

import pytest

from rlhf_jax.evaluation.alpaca_eval import is_switched

ASKED = [f"Write about number {i}" for i in range(6)]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def alpaca(tmp_path):
    """A folder of AlpacaEval's files, with a prompt of our own."""
    folder = tmp_path / "alpaca"
    folder.mkdir()
    (folder / "model_outputs.json").write_text(json.dumps(
        [{"instruction": text, "output": "base " * (i + 2), "generator": "gpt4_1106_preview", "dataset": "d"}
         for i, text in enumerate(ASKED)]))
    (folder / "alpaca_eval_clf.txt").write_text(
        "<|im_start|>system\nPick.\n<|im_end|>\n<|im_start|>user\nQ {instruction} {x}\n1: {output_1}\n2: {output_2}\n"
        "Say m or M.\n<|im_end|>\n")
    return folder


@pytest.fixture
def outputs(tmp_path):
    """A model's outputs for them; the last one is the baseline's own."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"instruction": text, "output": "base " * 7 if i == 5 else f"mine {{output_1}} {i}"}
                                for i, text in enumerate(ASKED)]))
    return path


def letters(number, body):
    """A judge that gives the model's answer 0.8, wherever it stands."""
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 1.0, True, 5)
    text = body["messages"][-1]["content"]
    mine_first = text.index("mine") < text.index("base")
    top = [{"token": "m", "logprob": math.log(0.8 if mine_first else 0.2)},
           {"token": "M", "logprob": math.log(0.2 if mine_first else 0.8)}]
    return {"choices": [{"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}


def judge(server):
    return ["--judge.url", server.url, "--judge.model", "j", "--judge.retry_wait", "0", "--judge.max_retries", "1"]


def printed(out):
    return json.loads(out[out.index("\n{") if not out.startswith("{") else 0:out.rindex("}") + 1])


def test_alpaca_eval_asks_in_the_official_order_and_asks_nobody_about_identical_answers(
        alpaca, outputs, serve, rlhf_jax, tmp_path):
    server = serve(letters)
    command = ["benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--outputs", outputs, *judge(server),
               "--output_dir", tmp_path / "out"]
    status, out, err = rlhf_jax(*command)
    assert status == 0, err
    assert len(server.asked) == 5
    for text, turned in ((text, is_switched(text)) for text in ASKED[:5]):
        said = next(body["messages"] for _, body, _ in server.asked if text in body["messages"][1]["content"])
        assert said[0] == {"role": "system", "content": "Pick."}
        assert (said[1]["content"].index("mine") < said[1]["content"].index("base")) == turned
        assert said[1]["content"].count("base") >= 2
        assert "{x}" in said[1]["content"]
    found = printed(out)
    assert found["win_rate"] == pytest.approx(100 * (5 * 0.8 + 0.5) / 6)
    assert (found["n_draws"], found["length_controlled_winrate"]) == (1, None)
    (judged,) = (tmp_path / "out/stages").glob("judge-*")
    rows = json.loads((judged / "annotations.json").read_text())
    assert [row["preference"] for row in rows] == pytest.approx([1.8] * 5 + [1.5])
    assert (rows[0]["generator_2"], rows[0]["annotator"]) == ("mine", "j")
    (scored,) = (tmp_path / "out/stages").glob("score-*")
    (row,) = csv.DictReader((scored / "leaderboard.csv").open())
    assert float(row["win_rate"]) == pytest.approx(found["win_rate"])
    # the same command does nothing; without its record the judgement is made again from kept answers
    assert rlhf_jax(*command)[0] == 0
    (judged / "stage.json").unlink()
    assert rlhf_jax(*command)[0] == 0
    assert len(server.asked) == 5
    # the official file enters the last step, with the same figures
    status, again, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--annotations",
                                  judged / "annotations.json", "--output_dir", tmp_path / "again")
    assert status == 0, err
    assert printed(again) == found


def test_a_python_function_judges_too(alpaca, outputs, rlhf_jax, tmp_path, monkeypatch):
    (tmp_path / "longer_is_better.py").write_text(
        "def score(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--outputs", outputs,
                                "--judge.kind", "function", "--judge.function", "longer_is_better:score",
                                "--output_dir", tmp_path / "out")
    assert status == 0, err
    assert printed(out)["n_wins"] == sum(len(f"mine {{output_1}} {i}") > 5 * (i + 2) for i in range(5))


def test_a_trial_takes_the_first_questions_of_full_files(alpaca, outputs, serve, rlhf_jax, tmp_path):
    server = serve(letters)
    status, out, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--outputs", outputs,
                                "--max_samples", "2", *judge(server), "--output_dir", tmp_path / "out")
    assert status == 0, err
    assert (printed(out)["n_total"], len(server.asked)) == (2, 2)


@pytest.mark.parametrize(("change", "words"), [
    (lambda rows: rows[1:], "1 are missing, and 0 are none of this"),
    (lambda rows: [{**rows[0], "instruction": "Other"}, *rows[1:]], "1 are missing, and 1 are none of this"),
    (lambda rows: [*rows, rows[0]], "0 are missing, and 1 are none"),
    (lambda rows: [{"text": "x"}], "has no 'preference'"),
    (lambda rows: [{**rows[0], "preference": 7}, *rows[1:]], "preference 7.0 is none"),
    (lambda rows: [], "holds no rows"),
    (lambda rows: [*({**row, "index": i} for i, row in enumerate(rows)), {**rows[0], "index": 0}],
     "holds the index '0' twice"),
    (lambda rows: [{**row, "index": 5 - i} for i, row in enumerate(rows)], "row of index 0 asks 'Write about number 5"),
    (lambda rows: [{"index": 0, "preference": 1.0}, *rows[1:]], "row 1 holds no answer of the model"),
])
def test_annotations_of_other_prompts_are_refused(alpaca, rlhf_jax, tmp_path, change, words):
    rows = [{"instruction": text, "output_2": "x", "preference": 1.0} for text in ASKED]
    (tmp_path / "a.json").write_text(json.dumps(change(rows)))
    status, _, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--annotations",
                              tmp_path / "a.json", "--output_dir", tmp_path / "out")
    assert status == 1
    assert words in err


def test_a_judge_that_never_answers_in_the_format_is_named(alpaca, outputs, serve, rlhf_jax, tmp_path):
    def other_tokens(number, body):
        return {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [
            {"token": "A", "logprob": -0.1}]}]}}]}

    server = serve(other_tokens)
    status, _, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--outputs", outputs,
                              *judge(server), "--output_dir", tmp_path / "out")
    assert status == 1
    assert "the judge 'j' never answered in the format: the first token of a reply is m or M" in err


def test_published_figures_from_the_shared_annotations(shared, rlhf_jax, tmp_path):
    """vicuna-7b: 4.16 raw, 6.28 length-controlled."""
    path = shared / "eval/alpaca-eval/lc/annotations_vicuna-7b.jsonl.gz"
    status, out, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", shared / "eval/alpaca-eval",
                                "--annotations", path, "--output_dir", tmp_path / "out")
    assert status == 0, err
    found = printed(out)
    assert found["win_rate"] == pytest.approx(4.162611, abs=1e-6)
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"], found["avg_length"]) == (28, 775, 2, 1044)
    assert found["length_controlled_winrate"] == pytest.approx(6.277217738516609, abs=0.15)


# Arena-Hard


@pytest.fixture
def arena(tmp_path):
    folder = tmp_path / "arena"
    write_lines(folder / "question.jsonl", [{"uid": f"u{i}", "category": "arena-hard-v0.1", "prompt": text}
                                            for i, text in enumerate(ASKED)])
    write_lines(folder / "model_answer/gpt-4-0314.jsonl", [
        {"question_id": f"u{i}", "choices": [{"turns": [{"content": f"base {'x ' * i}", "token_len": i + 1}]}]}
        for i in range(6)])
    (folder / "judge_config.yaml").write_text(
        'system_prompt: "Judge."\nprompt_template: ["Q {question_1}\\nA: {answer_1}\\nB: {answer_2}"]\n')
    write_lines(tmp_path / "mine.jsonl", [
        {"uid": f"u{i}", "model": "mine", "messages": [{"role": "user", "content": text}, {
            "role": "assistant", "content": {"answer": f"mine **{i}**" * (i % 3 + 1)}}],
         "metadata": {"token_len": 3 * i + 2}}
        for i, text in enumerate(ASKED)])
    return folder


ARENA = ["benchmark", "--name", "arena_hard", "--version", "v0.1"]


def test_arena_hard_plays_both_orders_and_asks_once_more_for_a_label(arena, serve, rlhf_jax, tmp_path):
    def decides(number, body):
        if len(body["messages"]) == 2 and "number 3" in body["messages"][1]["content"]:
            return "I am not sure."
        question = body["messages"][1]["content"]
        model_first = question.index("mine") < question.index("base")
        if "number 0" in question:  # prefers the first, whoever that is
            return "[[A>B]]"
        if "number 1" in question:
            return "[[B>A]]" if model_first else "[[A>B]]"
        return "[[A>>B]]" if model_first else "[[B>>A]]"

    server = serve(decides)
    status, out, err = rlhf_jax(*ARENA, "--data_dir", arena, "--outputs", tmp_path / "mine.jsonl", *judge(server),
                                "--output_dir", tmp_path / "out")
    assert status == 0, err
    assert len(server.asked) == 14  # twelve games, two of them asked once more
    again = [body["messages"] for _, body, _ in server.asked if len(body["messages"]) == 4]
    assert [m[2]["content"] for m in again] == ["I am not sure."] * 2
    found = printed(out)["categories"]["arena-hard-v0.1"]
    # games of question 0: one each; of 1: both lost; the rest won by far, three times each
    assert found["score"]["value"] == pytest.approx((1 + 4 * 6) / (2 + 2 + 4 * 6))
    assert found["style_controlled"]["count"] == 6
    path = next((tmp_path / "out/stages").glob("judge-*/model_judgment/j/mine.jsonl"))
    status, later, err = rlhf_jax(*ARENA, "--data_dir", arena, "--annotations", path, "--output_dir",
                                  tmp_path / "again")
    assert status == 0, err
    later = printed(later)["categories"]["arena-hard-v0.1"]
    assert (later["score"], later["style_controlled"]) == (found["score"], None)


def test_style_control_counts_tokens_with_a_tokenizer_of_ones_own(arena, world, rlhf_jax, tmp_path):
    labels = [("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A>>B"), ("B>A", "B>A"), ("A>B", "A>B"), ("B>>A", "A=B")]
    path = write_lines(tmp_path / "judged.jsonl", [
        {"question_id": f"u{i}", "games": [{"score": score} for score in games]} for i, games in enumerate(labels)])
    command = [*ARENA, "--data_dir", arena, "--annotations", path, "--outputs", tmp_path / "mine.jsonl"]
    scores = []
    for name, more in (("files", []), ("own", ["--style_tokenizer", world / "tokenizer"])):
        status, out, err = rlhf_jax(*command, *more, "--output_dir", tmp_path / name)
        assert status == 0, err
        scores.append(printed(out)["categories"]["arena-hard-v0.1"]["style_controlled"]["value"])
    assert scores[0] != scores[1]


def test_a_question_that_is_judged_twice_is_refused(arena, rlhf_jax, tmp_path):
    rows = [{"uid": f"u{i}", "games": [{"score": "A>B"}, None]} for i in (0, 1, 2, 3, 4, 5, 3)]
    status, _, err = rlhf_jax(*ARENA, "--data_dir", arena, "--annotations", write_lines(tmp_path / "j.jsonl", rows),
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert "holds the question 'u3' twice" in err


def test_questions_of_another_version_are_refused(arena, rlhf_jax, tmp_path):
    status, _, err = rlhf_jax("benchmark", "--name", "arena_hard", "--data_dir", arena, "--annotations", "x.jsonl",
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert "has the category 'arena-hard-v0.1'; version v2.0 has hard_prompt, creative_writing" in err


def test_arena_hard_v2_has_a_baseline_and_a_score_for_each_category(rlhf_jax, tmp_path):
    folder = tmp_path / "arena2"
    kinds = ["hard_prompt", "creative_writing"] * 3
    write_lines(folder / "question.jsonl", [{"uid": f"u{i}", "category": kind, "prompt": "p"}
                                            for i, kind in enumerate(kinds)])
    for kind, name in (("hard_prompt", "o3-mini-2025-01-31"), ("creative_writing", "gemini-2.0-flash-001")):
        write_lines(folder / f"{name}.jsonl", [
            {"uid": f"u{i}", "messages": [{"role": "assistant", "content": {"answer": "x"}}]}
            for i, other in enumerate(kinds) if other == kind])
    path = write_lines(tmp_path / "judged.jsonl", [
        {"uid": f"u{i}", "games": [{"score": "B>A"}, {"score": "A>B" if kind == "hard_prompt" else "B>A"}]}
        for i, kind in enumerate(kinds)])
    status, out, err = rlhf_jax("benchmark", "--name", "arena_hard", "--data_dir", folder, "--annotations", path,
                                "--output_dir", tmp_path / "out")
    assert status == 0, err
    found = printed(out)["categories"]
    assert {kind: (entry["score"]["value"], entry["baseline"]) for kind, entry in found.items()} == {
        "hard_prompt": (1.0, "o3-mini-2025-01-31"), "creative_writing": (0.5, "gemini-2.0-flash-001")}


@pytest.mark.parametrize("preference", [1.0, 2.0])
def test_raw_figures_stand_where_nothing_can_be_controlled(alpaca, shared, rlhf_jax, tmp_path, preference):
    (alpaca / "instruction_difficulty.csv").write_text(",instruction_difficulty\n" + "".join(
        f"{i},{(-1) ** i * 0.5}\n" for i in range(6)))
    (alpaca / "df_gamed.csv").write_text("index,preference,std_delta_len\n" + "".join(
        f"{i},{1.4 + i % 2 / 5},{(i % 3 - 1) / 2}\n" for i in range(6)))
    (tmp_path / "a.json").write_text(json.dumps(
        [{"instruction": text, "output_2": "x" * i, "preference": preference} for i, text in enumerate(ASKED)]))
    status, out, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--annotations",
                                tmp_path / "a.json", "--output_dir", tmp_path / "out")
    assert status == 0, err
    found = printed(out)
    assert (found["win_rate"], found["length_controlled_winrate"]) == (100 * (preference - 1), None)
    assert "no finite solution" in found["not_controlled"]


# MT-Bench


@pytest.fixture
def mt(tmp_path):
    folder = tmp_path / "mt"
    write_lines(folder / "question.jsonl", [
        {"question_id": i, "category": category, "turns": [f"first of {i}", f"second of {i}"]}
        for i, category in ((81, "writing"), (101, "math"), (141, "stem"))])
    write_lines(folder / "reference_answer/gpt-4.jsonl", [
        {"question_id": 101, "choices": [{"turns": ["right one", "right two"]}]}])
    write_lines(folder / "judge_prompts.jsonl", [
        {"name": f"single-{kind}{turn}", "system_prompt": f"{kind}{turn}",
         "prompt_template": ("{question_1}|{answer_1}|{question_2}|{answer_2}" if turn else "{question}|{answer}")
         + ("|{ref_answer_1}" if "math" in kind else "") + ("|{ref_answer_2}" if "math" in kind and turn else "")}
        for kind in ("v1", "math-v1") for turn in ("", "-multi-turn")])
    return folder


MT = ["benchmark", "--name", "mt_bench"]


@pytest.mark.slow
def test_mt_bench_from_a_policy_to_its_score(mt, world, serve, rlhf_jax, tmp_path):
    def rates(number, body):
        return "Rating: [[4]]" if "multi-turn" in body["messages"][0]["content"] else "Rating: [[8.5]]"

    server = serve(rates)
    command = [*MT, "--data_dir", mt, "--model_name_or_path", world / "base", "--answering.max_new_tokens", "6",
               "--answering.slots", "8", "--answering.block", "4", *judge(server), "--output_dir", tmp_path / "out"]
    status, out, err = rlhf_jax(*command)
    assert status == 0, err
    found = printed(out)
    assert [found[name]["value"] for name in ("score", "turn_1", "turn_2")] == [6.25, 8.5, 4.0]
    stages = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "out/stages").iterdir())
    assert stages == ["answers", *(f"generate-turn-{turn}-temperature-{t}" for turn in (1, 2)
                                   for t in ("0", "0.1", "0.7")), "judge", "score"]
    answers = [json.loads(line) for line in
               next((tmp_path / "out/stages").glob("answers-*/model_answer/base.jsonl")).read_text().splitlines()]
    assert [row["question_id"] for row in answers] == [81, 101, 141]
    first, second = answers[1]["choices"][0]["turns"]
    asked = {body["messages"][0]["content"]: body["messages"][1]["content"] for _, body, _ in server.asked
             if "of 101" in body["messages"][1]["content"]}
    assert asked == {"math-v1": f"first of 101|{first}|right one",
                     "math-v1-multi-turn": f"first of 101|{first}|second of 101|{second}|right one|right two"}
    shards = next((tmp_path / "out/stages").glob("generate-turn-2-temperature-0-*/shard-00000.jsonl"))
    conversation = json.loads(shards.read_text())["prompt"]
    assert [m["content"] for m in conversation] == ["first of 101", first, "second of 101"]
    # answers and judgements in the official files take the policy's and the judge's place
    path = next((tmp_path / "out/stages").glob("answers-*/model_answer/base.jsonl"))
    status, later, err = rlhf_jax(*MT, "--data_dir", mt, "--outputs", path, "--judge.cache_dir",
                                  tmp_path / "out/answers", *judge(server), "--output_dir", tmp_path / "later")
    assert status == 0, err
    assert (printed(later), len(server.asked)) == (found, 6)
    path = next((tmp_path / "out/stages").glob("judge-*/model_judgment/j_single.jsonl"))
    status, last, err = rlhf_jax(*MT, "--data_dir", mt, "--annotations", path, "--output_dir", tmp_path / "last")
    assert status == 0, err
    assert printed(last) == found


def test_mt_bench_refuses_a_scorer_and_a_score_without_its_ratings(mt, serve, rlhf_jax, tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [{"question_id": i, "choices": [{"turns": ["a", "b"]}]}
                                                 for i in (81, 101, 141)])
    command = [*MT, "--data_dir", mt, "--outputs", path]
    status, _, err = rlhf_jax(*command, "--judge.kind", "function", "--judge.function", "textwrap:dedent",
                              "--output_dir", tmp_path / "a")
    assert status == 1
    assert "mt_bench rates single answers" in err
    status, _, err = rlhf_jax(*command, *judge(serve(lambda n, body: "Good!")), "--output_dir", tmp_path / "b")
    assert status == 1
    assert re.search(r"never answered in the format: a reply holds a rating like \[\[5\]\] \(its first reply begins "
                     "'Good!'", err)
    ill = serve(lambda n, body: (500, {}, "oops") if "81" in body["messages"][1]["content"] else "[[5]]")
    for _ in range(2):  # the second command asks again what got no reply
        status, _, err = rlhf_jax(*command, *judge(ill), "--output_dir", tmp_path / "d")
        assert status == 1
        assert "2 questions got no reply from the judge ({'server_error': 2}; the server says 500: 'oops')" in err
        assert "same command again to ask these alone" in err
    status, _, err = rlhf_jax(*command, *judge(ill), "--accept_missing", "true", "--output_dir", tmp_path / "e")
    assert "2 of 6 judgements hold no rating" in err  # the score's own rule
    before, ill.behaviour = len(ill.asked), lambda n, body: "[[5]]"
    status, out, err = rlhf_jax(*command, *judge(ill), "--output_dir", tmp_path / "d")
    assert status == 0, err
    assert (printed(out)["score"]["value"], len(ill.asked) - before) == (5.0, 2)
    half = serve(lambda n, body: "[[5]]" if "81" in body["messages"][1]["content"] else "Good!")
    status, _, err = rlhf_jax(*command, *judge(half), "--output_dir", tmp_path / "c")
    assert status == 1
    assert "4 of 6 judgements hold no rating" in err


def test_of_a_file_with_several_models_one_is_chosen(mt, rlhf_jax, tmp_path):
    path = write_lines(tmp_path / "gpt-4_single.jsonl", [
        {"question_id": i, "turn": turn, "score": score + turn, "model": model} for model, score in (("a", 3), ("b", 6))
        for i in (81, 101, 141) for turn in (1, 2)])
    command = [*MT, "--data_dir", mt, "--annotations", path]
    status, _, err = rlhf_jax(*command, "--output_dir", tmp_path / "1")
    assert status == 1
    assert "holds judgements of 2 models; say whose are scored with label: a, b" in err
    status, _, err = rlhf_jax(*command, "--label", "c", "--output_dir", tmp_path / "2")
    assert "holds no judgements of label = 'c'; it has a, b" in err
    status, out, err = rlhf_jax(*command, "--label", "b", "--output_dir", tmp_path / "3")
    assert status == 0, err
    assert (printed(out)["score"]["value"], printed(out)["turn_2_minus_1"]["value"]) == (7.5, 1.0)


def test_the_official_questions_and_prompts_render(shared):
    """80 questions, 30 references, 160 judge prompts without a place left open, 60 of them with references."""
    from rlhf_jax.data.benchmark_files import Answer
    from rlhf_jax.workflow.chat_benchmarks.mt_bench import MtBench

    bench = MtBench(shared / "eval/mt-bench")
    assert len(bench.questions) == 80
    assert len(bench._references) == 30
    texts = [bench._text(q, Answer(("one", "two")), turn) for q in bench.questions for turn in (1, 2)]
    assert len(texts) == 160
    assert not any(re.search(r"\{(question|answer|ref_answer)(_\d)?\}", text) for text in texts)
    assert sum("eference" in text.split("###")[0] for text in texts) >= 60


# files and options


def test_a_dry_run_shows_the_first_questions(mt, world, serve, rlhf_jax, tmp_path):
    server = serve(lambda n, body: "x")
    status, out, err = rlhf_jax(*MT, "--data_dir", mt, "--model_name_or_path", world / "base", *judge(server),
                                "--output_dir", tmp_path / "out", "--dry-run")
    assert status == 0, err
    assert "first of 81" in out
    assert not server.asked


@pytest.mark.parametrize(("words", "more"), [
    ("exactly one of model_name_or_path", []), ("answers need a judge", ["--outputs", "o.json"]),
    ("judge has no effect beside annotations", ["--annotations", "a", "--judge.url", "http://h", "--judge.model", "m"]),
    ("outputs has no effect beside annotations", ["--annotations", "a", "--outputs", "o"]),
    ("answering has no effect beside annotations", ["--annotations", "a", "--answering.seed", "1"]),
    ("label has no effect beside annotations", ["--annotations", "a", "--label", "l"]),
    ("style_tokenizer has no effect beside annotations alone",
     ["--annotations", "a", "--name", "arena_hard", "--style_tokenizer", "t"]),
    ("version = 'v0.1' has no effect with name", ["--annotations", "a", "--version", "v0.1"]),
    ("judge.max_tokens = 4 has no effect on alpaca_eval",
     ["--outputs", "o", "--judge.url", "http://h", "--judge.model", "m", "--judge.max_tokens", "4"]),
])
def test_options_without_effect_are_refused(rlhf_jax, words, more):
    status, _, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", "d", "--output_dir", "o", *more)
    assert status == 2
    assert words in err


def test_a_folder_without_the_official_files_is_said_which(rlhf_jax, tmp_path, alpaca, outputs):
    status, _, err = rlhf_jax("benchmark", "--name", "mt_bench", "--data_dir", tmp_path, "--annotations", "a",
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert "holds no questions: question.jsonl" in err
    (alpaca / "alpaca_eval_clf.txt").unlink()
    status, _, err = rlhf_jax("benchmark", "--name", "alpaca_eval", "--data_dir", alpaca, "--outputs", outputs,
                              "--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "m", "--output_dir",
                              tmp_path / "o")
    assert status == 1
    assert "holds no prompt of the judge: alpaca_eval_clf.txt" in err


def test_compressed_files_are_read(arena, rlhf_jax, tmp_path):
    path = arena / "question.jsonl"
    with gzip.open(f"{path}.gz", "wb") as stream:
        stream.write(path.read_bytes())
    path.unlink()
    status, _, err = rlhf_jax(*ARENA, "--data_dir", arena, "--annotations", tmp_path / "no.jsonl", "--output_dir",
                              tmp_path / "out")
    assert status == 1
    assert "no.jsonl" in err
