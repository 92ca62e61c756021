"""A stage sampled by an engine outside: what is wrong with the engine is caught by name, what was answered is kept.

The engine is our own sampler behind a server of the test's own.
"""

import dataclasses
import json
import threading

import numpy as np
import pytest

from rlhf_jax.config.engine import EngineOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.server import Access
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.remote import RemoteError
from rlhf_jax.sampling.external import EngineMismatch
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.engine_gate import EngineGate, drawn_map
from rlhf_jax.workflow.hand_over import HandOverFailed, StaleWeights
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.shards import read_shards

N, NEW = 4, 12
QUICK = Access(concurrency=2, retry_wait=0.0, max_retries=1, timeout=600.0)


class Engine:
    """`behaviour` of a server that continues token ids with the weights of a policy.

    changes: of what is asked, before it is sampled. altered: what is made of an answer. after: how many POSTs are
    answered before one breaks off.
    """

    def __init__(self, context, policy, changes=None, altered=None, after=None):
        self.context, self.changes, self.after = context, changes or {}, after
        self.altered = altered or (lambda answer, asked: answer)
        self.lock, self.loads = threading.Lock(), {}
        self.load(policy)

    def load(self, policy):
        self.policy, self.params = policy, self.context.handed_over(policy, SamplingConfig(), "float32").params

    def __call__(self, number, body):
        if "model_path" in body:
            self.load(self.loads[body["model_path"]])
            return {}
        with self.lock:
            if self.after is not None:
                self.after -= 1
                if self.after < 0:
                    return "cut"
            asked = body | self.changes
            sampling = SamplingConfig(num_generations=N, temperature=asked["temperature"], top_k=max(asked["top_k"], 0),
                                      seed=asked["seed"], max_new_tokens=NEW, slots=4, block=6, prompt_length=64)
            group = PromptGroup("p", np.array(asked["prompt"], np.int32), ())
            ((_, made),) = self.context.sampler(self.policy, sampling, "float32").generate(self.params, [group])
        choices = [{"index": i, "token_ids": r.ids.tolist(), "finish_reason": r.finish_reason, "text": r.text,
                    "logprobs": {"token_logprobs": r.logps.tolist()}} for i, r in enumerate(made.responses[:body["n"]])]
        choices[0]["prompt_token_ids"] = asked["prompt"]
        return self.altered({"choices": choices, "usage": {"total_tokens": 10}}, asked)


@pytest.fixture(scope="module")
def context(make_context, start, tmp_path_factory):
    """A run whose engine has its programs already: nobody waits for a compiler."""
    context = make_context(tmp_path_factory.mktemp("run"))
    Engine(context, start)(0, {"prompt": [1, 2, 3], "n": 1, "temperature": 1.0, "top_k": -1, "seed": 0})
    return context


@pytest.fixture(scope="module")
def other(make_model, tmp_path_factory):
    """A policy of other weights."""
    return Checkpoint(make_model(tmp_path_factory.mktemp("other") / "model", seed=5))


@pytest.fixture
def sample(start, prompts, context, tmp_path):
    """sample(servers, changes of the engine's options, changes of the sampling) -> the stage's report."""
    context.sampled.policy = None

    def run(servers, sampling=None, folder="stage", policy=start, **changes):
        engine = EngineOptions(urls=tuple(server.url for server in servers), model="m", name="fake", version="1", **{
            "access": QUICK, "hand_over_wait": 0.0, "checked_prompts": 8, **changes})
        stage = SampleStage(policy=policy, prompts=GivenGroups(prompts[:6]), dtype="float32", shard_size=3,
                            sampling=SamplingConfig(num_generations=N, max_new_tokens=NEW, engine=engine,
                                                    **(sampling or {})))
        (tmp_path / folder).mkdir(exist_ok=True)
        return stage.run(tmp_path / folder, context)

    return run


def completions(server):
    """Prompts that were asked for all N samples, by how often."""
    asked = [tuple(body["prompt"]) for _, body, _ in server.asked if body.get("n") == N]
    return {prompt: asked.count(prompt) for prompt in asked}


def kept(folder):
    """How many answers of unfinished shards a stage's folder holds."""
    rows = [json.loads(line) for path in folder.glob("answers/*/answers-*.jsonl") for line in path.open()]
    return sum(row["answer"] is not None for row in rows)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@pytest.mark.longer
def test_a_stage_is_what_our_own_sampler_would_leave_and_is_the_same_again(sample, serve, context, start, prompts,
                                                                           tmp_path):
    server = serve(Engine(context, start))
    server.pages = {"/version": {"version": "1"}}
    report = sample([server])
    groups = read_shards(tmp_path / "stage")
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts[:6]]
    for group, prompt in zip(groups, prompts, strict=False):
        assert group.prompt_ids.tolist() == prompt.prompt_ids.tolist()
        assert len({r.ids.tobytes() for r in group.responses}) > 1
        for r in group.responses:
            stopped = int(r.ids[-1]) in start.stop_ids
            assert (r.finish_reason == "stop", len(r.ids) < NEW) in ((stopped, stopped), (True, False))
            assert r.text == start.decode_text(group.prompt_ids, r.ids[: len(r.ids) - stopped])
            assert len(r.logps) == len(r.ids)
    assert (report["prompts"], report["responses"], report["engine"]["version"]) == (6, 6 * N, "1")
    assert 0 < report["logps_max_difference"] < 1e-4
    own = SampleStage(policy=start, prompts=GivenGroups(prompts[:6]), dtype="float32", shard_size=3,
                      sampling=SamplingConfig(num_generations=N, max_new_tokens=NEW, slots=4, block=6))
    (tmp_path / "own").mkdir()
    there = set(report) - {"completions/mean_terminated_length"}
    assert there - set(own.run(tmp_path / "own", context)) == {"engine"}
    assert files(tmp_path / "own") == files(tmp_path / "stage")
    assert not (tmp_path / "stage" / "answers").exists()
    sample([server], folder="again")
    assert [g.to_json() for g in read_shards(tmp_path / "again")] == [g.to_json() for g in groups]


def test_what_names_a_stage(start, prompts):
    engine = EngineOptions(urls="http://a/v1", model="m", name="vllm", version="1")

    def inputs(engine):
        return SampleStage(policy=start, prompts=GivenGroups(prompts[:1]), dtype="float32", shard_size=1,
                           sampling=SamplingConfig(engine=engine)).inputs()["sampling"]

    assert "engine" not in inputs(None)  # the keys of our own stages are what they were
    assert inputs(engine)["engine"] == {"name": "vllm", "version": "1", "arguments": ""}
    moved = dataclasses.replace(engine, urls=("http://b/v1", "http://c/v1"), model="n", access=QUICK, checked_prompts=2)
    assert inputs(moved) == inputs(engine)
    for change in ({"name": "sglang"}, {"version": "2"}, {"arguments": "--dtype float32"}):
        assert inputs(dataclasses.replace(engine, **change)) != inputs(engine)


def test_stale_weights_are_caught_before_anything_is_sampled(sample, serve, context, other):
    server = serve(Engine(context, other))
    with pytest.raises(StaleWeights, match=rf"{server.url}: it holds other weights: .*does not answer for the weights"):
        sample([server])
    assert not completions(server)


@pytest.mark.longer
def test_of_two_servers_the_one_with_stale_weights_is_named(sample, serve, context, start, other):
    good, stale = serve(Engine(context, start)), serve(Engine(context, other))
    with pytest.raises(StaleWeights, match=stale.url) as error:
        sample([good, stale])
    assert good.url not in str(error.value)


@pytest.mark.longer
def test_where_rounding_hides_an_update_the_weights_from_before_are_still_caught(sample, serve, context, start, other):
    """A tolerance as wide as bfloat16 might need passes both weights; their difference tells them apart."""
    wide = {"max_logp_difference": 50.0, "max_mean_logp_difference": 50.0}
    server = serve(Engine(context, other))
    context.sampled.policy = other
    with pytest.raises(StaleWeights, match=r"still holds the weights from before: its log-probs show -?0% of the upd"):
        sample([server], **wide)
    server.behaviour = Engine(context, start)
    assert sample([server], **wide)["prompts"] == 6


@pytest.mark.longer
def test_the_stage_gives_weights_over_and_waits_until_the_engine_answers_for_them(sample, serve, context, start, other,
                                                                                  monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf_jax.workflow.hand_over._PAUSE", 0.01)
    engine = Engine(context, other)
    server = serve(engine)
    engine.loads[str(start.folder.resolve())] = start
    report = sample([server], arguments="--x 1", hand_over_urls=server.url + "/load", hand_over_wait=600.0,
                    hand_over_command=f"echo {{folder}} {{arguments}} > {tmp_path}/told")
    assert report["prompts"] == 6
    assert (tmp_path / "told").read_text() == f"{start.folder.resolve()} --x 1\n"
    slow = Engine(context, other)

    def later(number, body):
        if number == 9:
            slow.load(start)
        return slow(number, body)

    assert sample([serve(later)], folder="slow", hand_over_wait=600.0)["prompts"] == 6


@pytest.mark.parametrize(("command", "wait", "words"), [
    ("echo no memory; exit 3", 9.0, r"ended with status 3: .*'no memory\\n'"), ("sleep 9", 0.2, "did not end in")])
def test_a_hook_that_fails_is_named_with_what_it_said(sample, serve, context, start, command, wait, words):
    with pytest.raises(HandOverFailed, match=words):
        sample([serve(Engine(context, start))], hand_over_command=command, hand_over_wait=wait)
    with pytest.raises(HandOverFailed, match=r"hand_over_urls: http://127\.0\.0\.1:9/load cannot be reached"):
        sample([serve(Engine(context, start))], hand_over_urls="http://127.0.0.1:9/load")


def test_another_version_than_the_config_says_is_refused(sample, serve, context, start):
    server = serve(Engine(context, start))
    server.pages = {"/server_info": {"version": "2"}}
    with pytest.raises(StaleWeights, match=r"it is version 2, and engine\.version says 1"):
        sample([server])


@pytest.mark.longer
def test_weights_that_change_half_way_stop_the_stage_and_nothing_of_them_is_kept(sample, serve, context, start, other,
                                                                                tmp_path):
    engine = Engine(context, start)

    def restarted(number, body):
        if number == 4 + 3:  # the hand-over's four questions, and the first shard
            engine.load(other)
        return engine(number, body)

    server = serve(restarted)
    with pytest.raises(EngineMismatch, match="the engine holds other weights"):
        sample([server])
    assert files(tmp_path / "stage") == ["shard-00000.jsonl"]
    before = completions(server)
    server.behaviour = Engine(context, start)
    assert sample([server])["prompts"] == 6
    assert sorted(map(completions(server).get, before)) == [1, 1, 1, 2, 2, 2]


@pytest.mark.longer
@pytest.mark.parametrize(("changes", "sampling", "words"), [
    ({"temperature": 0.3}, {}, r"not drawn at temperature 1, .*as of a lower temperature"),
    ({"temperature": 2.0}, {"temperature": 0.4}, r"not drawn at temperature 0\.4, .*as of a higher temperature"),
    ({"temperature": 1.0}, {"temperature": 0.0}, "cannot have been drawn at temperature 0"),
    ({"top_k": -1}, {"top_k": 2}, "cannot have been drawn at temperature 1, top_k 2"),
    ({}, {"temperature": 0.4, "top_k": 3}, None), ({}, {"temperature": (1.0, 0.0)}, None)])
def test_another_temperature_or_filter_is_caught_and_the_right_one_is_not(sample, serve, context, start, changes,
                                                                          sampling, words, tmp_path):
    server = serve(Engine(context, start, changes))
    if words is None:
        assert sample([server], sampling)["responses"] == 6 * N
        return
    with pytest.raises(EngineMismatch, match=words):
        sample([server], sampling)
    assert files(tmp_path / "stage") == []


@pytest.mark.longer
def test_a_server_that_changes_its_weights_after_the_hand_over_is_named(sample, serve, context, start, other, tmp_path):
    good, bad = Engine(context, start), Engine(context, start)

    def changed(number, body):
        if number == 4:
            bad.load(other)
        return bad(number, body)

    servers = [serve(good), serve(good), serve(changed)]
    with pytest.raises(EngineMismatch, match=f"{servers[2].url}: the engine holds other weights"):
        sample(servers, access=dataclasses.replace(QUICK, concurrency=1), checked_prompts=1)
    assert (files(tmp_path / "stage"), kept(tmp_path / "stage")) == ([], 0)


@pytest.mark.longer
@pytest.mark.parametrize("said", [(500, {}, "out of memory"), (400, {}, "too long"), b"data: {}", {"error": "busy"}])
def test_a_question_without_an_answer_takes_no_other_answer_with_it(sample, serve, context, start, said, tmp_path):
    engine = Engine(context, start)
    lost = []

    def behaviour(number, body):
        if number == 4 + 1:
            lost.append(body["prompt"])
        return said if body["prompt"] in lost and body["n"] == N else engine(number, body)

    server = serve(behaviour)
    with pytest.raises(RemoteError, match=r"gave no answer to 1 of 3 questions: .*are kept: give the same command"):
        sample([server])
    assert (files(tmp_path / "stage"), kept(tmp_path / "stage")) == ([], 2)
    before = completions(server)
    server.behaviour = engine
    assert sample([server])["prompts"] == 6
    again = {prompt for prompt, times in completions(server).items() if times > before.get(prompt, 0)}
    assert again & set(before) == {tuple(lost[0])}


@pytest.mark.longer
def test_a_sample_that_the_engine_broke_off_is_asked_again(sample, serve, context, start):
    broken = []

    def aborts(answer, asked):
        if asked["n"] == N and not broken:
            broken.append(asked["prompt"])
            cut = answer["choices"][1]
            answer["choices"][1] = {**cut, "token_ids": cut["token_ids"][:2], "finish_reason": "abort",
                                    "logprobs": {"token_logprobs": cut["logprobs"]["token_logprobs"][:2]}}
        return answer

    server = serve(Engine(context, start, altered=aborts))
    assert sample([server])["prompts"] == 6
    assert sorted(completions(server).values()) == [1] * 5 + [2]


@pytest.mark.parametrize("broken", [
    lambda answer: {"choices": [{**choice, "logprobs": {"token_logprobs": [None] * len(choice["token_ids"])}}
                                for choice in answer["choices"]]},
    lambda answer: b"data: " + json.dumps(answer).encode() + b"\n\ndata: [DONE]\n\n",
    lambda answer: {"choices": [{k: v for k, v in choice.items() if k != "logprobs"} for choice in answer["choices"]]}])
def test_a_layout_that_cannot_pass_ends_the_hand_over_at_once(sample, serve, context, start, broken):
    server = serve(Engine(context, start, altered=lambda answer, asked: broken(answer)))
    with pytest.raises(EngineMismatch, match=f"{server.url} gives an answer of another layout") as error:
        sample([server], hand_over_wait=20.0)
    assert (type(error.value), len(server.asked)) == (EngineMismatch, 1)


@pytest.mark.longer
@pytest.mark.parametrize("busy", [{"object": "error", "message": "loading", "code": 503}, "abort"])
def test_an_engine_that_does_not_answer_yet_is_waited_for(sample, serve, context, start, busy, monkeypatch):
    monkeypatch.setattr("rlhf_jax.workflow.hand_over._PAUSE", 0.01)
    engine = Engine(context, start)

    def later(number, body):
        if number >= 3:
            return engine(number, body)
        return {"choices": [{"index": 0, "finish_reason": busy, "token_ids": None}]} if busy == "abort" else busy

    assert sample([serve(later)], hand_over_wait=600.0)["prompts"] == 6
    with pytest.raises(StaleWeights, match=r"it gives no answer \((in place of samples: .*loading|.*'abort')"):
        sample([serve(lambda number, body: later(0, body))], folder="never")


@pytest.mark.longer
def test_log_probs_after_the_temperature_are_named(sample, serve, context, start, lone_mesh):
    engine = EngineOptions(urls="http://h", model="m", name="fake", version="1")
    gate = EngineGate(drawn_map(Compute(start.config, mesh=lone_mesh), lone_mesh, False),
                      SamplingConfig(engine=engine), "float32", start)
    params = context.params(start)

    def processed(answer, asked):
        if asked["temperature"] == 1.0:
            return answer
        assert asked["n"] == 1  # the hand-over's: no shard is paid for
        for choice in answer["choices"]:
            ids = np.array(choice["token_ids"], np.int32)
            group = PromptGroup("p", np.array(asked["prompt"], np.int32), ())
            made = Response(ids, np.ones(len(ids), bool), logps=np.zeros(len(ids), np.float32))
            seen = gate.look(params, [dataclasses.replace(group, responses=(made,))], asked["temperature"])
            choice["logprobs"]["token_logprobs"] = seen.drawn.tolist()
        return answer

    for temperature in (0.4, (1.0, 0.4)):
        server = serve(Engine(context, start, altered=processed))
        with pytest.raises(EngineMismatch, match=rf"{server.url}: .* those at temperature 0\.4, .*raw_logprobs"):
            sample([server], {"temperature": temperature}, hand_over_wait=20.0)
        assert not completions(server)


def test_a_proxy_that_tokenises_again_is_caught_by_name(sample, serve, context, start):
    def again(answer, asked):
        answer["choices"][0]["prompt_token_ids"] = [1, *asked["prompt"]]
        return answer

    with pytest.raises(EngineMismatch, match="the prompt was tokenised again on its way"):
        sample([serve(Engine(context, start, altered=again))])


def test_tokens_replaced_on_their_way_do_not_pass(sample, serve, context, start, tmp_path):
    def replaced(answer, asked):
        for choice in answer["choices"]:
            choice["token_ids"][0] = choice["token_ids"][0] % 40 + 20
        return answer

    with pytest.raises(StaleWeights, match="it holds other weights"):
        sample([serve(Engine(context, start, altered=replaced))])


@pytest.mark.longer
def test_the_same_sample_n_times_is_no_sample_of_n(sample, serve, context, start):
    def copied(answer, asked):
        first = answer["choices"][0]
        return {**answer, "choices": [{**first, "index": i} for i in range(len(answer["choices"]))]}

    with pytest.raises(EngineMismatch, match=f"all {N} samples of each prompt are the same"):
        sample([serve(Engine(context, start, altered=copied))])


@pytest.mark.longer
def test_an_engine_that_dies_half_way_is_named_and_asked_for_the_rest_alone(sample, serve, context, start, tmp_path):
    server = serve(Engine(context, start, after=4 + 3 + 2))
    with pytest.raises(RemoteError, match=rf"{server.url} cannot be reached or broke off"):
        sample([server], access=dataclasses.replace(QUICK, concurrency=1, max_retries=0))
    assert files(tmp_path / "stage") == ["shard-00000.jsonl"]
    assert sum(completions(server).values()) == 6
    server.behaviour = Engine(context, start)
    sample([server])
    assert sorted(completions(server).values()) == [1] * 5 + [2]
    sample([server], folder="whole")
    assert [g.to_json() for g in read_shards(tmp_path / "stage")] == [
        g.to_json() for g in read_shards(tmp_path / "whole")]


@pytest.mark.longer
def test_what_a_dying_server_leaves_behind_another_does(sample, serve, context, start, tmp_path):
    good, dying = serve(Engine(context, start)), serve(Engine(context, start, after=4 + 1))
    assert sample([good, dying])["prompts"] == 6
    answered = [prompt for server in (good, dying) for prompt in completions(server)]
    assert len(set(answered)) == 6
    sample([good], folder="whole")
    assert [g.to_json() for g in read_shards(tmp_path / "stage")] == [
        g.to_json() for g in read_shards(tmp_path / "whole")]


def test_an_adapter_is_no_folder_for_an_engine(sample, serve, context, start):
    with pytest.raises(ValueError, match="is an adapter, and an engine is given one folder"):
        sample([serve(Engine(context, start))], policy=dataclasses.replace(start, adapter=start.folder))


@pytest.mark.slow
def test_a_killed_command_asks_again_for_what_was_in_flight_alone(serve, context, start, world, launch, tmp_path):
    engine, killed, runs = Engine(context, start), threading.Event(), []

    def behaviour(number, body):
        answer = engine(number, body)
        if number == 4 + 5 and not killed.is_set():
            runs[0].processes[0].kill()
            killed.set()
        return answer

    server = serve(behaviour)
    command = ["generate", "--model_name_or_path", start.folder, "--dataset_name", world / "prompts.jsonl",
               "--max_samples", 6, "--num_generations", N, "--max_new_tokens", NEW, "--shard_size", 6, "--engine.urls",
               server.url, "--engine.model", "m", "--engine.name", "fake", "--engine.version", "1.0.0",
               "--engine.concurrency", 1, "--engine.retry_wait", 0]
    (tmp_path / "cache").mkdir()
    runs.append(launch(tmp_path / "config", tmp_path / "killed", command=command))
    assert runs[0].wait() == [-9]
    assert not list((tmp_path / "killed").glob("shard-*"))
    launch(tmp_path / "config", tmp_path / "killed", command=command).finish()
    assert sorted(completions(server).values()) == [1] * 5 + [2]  # the last one had not been answered
    launch(tmp_path / "config", tmp_path / "whole", command=command).finish()
    killed, whole = (read_shards(tmp_path / name) for name in ("killed", "whole"))
    assert [g.to_json() for g in killed] == [g.to_json() for g in whole]
