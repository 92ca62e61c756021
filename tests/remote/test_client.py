"""The HTTP client against a server that answers rightly, refuses, sends garbage, hangs, and dies half-way."""

import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.server import Access, Server
from rlhf_jax.remote import BudgetSpent, Client, RemoteError, chat, chat_text, completion, completion_text

QUICK, NOBODY = Access(retry_wait=0.0, max_retries=1), "http://127.0.0.1:9/v1"


def questions(count):
    return [chat("m", [{"role": "user", "content": f"q{i}"}], temperature=0.0) for i in range(count)]


def echo(number, body):
    return "re: " + body["messages"][-1]["content"]


def options(server, **changes):
    quick = {"retry_wait": 0.0, "timeout": 5.0, "concurrency": 4}
    return build(Server, {"url": server.url, "model": "m", **quick, **changes})


def ask(server, folder, count=12, **changes):
    failures = Counter()
    found = Client(options(server, **changes), folder).ask(questions(count), chat_text, failures)
    return found, failures


ALL = [f"re: q{i}" for i in range(12)]


def test_every_question_is_asked_once_in_this_run_and_in_the_next(serve, tmp_path):
    server = serve(echo)
    assert ask(server, tmp_path) == (ALL, {})
    assert set(server.questions().values()) == {1}
    assert ask(server, tmp_path, count=14)[0] == [*ALL, "re: q12", "re: q13"]
    assert len(server.asked) == 14
    path, body, headers = server.asked[0]
    assert (path, body["temperature"], "Authorization" in headers) == ("/v1/chat/completions", 0.0, False)


def test_the_same_question_twice_is_one_question_and_another_setting_is_another(serve, tmp_path):
    server, client_asks = serve(echo), questions(1) * 3
    client = Client(options(server), tmp_path)
    assert client.ask(client_asks, chat_text, Counter()) == ["re: q0"] * 3
    assert len(server.asked) == 1
    warmer = chat("m", [{"role": "user", "content": "q0"}], temperature=1.0)
    client.ask([warmer], chat_text, Counter())
    assert len(server.asked) == 2


def test_an_overloaded_server_is_asked_again_when_it_says_so(serve, tmp_path):
    server = serve(lambda n, body: (429, {"Retry-After": "0.2"}, "slow down") if n == 0 else echo(n, body))
    start = time.monotonic()
    assert ask(server, tmp_path, count=1) == (["re: q0"], {})
    assert (len(server.asked), time.monotonic() - start > 0.2) == (2, True)


@pytest.mark.parametrize("garbage", [b"<html>", b"[1]", {"choices": []}, {"error": "x"},
                                     {"choices": [{"message": {"content": None}}]}, (500, {}, "oops")])
def test_garbage_is_no_answer_and_no_score(serve, tmp_path, garbage):
    server = serve(lambda n, body: garbage if body["messages"][-1]["content"] == "q1" else echo(n, body))
    found, failures = ask(server, tmp_path, count=4, max_retries=2)
    assert found == ["re: q0", None, "re: q2", "re: q3"]
    assert failures == {"server_error" if isinstance(garbage, tuple) else "garbage": 1}
    assert server.questions() == {"q0": 1, "q1": 3, "q2": 1, "q3": 1}
    server.behaviour = echo
    assert ask(server, tmp_path, count=4)[0] == ALL[:4]  # a failure is not kept as an answer


def test_a_server_that_hangs_is_given_up_on_and_the_question_counted(serve, tmp_path):
    server = serve(lambda n, body: None if body["messages"][-1]["content"] == "q1" else echo(n, body))
    assert ask(server, tmp_path, count=3, timeout=0.3, max_retries=1) == (["re: q0", None, "re: q2"], {"timeout": 1})


def test_a_run_whose_server_dies_half_way_goes_on_with_what_is_left(serve, tmp_path):
    server = serve(lambda n, body: echo(n, body) if n < 5 else "cut")
    with pytest.raises(RemoteError, match=r"broke off.*are kept in .*same command again"):
        ask(server, tmp_path, concurrency=1, max_retries=1)
    before = dict(server.questions())
    assert sum(before.values()) == 7
    server.behaviour = echo
    assert ask(server, tmp_path, concurrency=1) == (ALL, {})
    asked_again = {q for q, times in server.questions().items() if times > before.get(q, 0)}
    assert asked_again == {f"q{i}" for i in range(5, 12)}


KILLED = """
import sys
from collections import Counter
from pathlib import Path
from rlhf_jax.config.server import Access, Server
from rlhf_jax.remote import Client, chat, chat_text
asked = [chat("m", [{"role": "user", "content": f"q{i}"}], temperature=0.0) for i in range(12)]
server = Server(url=sys.argv[1], model="m", access=Access(concurrency=2))
Client(server, Path(sys.argv[2])).ask(asked, chat_text, Counter())
"""


def test_a_run_that_is_killed_goes_on_and_asks_again_only_what_was_in_flight(serve, tmp_path):
    killed = threading.Event()

    def behaviour(number, body):
        if number >= 6 and not killed.is_set():
            process.kill()
            process.wait()
            killed.set()
        return echo(number, body)

    server = serve(behaviour)
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(tmp_path)])
    assert killed.wait(60)
    assert ask(server, tmp_path) == (ALL, {})
    again = [question for question, times in server.questions().items() if times > 1]
    assert len(again) <= 3  # two were being answered, and one answer may not have reached the disk
    assert max(server.questions().values()) == 2


def test_a_server_that_is_not_there_is_named(tmp_path):
    client = Client(Server(url=NOBODY, model="m", access=QUICK), tmp_path)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9/v1 cannot be reached"):
        client.ask(questions(1), chat_text, Counter())


def test_a_run_of_failures_ends_the_run(serve, tmp_path):
    server = serve(lambda n, body: b"nothing")
    with pytest.raises(RemoteError, match="8 questions in a row"):
        ask(server, tmp_path, count=100, concurrency=1, max_retries=0)
    assert len(server.asked) == 8


def test_one_question_that_the_server_refuses_is_counted_and_not_repeated(serve, tmp_path):
    server = serve(lambda n, body: (400, {}, "too long") if body["messages"][-1]["content"] == "q0" else echo(n, body))
    assert ask(server, tmp_path, count=2) == ([None, "re: q1"], {"refused": 1})
    assert server.questions() == {"q0": 1, "q1": 1}


def test_many_questions_that_a_working_server_refuses_do_not_end_the_run(serve, tmp_path):
    """Nor the same command given again, when all that is left to ask are those."""
    server = serve(lambda n, body: echo(n, body) if body["messages"][-1]["content"] == "q0" else (413, {}, "too long"))
    for _ in range(2):
        assert ask(server, tmp_path, count=12, concurrency=1) == (["re: q0", *[None] * 11], {"refused": 11})


def test_a_server_that_refuses_everything_is_not_asked_everything(serve, tmp_path):
    server = serve(lambda n, body: (400, {}, "no such parameter"))
    with pytest.raises(RemoteError, match=r"no such parameter.*8 questions in a row"):
        ask(server, tmp_path, count=100, concurrency=1)
    assert len(server.asked) == 8


def test_failures_of_one_call_are_not_held_against_the_next(serve, tmp_path):
    server = serve(lambda n, body: b"nothing" if n < 7 else b"nothing" if n == 7 else echo(n, body))
    client = Client(options(server, max_retries=0, concurrency=1), tmp_path)
    assert client.ask(questions(7), chat_text, Counter()) == [None] * 7
    assert client.ask(questions(3), chat_text, Counter()) == [None, "re: q1", "re: q2"]


@pytest.mark.parametrize(("status", "words"), [(401, "token_env or token_file"), (404, "ends in /v1")])
def test_a_refusal_of_everything_stops_at_once(serve, tmp_path, status, words):
    server = serve(lambda n, body: (status, {}, "no"))
    with pytest.raises(RemoteError, match=words):
        ask(server, tmp_path, concurrency=1)
    assert len(server.asked) == 1


def test_the_budget_of_requests_holds_over_runs_and_retries(serve, tmp_path):
    server = serve(lambda n, body: b"garbage" if n == 0 else echo(n, body))
    with pytest.raises(BudgetSpent, match=r"max_requests = 5 is spent \(0 in earlier runs, 5 by this process\)"):
        ask(server, tmp_path, max_requests=5)
    assert len(server.asked) == 5
    with pytest.raises(BudgetSpent, match=r"5 in earlier runs, 0 by this"):
        ask(server, tmp_path, max_requests=5)
    assert len(server.asked) == 5
    assert ask(server, tmp_path, max_requests=13)[0] == ALL
    assert len(server.asked) == 13


def test_the_budget_of_tokens_holds_and_belongs_to_the_kept_answers(serve, tmp_path):
    server = serve(echo)  # ten tokens a question
    with pytest.raises(BudgetSpent, match="max_total_tokens = 35"):
        ask(server, tmp_path, concurrency=1, max_total_tokens=35)
    assert len(server.asked) == 4
    with pytest.raises(BudgetSpent, match="40 in earlier runs"):
        ask(server, tmp_path, concurrency=1, max_total_tokens=35)
    assert len(server.asked) == 4


def test_two_processes_share_a_budget_and_each_others_answers(serve, tmp_path):
    server = serve(echo)
    for place in range(2):
        with pytest.raises(BudgetSpent):
            Client(options(server, max_requests=5), tmp_path / "fresh" / str(place), place, 2).ask(
                questions(12), chat_text, Counter())
    assert len(server.asked) == 4  # 5 // 2 each
    Client(options(server), tmp_path / "all", 0, 2).ask(questions(3), chat_text, Counter())
    asked = len(server.asked)
    assert Client(options(server), tmp_path / "all", 1, 2).ask(questions(3), chat_text, Counter()) == ALL[:3]
    assert len(server.asked) == asked


def test_two_clients_of_one_folder_share_answers_and_budget(serve, tmp_path):
    server = serve(echo)
    one, other = (Client(options(server, max_requests=5), tmp_path) for _ in range(2))
    one.ask(questions(3), chat_text, Counter())
    assert other.ask(questions(4), chat_text, Counter()) == ALL[:4]
    assert len(server.asked) == 4
    with pytest.raises(BudgetSpent):
        one.ask(questions(6), chat_text, Counter())
    assert len(server.asked) == 5


def test_half_a_character_is_asked_about_too(serve, tmp_path):
    server = serve(echo)
    asked = [chat("m", [{"role": "user", "content": "\ud83d!"}])]
    assert Client(options(server), tmp_path).ask(asked, chat_text, Counter()) == ["re: \ud83d!"]


def test_requests_keep_to_the_rate(serve, tmp_path):
    server, start = serve(echo), time.monotonic()
    ask(server, tmp_path, count=5, requests_per_minute=1200)  # one in 50 ms
    assert time.monotonic() - start > 0.2


def test_a_line_that_was_cut_off_is_asked_again_and_breaks_nothing(serve, tmp_path):
    server = serve(echo)
    ask(server, tmp_path, count=3)
    path = tmp_path / "answers-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert ask(server, tmp_path, count=4)[0] == ALL[:4]
    assert len(server.asked) == 5
    assert ask(server, tmp_path, count=4)[0] == ALL[:4]
    assert len(server.asked) == 5


def test_a_token_is_sent_and_written_nowhere(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret-token")
    server = serve(lambda n, body: {"choices": [{"message": {"content": "x"}}], "you": "s3cret-token"})
    ask(server, tmp_path, count=1, token_env="JUDGE_TOKEN")
    assert server.asked[0][2]["Authorization"] == "Bearer s3cret-token"
    assert "s3cret" not in (tmp_path / "answers-00000.jsonl").read_text()
    monkeypatch.setenv("JUDGE_TOKEN", "EMPTY")  # a placeholder, and a word like any other
    server.behaviour = lambda n, body: {"choices": [{"message": {"content": "The list is EMPTY: [[B]]"}}]}
    assert ask(server, tmp_path / "other", count=1, token_env="JUDGE_TOKEN")[0] == ["The list is EMPTY: [[B]]"]
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret-token")
    server.behaviour = lambda n, body: (403, {}, "bad token s3cret-token")
    with pytest.raises(RemoteError, match=r"bad token \[token\]"):
        ask(server, tmp_path, count=2, token_env="JUDGE_TOKEN")


def test_a_token_may_lie_in_a_file(serve, tmp_path):
    (tmp_path / "token").write_text("abc\n")
    server = serve(echo)
    ask(server, tmp_path / "kept", count=1, token_file=str(tmp_path / "token"))
    assert server.asked[0][2]["Authorization"] == "Bearer abc"


@pytest.mark.parametrize(("given", "words"), [({"token_env": "NO_SUCH_TOKEN"}, "NO_SUCH_TOKEN.*not set"),
                                              ({"token_file": "/no/such/file"}, "there is no such file")])
def test_a_missing_token_is_said_before_anything_is_asked(tmp_path, given, words):
    with pytest.raises(ValueError, match=words):
        Client(Server(url="http://h/v1", model="m", access=Access(**given)), tmp_path)


@pytest.mark.parametrize(("url", "words"), [
    ("localhost:8000", "give an address like"), ("https://me:pw@host/v1", "'host/v1'"),
    ("https://host/v1?key=pw", "'https://host/v1'")])
def test_an_address_holds_no_secret(url, words):
    with pytest.raises(ValueError, match=words) as error:
        Server(url=url, model="m")
    assert "pw" not in str(error.value)


def test_completions_take_text_or_ids(serve, tmp_path):
    server = serve(lambda n, body: {"choices": [{"text": f"{body['prompt']}!"}]})
    asked = [completion("m", "a"), completion("m", [1, 2], max_tokens=4)]
    assert Client(options(server), tmp_path).ask(asked, completion_text, Counter()) == ["a!", "[1, 2]!"]
    assert server.asked[0][0] == "/v1/completions"


def test_several_servers_share_the_work_and_what_one_leaves_behind_another_is_asked(serve, tmp_path):
    first, dying = serve(echo), serve(lambda n, body: echo(n, body) if n < 2 else "cut")
    client = Client(options(first, concurrency=1, max_retries=0), tmp_path, replicas=[dying.url, NOBODY])
    failures = Counter()
    assert client.ask(questions(12), chat_text, failures) == ALL
    assert not failures
    assert (client.addresses.answered[dying.url], client.addresses.answered[first.url]) == (2, 10)
    assert len(dying.asked) == 3 or len(dying.asked) == 4  # two were in flight when it died, at most
    dying.behaviour = echo  # it came back: the next questions find it again
    client.ask([chat("m", [{"role": "user", "content": f"r{i}"}]) for i in range(12)], chat_text, Counter())
    assert client.addresses.answered[dying.url] > 2


def test_answers_kept_under_a_name_serve_whatever_the_address(serve, tmp_path):
    first, second = serve(echo), serve(echo)
    for server in (first, second):
        assert Client(options(server), tmp_path, name="n").ask(questions(12), chat_text, Counter()) == ALL
    assert (len(first.asked), len(second.asked)) == (12, 0)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_one_server_refuses_another_is_asked_once(serve, tmp_path, status):
    picky = serve(lambda n, body: (status, {}, "no") if body["messages"][-1]["content"] == "q2" else echo(n, body))
    good, failures = serve(echo), Counter()
    client = Client(options(picky, concurrency=1), tmp_path, replicas=[good.url])
    assert client.ask(questions(12), chat_text, failures) == ALL
    assert not failures
    assert client.addresses.answered[picky.url] > 2  # it refused a question, and is up
    assert max(picky.questions().values()) == 1


def test_what_two_servers_refuse_is_asked_of_no_third(serve, tmp_path):
    servers = [serve(lambda n, body: (400, {}, "no")) for _ in range(3)]
    client, failures = Client(options(servers[0]), tmp_path, replicas=[s.url for s in servers[1:]]), Counter()
    assert client.ask(questions(1), chat_text, failures) == [None]
    assert (failures, sum(len(server.asked) for server in servers)) == ({"refused": 1}, 2)


def test_of_a_refused_question_a_server_that_is_down_is_asked_too(serve, tmp_path):
    """It alone may have an answer; the one that refused is not asked again."""
    picky = serve(lambda n, body: (400, {}, "too long"))
    busy = serve(lambda n, body: (503, {}, "busy") if n < 2 else echo(n, body))
    client = Client(options(picky, concurrency=1, max_retries=3), tmp_path, replicas=[busy.url])
    assert client.ask(questions(1), chat_text, Counter()) == ["re: q0"]
    assert (len(picky.asked), len(busy.asked)) == (1, 3)
    gone = serve(lambda n, body: (503, {}, "busy"))
    client = Client(options(picky, max_retries=1), tmp_path / "other", replicas=[gone.url])
    with pytest.raises(RemoteError, match="says 503"):
        client.ask(questions(1), chat_text, Counter())
    assert (len(picky.asked), len(gone.asked)) == (2, 2)


def test_a_kept_answer_says_whose_it_is_and_when_it_came(serve, tmp_path):
    first, second = serve(echo), serve(echo)
    Client(options(first, concurrency=1), tmp_path, name="n").ask(questions(2), chat_text, Counter())
    client = Client(options(second, concurrency=1), tmp_path, name="n")
    client.ask(questions(4)[::-1], chat_text, Counter())
    found = [client.origin(question) for question in questions(4)]
    assert [origin.url for origin in found] == [first.url, first.url, second.url, second.url]
    assert [origin.order for origin in found] == [0, 1, 3, 2]


def test_when_all_servers_are_gone_all_are_named(serve, tmp_path):
    server = serve(lambda n, body: "cut")
    client = Client(options(server, max_retries=1), tmp_path, replicas=[NOBODY])
    with pytest.raises(RemoteError, match=rf"{server.url}, {NOBODY} cannot be reached or broke off"):
        client.ask(questions(3), chat_text, Counter())
