"""A served model as a judge and as a reward model, against a server of the test's own."""

import json
import math

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.scorer import JudgeScoring, Judging, RewardServerScoring
from rlhf_jax.config.server import Access, Server
from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import text_group
from rlhf_jax.remote import RemoteError
from rlhf_jax.scoring import Comparing
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.scoring.rubric import PAIRS, SINGLE, Rubric, read_rubric
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.stages.evaluate import evaluate_scorer


def group(prompt, *texts, name="p"):
    return text_group(name, prompt, [(text, {}) for text in texts])


def scores(scorer, asked):
    return scores_in(scorer.score([asked]))[0]


@pytest.fixture
def judge(serve, lone_mesh, tmp_path):
    """judge(behaviour, **options) -> (the scorer, its server)."""

    def opened(behaviour, kind=JudgeScoring, **options):
        server = serve(behaviour)
        asked = Server(url=server.url, model="j", access=Access(retry_wait=0.0, max_retries=1))
        more = {"judging": Judging(**options)} if kind is JudgeScoring else options
        return open_scorer(kind(server=asked, **more), lone_mesh, "proxy", tmp_path), server

    return opened


def longer_wins(number, body):
    text = body["messages"][-1]["content"]
    first, second = (text.partition(f"<answer {name}>\n")[2].partition("\n</answer")[0] for name in "AB")
    return f"Hm. [[{'A' if len(first) > len(second) else 'B' if len(second) > len(first) else 'C'}]]"


def test_both_orders_are_asked(judge):
    scorer, server = judge(longer_wins)
    assert isinstance(scorer, Comparing)
    assert scorer.compare([("q", "aaa", "b"), ("q", "a", "bbb"), ("q", "a", "b")]) == [1.0, 0.0, 0.5]
    assert len(server.asked) == 6
    assert all(body["temperature"] == 0.0 and body["max_tokens"] == 2048 for _, body, _ in server.asked)


def test_a_judge_that_prefers_a_place_says_nothing(judge):
    scorer, _ = judge(lambda n, body: "[[A]]")
    assert scorer.compare([("q", "aaa", "b")]) == [0.5]
    assert scorer.orders([("q", "aaa", "b")]) == [(1.0, 0.0)]


def test_a_win_in_one_order_and_a_tie_in_the_other_is_no_win(judge):
    def hesitant(number, body):
        said = longer_wins(number, body)
        return "[[C]]" if said.endswith("[[B]]") else said

    scorer, _ = judge(hesitant)
    assert scorer.compare([("q", "aaa", "b"), ("q", "a", "bbb"), ("q", "a", "b")]) == [0.5, 0.5, 0.5]
    assert scorer.orders([("q", "aaa", "b")]) == [(1.0, 0.5)]


def test_scores_of_n_come_from_a_tournament(judge):
    scorer, server = judge(longer_wins)
    assert scores(scorer, group("q", "a", "bb", "ccc")) == [0.0, 0.5, 1.0]
    assert len(server.asked) == 6
    knock_out, _ = judge(longer_wins, method="knock_out")
    assert scores(knock_out, group("q", "a", "bb", "ccc")) == [0.0, 0.5, 1.0]


def test_a_reply_without_verdict_is_a_failure_and_no_score(judge):
    def undecided(number, body):
        return "I like both." if "bad" in body["messages"][-1]["content"] else longer_wins(number, body)

    scorer, _ = judge(undecided)
    assert scorer.compare([("q", "aaa", "b"), ("q", "bad", "b")]) == [1.0, None]
    assert scorer.failures == {"no_verdict": 2}
    decided, not_decided = scorer.orders([("q", "aaa", "b"), ("q", "bad", "b")])
    assert (decided, scorer.joined(decided)) == ((1.0, 1.0), 1.0)
    assert all(map(math.isnan, not_decided))
    assert scorer.joined(not_decided) == 0.5  # as RewardBench has it


def test_a_judge_that_decides_what_is_easy_alone_has_half_of_the_rest(judge):
    hard = [Example("q", (f"bad {i}", "b"), ((0, 1),), prompt_id=f"hard {i}") for i in range(3)]
    easy = [Example("q", ("aaa", "b"), ((0, 1),), prompt_id="easy")]
    scorer, _ = judge(lambda n, body: "Both." if "bad" in body["messages"][-1]["content"] else longer_wins(n, body))
    report, _ = evaluate_scorer(scorer, easy + hard, Funnel(), 0)
    assert report.preference.estimates["accuracy"].value == (1 + 3 * 0.5) / 4
    assert report.failures == {"no_verdict": 6}
    assert report.benchmark["position/inconsistent"].value == 0  # of the one that was decided


@pytest.mark.parametrize("said", ["[[nan]]", "[[1e999]]", "[[100]]", "[[-3]]", "in [[2023]]", "[[0]]"])
def test_a_rating_off_the_scale_is_none(judge, said):
    scorer, _ = judge(lambda n, body: said if "poor" in body["messages"][-1]["content"] else "[[7]]", judges="single")
    assert scores(scorer, group("q", "splendid", "poor")) == [7.0, None]
    assert scorer.failures == {"no_verdict": 1}


def test_a_judge_that_never_keeps_to_the_format_is_named(judge):
    scorer, _ = judge(lambda n, body: "I like both.")
    with pytest.raises(ValueError, match=r"judge 'j' never answered in the format.*8 replies.*'I like both\.'"):
        scorer.compare([(f"q{i}", "a", "b") for i in range(4)])


def test_a_rating_of_each_answer(judge):
    scorer, _ = judge(lambda n, body: "[[7.5]]" if "splendid" in body["messages"][-1]["content"] else "no idea",
                      judges="single")
    assert not isinstance(scorer, Comparing)
    assert scores(scorer, group("q", "splendid", "poor")) == [7.5, None]
    assert scorer.failures == {"no_verdict": 1}


def test_a_model_without_a_template_continues_the_rubrics_text(judge):
    scorer, server = judge(lambda n, body: {"choices": [{"text": " [[6]]"}]}, judges="single", endpoint="completions")
    assert scores(scorer, group("what?", "that")) == [6.0]
    path, body, _ = server.asked[0]
    assert path == "/v1/completions"
    assert body["prompt"].startswith("You judge answers")
    assert "what?" in body["prompt"]


def test_a_conversation_is_quoted_turn_by_turn_and_tool_calls_are_refused(judge):
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three {answer}"}]
    scorer, server = judge(lambda n, body: "[[5]]", judges="single")
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    assert scores(scorer, group(talk, [{"role": "assistant", "content": "four"}], calls)) == [5.0, None]
    assert scorer.failures == {"tool_calls_not_rendered": 1}
    said = server.asked[0][1]["messages"][-1]["content"]
    assert said.index("one") < said.index("<turn> assistant\n two") < said.index("three {answer}") < said.index("four")


def test_a_rubric_of_ones_own(judge, tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text('user: "{question} {{x}} 1={answer_a} 2={answer_b}"\nverdict: "winner: (\\\\w+)"\n'
                    "a: one\nb: two\ntie: none\n")
    scorer, server = judge(lambda n, body: "winner: two, no, winner: one", rubric=str(path))
    other, _ = judge(lambda n, body: "", rubric=str(path), method="knock_out")
    assert scorer.compare([("q", "x", "y")]) == [0.5]
    assert [{"role": "user", "content": "q {{x}} 1=x 2=y"}] in [body["messages"] for _, body, _ in server.asked]
    before = scorer.key
    path.write_text(path.read_text().replace("winner", "best"))
    scorer, _ = judge(lambda n, body: "", rubric=str(path))
    assert len({before, scorer.key, other.key}) == 3


@pytest.mark.parametrize(("text", "words"), [
    ("[a]", "holds no text `user`"), ("user: '{question} {answer_a}'", r"has no \{answer_b\}"),
    ("user: '{question} {answer_a} {answer_b}'\ncolour: red", "'colour' is no key"),
    ("user: '{question} {answer_a} {answer_b}'\nverdict: '['", "is no expression"),
    ("user: '{question} {answer_a} {answer_b}'\nverdict: 'x'", "has 0 groups"),
    ("user: '{question} {answer_a} {answer_b}'\na: B", "three different words"), ("user: 'x", "is no YAML"),
    ("user: '{question} {answer_a} {answer_b}'\nmost: 5", "most has no effect"),
    ("user: '{question} {answer_a} {answer_b}'\nleast: true", "'least' is no key of a rubric, or what it holds"),
])
def test_a_rubric_that_cannot_be_used_says_why(tmp_path, text, words):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_rubric(str(tmp_path / "r.yaml"), pairs=True)


def test_the_scale_of_a_rubric_has_a_lower_and_an_upper_end(tmp_path):
    (tmp_path / "r.yaml").write_text("user: '{question} {answer}'\nleast: 5\nmost: 1")
    with pytest.raises(ValueError, match="least = 5 is more than most = 1"):
        read_rubric(str(tmp_path / "r.yaml"), pairs=False)


def test_the_rubrics_here_are_whole():
    assert PAIRS.compares
    assert not SINGLE.compares
    assert PAIRS.outcome("x [[A]] y [[C]]") == 0.5
    assert SINGLE.outcome("[[8]]") == 8.0
    assert SINGLE.outcome("[[good]]") is None
    assert Rubric("{answer}").conversation(answer="x") == [{"role": "user", "content": "x"}]


def test_what_costs_and_where_it_is_kept_is_no_part_of_the_key(serve, lone_mesh, tmp_path):
    server = serve(longer_wins)

    def key(**changes):
        asked = {"url": server.url, "model": "j", **changes}
        return open_scorer(JudgeScoring(server=build(Server, asked)), lone_mesh, "proxy", tmp_path).key

    assert key() == key(cache_dir=str(tmp_path / "k"), max_requests=3, concurrency=2, timeout=9.0)
    assert key() != key(model="k")


# a reward model behind HTTP


@pytest.mark.parametrize(("endpoint", "answer"), [
    ("classify", lambda x: {"probs": [x]}), ("pooling", lambda x: {"data": [x]}),
    ("pooling", lambda x: {"data": [[0.0], [x]]}), ("score", lambda x: {"score": x})])
def test_a_served_reward_model_scores_conversations(judge, endpoint, answer):
    def rewards(number, body):
        text = body["text_2"] if endpoint == "score" else body["messages"][-1]["content"]
        return {"data": [{"index": 0, **answer(float(len(text)) - 5)}]}

    scorer, server = judge(rewards, RewardServerScoring, endpoint=endpoint)
    talk = [{"role": "user", "content": "q"}]
    found = scorer.score([group(talk, "aa", "a"), group(talk, "bbbb", name="r")])
    assert found == [[{"": -3.0}, {"": -4.0}], [{"": -1.0}]]
    path, body, _ = server.asked[0]
    assert path == f"/v1/{endpoint}"
    if endpoint == "score":
        assert body["text_1"] == "q"
    else:
        assert body["use_activation"] is False
        assert [m["role"] for m in body["messages"]] == ["user", "assistant"]


def test_plain_text_is_given_as_plain_text(judge):
    scorer, server = judge(lambda n, body: {"data": [{"probs": [1.0]}]}, RewardServerScoring)
    scorer.score([group("Once", " upon")])
    assert server.asked[0][1]["input"] == "Once upon"


def test_no_number_is_no_score_and_several_need_a_choice(judge):
    def nan(number, body):
        return json.dumps({"data": [{"probs": [float("nan")]}]}).encode()

    scorer, _ = judge(nan, RewardServerScoring)
    assert scorer.score([group("q", "a")]) == [[None]]
    assert scorer.failures == {"garbage": 1}
    two = {"data": [{"probs": [0.1, 0.9]}]}
    scorer, _ = judge(lambda n, body: two, RewardServerScoring)
    with pytest.raises(RemoteError, match="2 numbers; say which one is the score with output"):
        scorer.score([group(f"q{i}", "a") for i in range(8)])
    scorer, _ = judge(lambda n, body: two, RewardServerScoring, output=1)
    assert scorer.score([group("q", "a")]) == [[{"": 0.9, "0": 0.1}]]
