"""Judging samples: what a stage reports is of that stage alone."""

import dataclasses

import numpy as np
from rlhf_jax.workflow.evaluate import JUDGED, judge
from rlhf_jax.workflow.sample import shard_name

from rlhf_jax.data.groups import Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.stage import Stage


def none_for_one_word(prompts, completions, **columns):
    return [float(len(c)) if " " in c else None for c in completions]


def never(prompts, completions, **columns):
    return [None] * len(completions)


def test_failures_are_those_of_this_policy_alone(start, prompts, make_context, tmp_path):
    response = Response(np.array([5, 4], np.int32), np.ones(2, bool), logps=np.zeros(2, np.float32))
    answers = tuple(dataclasses.replace(response, text=text) for text in ("Dear Ann", "Ann", "Love, Ann"))
    write_groups(tmp_path / "sampled" / shard_name(0), [dataclasses.replace(p, responses=answers) for p in prompts[:4]])
    sampled = Stage("sample", tmp_path / "sampled", "key", {}, 0.0, False)
    scorers = [FunctionScorer(none_for_one_word, name="proxy"), FunctionScorer(never, name="gold")]
    context = make_context(tmp_path / "run")
    reports = [judge(context, f"evaluate/{name}/judge", dataclasses.replace(sampled, key=name), scorers, start,
                     "float32") for name in ("first", "second")]
    for stage in reports:
        assert stage.report == {"prompts": 4, "failures": {"proxy": {"no_score": 4}, "gold": {"no_score": 12}}}
    judged = read_groups(reports[0].folder / JUDGED)
    assert [sorted(r.scores) for r in judged[0].responses] == [["kl_k1", "kl_k3", "proxy"], ["kl_k1", "kl_k3"],
                                                               ["kl_k1", "kl_k3", "proxy"]]
