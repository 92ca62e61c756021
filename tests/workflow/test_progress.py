"""A run seen from outside: what it is at, what its stages found, from where it goes on."""

import time

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import write_groups
from rlhf_jax.workflow import progress
from rlhf_jax.workflow.findings import found
from rlhf_jax.workflow.products import AT_WORK
from rlhf_jax.workflow.progress import Noted, at_work, finished_stages
from rlhf_jax.workflow.stage import Run, hash_path
from rlhf_jax.workflow.stages.shards import announce_kept


@pytest.mark.parametrize(("report", "said"), [
    ({"prompts": 1200, "responses": 9600, "completions/mean_length": 74.4, "completions/clipped_ratio": 0.02},
     "1,200 prompts, 9,600 answers, 74 tokens each, 2% cut off"),
    ({"prompts": 8, "reward": -1.23456, "reward_best_of_n": 0.5}, "8 prompts, mean score -1.23, best of n 0.5"),
    ({"mean_gap": 1.5, "funnel": {"read": 8, "kept": 6}}, "6 kept of 8 read, mean gap 1.5"),
    ({"steps": 40, "train": {"loss": 0.61234, "rewards/accuracies": 0.75}, "eval": {}},
     "40 steps, loss 0.6123, accuracy 75.0%"),
    ({"accuracy": {"value": 0.71}, "nll": {"value": None}, "pairs": 100}, "100 pairs, accuracy 71.0%"),
    ({"scores": {"gold": 2.0, "kl_k1": 8.13}}, "gold 2, KL 8.13 nats"),
    ({}, ""), ({"other": 1, "reward": "high"}, ""), ({"verdict": 3}, ""), ({"verdict": "accepted"}, "accepted"),
])
def test_a_report_in_words(report, said):
    assert found(report) == said


def test_what_is_at_work_is_noted_now_and_then_and_ends_with_the_command(tmp_path, monkeypatch):
    clock, ticks = [100.0], []
    monkeypatch.setattr(time, "time", lambda: clock[0])
    noted = Noted(tmp_path, lambda *told: ticks.append(told))
    noted.begin("online/round-1/sample")
    for second, done in ((101.0, 1), (107.0, 2), (108.0, 3)):
        clock[0] = second
        noted("online/round-1/sample", done, 8, "")
    seen = at_work(tmp_path)
    assert (seen.stage, seen.done, seen.total, seen.since, seen.seen) == ("online/round-1/sample", 2, 8, 100.0, 107.0)
    noted("online/round-1/dpo", 1, 4, "loss 0.6931")
    assert at_work(tmp_path).words == "loss 0.6931"
    assert [told[1] for told in ticks] == [1, 2, 3, 1]
    noted.end()
    assert at_work(tmp_path) is None


def test_the_note_is_no_part_of_what_a_stage_made(tmp_path):
    (tmp_path / "a").write_text("x")
    before = hash_path(tmp_path)
    Noted(tmp_path, lambda *told: None).begin("sft")
    assert (tmp_path / AT_WORK).is_file()
    assert hash_path(tmp_path) == before


def test_a_run_says_what_stages_found_and_from_where_it_goes_on(tmp_path):
    said, begun = [], []
    for _ in range(2):
        run = Run(tmp_path, {}, announce=said.append, begins=begun.append)
        run.announce_earlier()
        run.stage("score", {"a": 1}, lambda folder: {"reward": 0.5})
    assert [line.split(";")[-1].strip() for line in said if line.startswith("score:")] == ["mean score 0.5"] * 2
    assert "already done" in said[-1]
    assert begun == ["score"]
    assert f"continues the run in {tmp_path}: 1 stages were done, the last of them score" in said[2]
    assert finished_stages(tmp_path)[0]["report"] == {"reward": 0.5}
    (tmp_path / "manifest.json").write_text("[")
    Run(tmp_path, {}, announce=said.append).announce_earlier()
    assert "is damaged; it is written anew" in said[-1]
    with pytest.raises(ValueError, match="holds damaged records"):
        finished_stages(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        finished_stages(tmp_path / "nowhere")


def test_a_stage_that_was_stopped_is_told_from_a_folder_without_any(tmp_path):
    def stopped(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "sft", {}, announce=lambda text: None, single=True).stage("sft", {"rows": 3}, stopped)
    with pytest.raises(ValueError, match=r"holds an unfinished stage, sft, .*give its command again to go on"):
        finished_stages(tmp_path / "sft")


def test_shards_that_are_there_are_said(tmp_path, make_context):
    said = []
    context = make_context(tmp_path, run=Run(tmp_path, {}, announce=said.append), name="sample")
    announce_kept(tmp_path, 3, context)
    assert not said
    one = PromptGroup("p", np.ones(1, np.int32), (Response(np.ones(1, np.int32), np.ones(1, bool)),))
    write_groups(tmp_path / "shard-00000.jsonl", [one])
    announce_kept(tmp_path, 3, context)
    assert said == ["sample: continues with 1 of 3 shards made"]


def test_spans_of_time_are_short():
    assert (progress.ago(4.2), progress.ago(3725), progress.ago(-1)) == ("0:00:04", "1:02:05", "0:00:00")
