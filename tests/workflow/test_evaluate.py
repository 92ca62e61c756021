"""Judging samples: what a stage reports is of that stage alone."""

import dataclasses

import numpy as np

from rlhf_jax.data.groups import Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.stage import JUDGED
from rlhf_jax.workflow.stages.judge import JudgeStage
from rlhf_jax.workflow.stages.shards import ShardFolder, shard_name


def none_for_one_word(prompts, completions, **columns):
    return [float(len(c)) if " " in c else None for c in completions]


def never(prompts, completions, **columns):
    return [None] * len(completions)


def test_failures_are_those_of_this_policy_alone(start, prompts, make_context, tmp_path):
    response = Response(np.array([5, 4], np.int32), np.ones(2, bool), logps=np.zeros(2, np.float32))
    answers = tuple(dataclasses.replace(response, text=text) for text in ("Dear Ann", "Ann", "Love, Ann"))
    write_groups(tmp_path / "sampled" / shard_name(0), [dataclasses.replace(p, responses=answers) for p in prompts[:4]])
    scorers = (FunctionScorer(none_for_one_word, name="proxy"), FunctionScorer(never, name="gold"))
    context = make_context(tmp_path / "run")
    stages = [context.do(f"evaluate/{name}/judge", JudgeStage(
        source=ShardFolder(tmp_path / "sampled", name), scorers=scorers, start=start, dtype="float32"))
        for name in ("first", "second")]
    for stage in stages:
        assert not stage.reused
        assert stage.report == {"prompts": 4, "failures": {"proxy": {"no_score": 4}, "gold": {"no_score": 12}}}
    judged = read_groups(stages[0].folder / JUDGED)
    assert [sorted(r.scores) for r in judged[0].responses] == [["kl_k1", "kl_k3", "proxy"], ["kl_k1", "kl_k3"],
                                                               ["kl_k1", "kl_k3", "proxy"]]
