"""What stages hold in memory does not grow with the shards they read."""

import dataclasses
import tracemalloc
from functools import partial

import numpy as np
import pytest

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.workflow.datasets import GroupFile
from rlhf_jax.workflow.products import PAIRS
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.pseudo_label import COMPARED, label_counts
from rlhf_jax.workflow.stages.sample import generation_metrics
from rlhf_jax.workflow.stages.score import score_metrics
from rlhf_jax.workflow.stages.shards import ShardFolder, scan_shards, shard_name

A_SHARD = 4


def scored_shards(folder, count):
    """`count` shards of prompts with 4 answers of 64 tokens, scored."""
    folder.mkdir()
    ids = np.arange(64, dtype=np.int32)
    for number in range(count):
        write_groups(folder / shard_name(number), [PromptGroup(f"{number}/{i}", ids, tuple(
            Response(ids + k, np.ones(64, bool), "x" * 300, "stop", np.zeros(64, np.float32), {"proxy": float(k * i)})
            for k in range(4)), "x" * 300, extra={COMPARED: [[0, 1, 0.9]]}) for i in range(A_SHARD)])
    return folder


def peak(work):
    """Bytes that `work` had allocated at most."""
    work()  # what is imported and cached at the first call
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.longer
@pytest.mark.parametrize("close", [generation_metrics, lambda groups: score_metrics(groups, "proxy"), label_counts])
def test_the_close_of_a_stage_reads_shard_by_shard(tmp_path, close):
    few, many = (scored_shards(tmp_path / str(count), count) for count in (5, 100))
    assert close(scan_shards(many))["prompts"] == 100 * A_SHARD
    assert peak(lambda: close(scan_shards(many))) < peak(lambda: close(scan_shards(few))) + 100_000


@pytest.mark.longer
def test_pairs_are_made_of_one_group_at_a_time(tmp_path, make_context):
    found, context = [], make_context(tmp_path / "run")
    for count in (5, 100):
        out = tmp_path / f"pairs-{count}"
        out.mkdir()
        stage = PairsStage(source=ShardFolder(scored_shards(tmp_path / str(count), count), "k"), options=PairOptions())
        found.append(peak(partial(stage.run, out, context)))
        pairs = GroupFile(out / PAIRS, "k").read()
        assert len(pairs) == count * (A_SHARD - 1)  # the first of each shard is a tie
        assert pairs[-1].prompt_id == f"{count - 1}/{A_SHARD - 1}"
    assert found[1] < found[0] + 1_500_000  # of 7 MB more; what is written at once is 1 MB


def test_a_budget_keeps_the_pairs_that_it_did(tmp_path, make_context):
    source = ShardFolder(scored_shards(tmp_path / "scored", 5), "k")
    kept = {}
    for budget in (None, 4):
        (out := tmp_path / str(budget)).mkdir()
        report = PairsStage(source=source, options=dataclasses.replace(PairOptions(), budget=budget)).run(
            out, make_context(tmp_path / "run"))
        kept[budget] = [group.prompt_id for group in GroupFile(out / PAIRS, "k").read()]
        assert report["funnel"]["kept"] == len(kept[budget])
    assert len(kept[4]) == 4
    assert kept[4] == [name for name in kept[None] if name in kept[4]]  # in their order
