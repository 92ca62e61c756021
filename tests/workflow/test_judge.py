"""Judging samples: what a stage reports is of that stage alone."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.report import write_markdown
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.policies import Entry, Outcome
from rlhf_jax.workflow.products import JUDGED
from rlhf_jax.workflow.results import NO_KL, gather_results
from rlhf_jax.workflow.stages import judge
from rlhf_jax.workflow.stages.judge import JudgeStage, add_kl
from rlhf_jax.workflow.stages.shards import ShardFolder, shard_name


def none_for_one_word(prompts, completions, **columns):
    return [float(len(c)) if " " in c else None for c in completions]


def never(prompts, completions, **columns):
    return [None] * len(completions)


def test_divergence_is_estimated_from_samples_of_the_policys_own_distribution_alone():
    logps, reference = np.float32([-1.0, -2.0]), np.float32([-1.5, -3.0])
    ids = np.array([5, 4], np.int32)
    sampled, given = Response(ids, np.ones(2, bool), logps=logps), Response(ids, np.ones(2, bool))
    (group,) = add_kl([PromptGroup("p", ids, (sampled, sampled, given))], [[reference] * 3], (True, False, True))
    assert group.responses[0].scores["kl_k1"] == 1.5
    ratio = np.array([-0.5, -1.0])
    np.testing.assert_allclose(group.responses[0].scores["kl_k3"], (np.exp(ratio) - 1 - ratio).sum(), rtol=1e-5)
    assert group.responses[1].scores == group.responses[2].scores == {}


def test_answers_of_any_length_are_estimated_by_few_programs():
    draws = np.random.default_rng(0)
    lengths = [[1, 7], [3, 40], [33, 2], [12, 64], [64, 64]]
    logps, reference = ([[draws.normal(-2, 1, n).astype(np.float32) for n in some] for some in lengths] for _ in "ab")
    groups = [PromptGroup("p", np.array([1], np.int32), tuple(
        Response(np.zeros(len(x), np.int32), np.ones(len(x), bool), logps=x) for x in some)) for some in logps]
    before = judge._summed._cache_size()
    found = add_kl(groups, reference, (True, True))
    assert judge._summed._cache_size() - before <= 2  # 8 and 64 tokens wide
    for group, ours, theirs in zip(found, logps, reference, strict=True):
        for response, a, b in zip(group.responses, ours, theirs, strict=True):
            ratio = b.astype(np.float64) - a
            assert response.scores["kl_k1"] == pytest.approx(-ratio.sum(), abs=1e-4)
            assert response.scores["kl_k3"] == pytest.approx((np.exp(ratio) - 1 - ratio).sum(), rel=1e-5)


@pytest.mark.parametrize(("settings", "own"), [
    ({}, (True, True, True)), ({"temperature": 0.7}, (False,) * 3), ({"temperature": 0.0}, (False,) * 3),
    ({"temperature": (1.0, 0.7)}, (True, True, False)), ({"top_p": 0.9}, (False,) * 3), ({"top_k": 5}, (False,) * 3),
    ({"min_p": 0.1, "temperature": (1.0, 0.5, 1.0)}, (False,) * 3)])
def test_only_temperature_one_with_no_token_left_out_is_the_policys_own_distribution(settings, own):
    assert SamplingConfig(num_generations=3, **settings).unchanged == own


@pytest.mark.parametrize(("scores", "said"), [({"proxy": 1.0}, True), ({"proxy": 1.0, "kl_k1": 0.0}, False)])
def test_the_report_says_when_no_divergence_was_measured(scores, said):
    ids = np.array([5], np.int32)
    judged = [PromptGroup(name, ids, (Response(ids, np.ones(1, bool), scores=scores),)) for name in "ab"]
    results = gather_results(SimpleNamespace(stages=(), config={}), Outcome(
        [Entry("start", "start", 0, None)], {"start": judged}, {}, None), title="x", gold=None, seed=0)
    assert (NO_KL in results.notes) is said
    assert (NO_KL in write_markdown(results)) is said
    assert ("KL, k1" in write_markdown(results)) is not said


def test_failures_are_those_of_this_policy_alone(start, prompts, make_context, tmp_path):
    response = Response(np.array([5, 4], np.int32), np.ones(2, bool), logps=np.zeros(2, np.float32))
    answers = tuple(dataclasses.replace(response, text=text) for text in ("Dear Ann", "Ann", "Love, Ann"))
    write_groups(tmp_path / "sampled" / shard_name(0), [dataclasses.replace(p, responses=answers) for p in prompts[:4]])
    scorers = (FunctionScorer(none_for_one_word, name="proxy"), FunctionScorer(never, name="gold"))
    context = make_context(tmp_path / "run")
    stages = [context.do(f"evaluate/{name}/judge", JudgeStage(
        source=ShardFolder(tmp_path / "sampled", name), scorers=scorers, start=start, dtype="float32",
        own=(True, True, False))) for name in ("first", "second")]
    for stage in stages:
        assert not stage.reused
        assert stage.report["failures"] == {"proxy": {"no_score": 4}, "gold": {"no_score": 12}}
    judged = read_groups(stages[0].folder / JUDGED)
    means = [[np.mean([r.scores[name] for r in g.responses if name in r.scores]) for g in judged]
             for name in ("kl_k1", "kl_k3", "proxy")]
    assert list(stages[0].report["scores"].values()) == pytest.approx([np.mean(mean) for mean in means])
    assert list(stages[0].report["scores"]) == ["kl_k1", "kl_k3", "proxy"]
    assert [sorted(r.scores) for r in judged[0].responses] == [["kl_k1", "kl_k3", "proxy"], ["kl_k1", "kl_k3"],
                                                               ["proxy"]]
