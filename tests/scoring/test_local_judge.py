"""A language model on these devices as a judge: its replies are those of an independent decoder, and are read alike."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.scorer import LocalJudgeScoring
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import text_group
from rlhf_jax.data.rows import Example
from rlhf_jax.models import save_hf
from rlhf_jax.scoring import Comparing, JudgeScorer, RatingScorer
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.scoring.rubric import PAIRS, SINGLE
from rlhf_jax.workflow.kinds import open_scorer

QUESTIONS = [[{"role": "user", "content": "Write about a cat."}], [{"role": "user", "content": "And a dog, now."}]]


@pytest.fixture(scope="module")
def config(policy_tokenizer, make_config):
    return make_config(policy_tokenizer, bos_token_id=policy_tokenizer.bos_token_id,
                       eos_token_ids=(policy_tokenizer.eos_token_id,))


@pytest.fixture(scope="module")
def folder(policy_tokenizer, config, make_params, tmp_path_factory):
    path = tmp_path_factory.mktemp("judge")
    policy_tokenizer.save_pretrained(path / "tokenizer")
    save_hf(path / "model", jax.device_get(make_params(config)), config, tokenizer_from=path / "tokenizer")
    return path / "model"


@pytest.fixture
def opened(folder, mesh):
    def make(**options):
        return open_scorer(build(LocalJudgeScoring, {"model_name_or_path": str(folder), "kind": "local_judge",
                                                     "max_tokens": 6, "slots": 4, **options}), mesh, "proxy")

    return make


def greedy(plain, params, config, ids, count, stops):
    """Token ids that an independent decoder writes, over a sequence of one length: what comes behind is not seen."""
    place, written = np.zeros(64, np.int32), list(ids)
    for _ in range(count):
        place[: len(written)] = written
        logits = np.asarray(plain(params, config, place))[len(written) - 1] @ np.asarray(params["head"])[
            : config.vocab_size].T
        written.append(int(np.argmax(logits)))
        if written[-1] in stops:
            break
    return written[len(ids):]


@pytest.mark.longer
def test_replies_are_those_of_an_independent_decoder_and_a_question_is_answered_once(
        opened, plain, make_params, config, policy_tokenizer, exact_matmul):
    replies, failures = opened()._replies, Counter()
    found = replies.ask([*QUESTIONS, QUESTIONS[0]], failures)
    for turns, reply in zip(QUESTIONS, found, strict=False):
        ids = Renderer(policy_tokenizer).render(Example(turns, ())).prompt_ids
        written = greedy(plain, make_params(config), config, ids, 6, replies._sampler._stop)
        assert reply == policy_tokenizer.decode(written, skip_special_tokens=True)
    assert found[2] == found[0] != found[1]
    assert not failures


@pytest.mark.longer
def test_text_is_continued_where_the_model_has_no_template(opened):
    chat, text = (opened(endpoint=name)._replies.ask(QUESTIONS[:1], Counter()) for name in ("chat", "completions"))
    assert chat != text


def test_a_question_that_is_too_long_is_a_failure_and_no_verdict(opened):
    judge = opened(max_length=60)
    assert judge.compare([("q", "aaa", "b")]) == [None]
    assert judge.failures == {"prompt_too_long": 2}


class Scripted:
    """Prefers the longer answer, and rates it by its length."""

    model = "scripted"

    def ask(self, conversations, failures, progress=None):
        return [self.reply(turns[-1]["content"]) for turns in conversations]

    def reply(self, text):
        if "<answer>" in text:
            return f"[[{len(text.partition('<answer>')[2].partition('</answer>')[0].strip())}]]"
        first, second = (text.partition(f"<answer {n}>\n")[2].partition("\n</answer")[0] for n in "AB")
        return "[[A]]" if len(first) > len(second) else "[[B]]"

    def release(self):
        pass


def test_replies_are_read_as_those_of_a_server():
    judge = JudgeScorer(Scripted(), PAIRS, name="proxy", key=lambda: "k")
    assert judge.compare([("q", "aaa", "b"), ("q", "a", "bbb"), ("q", "a", "b")]) == [1.0, 0.0, 0.5]
    assert judge.orders([("q", "a", "b")]) == [(0.0, 1.0)]
    rating = RatingScorer(Scripted(), SINGLE, name="proxy", key=lambda: "k")
    assert scores_in(rating.score([text_group("p", "q", [("aa", {}), ("aaaa", {})])]))[0] == [2.0, 4.0]


def test_the_key_changes_with_what_verdicts_depend_on(opened, folder, tmp_path):
    rubric = tmp_path / "r.yaml"
    rubric.write_text('user: "{question} {answer_a} {answer_b}"\n')
    ways = [{}, {"temperature": 0.5}, {"max_tokens": 7}, {"judges": "single"}, {"rubric": str(rubric)},
            {"method": "knock_out"}, {"endpoint": "completions"}, {"dtype": "bfloat16"}, {"max_length": 100},
            {"seed": 1}]
    assert len({opened(**one).key for one in ways}) == len(ways)
    assert opened(slots=8).key == opened().key
    assert isinstance(opened(), Comparing)
    assert not isinstance(opened(judges="single"), Comparing)


def test_a_judge_without_room_or_without_a_next_token_is_refused(opened, folder, config, make_params, tmp_path):
    with pytest.raises(ValueError, match=r"max_tokens = 2000 of the judge's reply leave no room.*within 1024 tokens"):
        opened(max_tokens=2000)
    rated = dataclasses.replace(config, num_labels=1)
    save_hf(tmp_path / "rm", jax.device_get(make_params(rated)), rated, tokenizer_from=folder)
    with pytest.raises(ValueError, match="sequence classifier"):
        opened(model_name_or_path=str(tmp_path / "rm"))
