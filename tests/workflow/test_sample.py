"""Sampling and scoring stages: shards whole or absent, the same bytes however often they were interrupted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.plan import Assumptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.jsonl import SourceError, read_groups, write_groups
from rlhf_jax.parallel import make_mesh, placement
from rlhf_jax.parallel.accelerators import CHIPS, find_accelerator
from rlhf_jax.plan.measure import placed
from rlhf_jax.plan.shapes import SampleShape
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.stages.sample import LogpMismatch, SampleStage, check_logps, generation_metrics
from rlhf_jax.workflow.stages.score import ScoreStage, score_metrics
from rlhf_jax.workflow.stages.shards import ShardFolder, read_shards, shard_name

SAMPLING = SamplingConfig(num_generations=2, max_new_tokens=6, slots=4, block=3, prompt_length=64)


def tick(name, done, total, words):
    assert 0 <= done <= total


def lengths(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def none_for_short(prompts, completions, **columns):
    return [None if len(c) % 2 else float(len(c)) for c in completions]


@pytest.fixture(scope="module")
def context(make_context, tmp_path_factory):
    return make_context(tmp_path_factory.mktemp("run"), tick=tick)


@pytest.fixture(scope="module")
def stage(start, prompts, context):
    """stage(folder, **changes): samples ten prompts into shards of three."""

    def run(folder, **changes):
        fields = {"policy": start, "prompts": GivenGroups(prompts[:10]), "sampling": SAMPLING, "dtype": "float32",
                  "shard_size": 3, **changes}
        return SampleStage(**fields).run(folder, context)

    run.sampler, run.params, run.compute = (context.sampler(start, SAMPLING, "float32"), context.params(start),
                                            Compute(start.config))
    return run


@pytest.fixture(scope="module")
def score(context):
    """score(folder, scorer, source): scores the shards of another folder."""
    return lambda folder, scorer, source: ScoreStage(scorer=scorer, source=ShardFolder(source)).run(folder, context)


def untimed(report):
    """Without what a clock measured, and without what another test had compiled already."""
    return {**report, "compiled_programs": 0, "hand_over": {**report["hand_over"], "seconds": 0}}


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    return folder, stage(folder)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_prompt_is_sampled_once_in_order_with_ids_log_probs_and_reasons(whole, prompts):
    folder, report = whole
    groups = read_shards(folder)
    assert [g.prompt_id for g in groups] == [p.prompt_id for p in prompts[:10]]
    assert [len(read_groups(p)) for p in sorted(folder.iterdir())] == [3, 3, 3, 1]
    for group, prompt in zip(groups, prompts, strict=False):
        assert group.prompt_ids.tolist() == prompt.prompt_ids.tolist()
        assert len(group.responses) == 2
        assert all(r.finish_reason in ("stop", "length") and len(r.logps) == len(r.ids) for r in group.responses)
    assert (report["prompts"], report["responses"]) == (10, 20)
    assert report["logps_max_difference"] < 1e-4


@pytest.mark.longer
@pytest.mark.parametrize("missing", [[0], [1, 3], [2], [0, 1, 2, 3]])
def test_missing_shards_are_made_again_to_the_same_bytes_and_finished_ones_are_not_touched(whole, stage, tmp_path,
                                                                                           missing):
    expected = contents(whole[0])
    kept = [name for i, name in enumerate(expected) if i not in missing]
    for name in kept:
        (tmp_path / name).write_bytes(expected[name])
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in kept}
    (tmp_path / ".shard-00001.jsonl.99.tmp").write_text('{"half a gro')
    report = stage(tmp_path)
    found = contents(tmp_path)
    assert found.pop(".shard-00001.jsonl.99.tmp")
    assert found == expected
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == times
    assert untimed(report) == untimed(whole[1])


@pytest.mark.longer
def test_the_stage_lays_weights_out_as_the_plan_does_and_samples_the_same(make_model, make_context, prompts, tmp_path,
                                                                          monkeypatch):
    """On devices that tell what they are, here eight of this CPU that count as GPUs of slow memory."""
    policy = Checkpoint(make_model(tmp_path / "model", heads=4, kv_heads=4))
    chip = dataclasses.replace(CHIPS["H100"], hbm_bandwidth=1e6, begin=0.0, hop=0.0)
    sampling = dataclasses.replace(SAMPLING, slots=8)
    stage = SampleStage(policy=policy, prompts=GivenGroups(prompts[:10]), sampling=sampling, dtype="float32",
                        shard_size=10)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    stage.run(tmp_path / "one", make_context(tmp_path / "runs"))
    monkeypatch.setattr(placement, "chip_of", lambda device: chip)
    monkeypatch.setattr(placement, "memory_of", lambda device: chip.hbm_bytes)
    report = stage.run(tmp_path / "many", make_context(tmp_path / "runs", mesh=make_mesh()))["hand_over"]
    host = dataclasses.replace(find_accelerator("8xH100"), chip=chip)
    shape = SampleShape("decode", policy.config, sampling, "float32", 64, Assumptions())
    planned = placed(shape, MeshConfig(), host, jax.devices())
    assert report["mesh"] == dict(planned.mesh.shape) == {"data": 2, "fsdp": 1, "context": 1, "tensor": 4}
    assert report["why"] == planned.why
    assert "tensor 4: a token of 16 lanes takes" in report["why"]
    one, many = read_shards(tmp_path / "one"), read_shards(tmp_path / "many")
    assert [[r.ids.tolist() for r in g.responses] for g in one] == [[r.ids.tolist() for r in g.responses] for g in many]


def test_shard_size_changes_files_and_no_sample(whole, stage, tmp_path):
    stage(tmp_path, shard_size=10)
    assert [g.to_json() for g in read_shards(tmp_path)] == [g.to_json() for g in read_shards(whole[0])]


def test_all_shards_run_the_programs_of_the_first(stage, whole):
    assert (stage.sampler.prefill_program._cache_size(), stage.sampler.decode_program._cache_size()) == (1, 1)


def test_tampered_log_probs_are_a_mismatch_that_stops_the_stage(whole, stage, tmp_path):
    groups = read_groups(whole[0] / "shard-00000.jsonl")
    first = groups[1].responses[0]
    wrong = dataclasses.replace(first, logps=first.logps + np.eye(1, len(first.logps), 0, dtype=np.float32)[0] * 2e-3)
    groups[1] = dataclasses.replace(groups[1], responses=(wrong, groups[1].responses[1]))
    with pytest.raises(LogpMismatch, match=r"2\.00e-03, .*\(float32, .*allowed 1e-04"):
        check_logps(stage.compute, stage.params, groups, stage.sampler, jnp.float32)
    write_groups(tmp_path / "shard-00000.jsonl", groups)
    with pytest.raises(LogpMismatch):
        stage(tmp_path)
    assert not (tmp_path / "shard-00001.jsonl").exists()


def test_log_probs_that_are_no_number_are_a_mismatch_too(whole, stage):
    groups = read_groups(whole[0] / "shard-00000.jsonl")
    wrong = dataclasses.replace(groups[0].responses[0], logps=groups[0].responses[0].logps * np.float32("nan"))
    groups[0] = dataclasses.replace(groups[0], responses=(wrong, groups[0].responses[1]))
    with pytest.raises(LogpMismatch):
        check_logps(stage.compute, stage.params, groups, stage.sampler, jnp.float32)


def test_samples_of_other_weights_do_not_pass_the_gate(whole, stage, make_model, lone_mesh, tmp_path):
    other = Checkpoint(make_model(tmp_path / "other", seed=5)).params(lone_mesh)
    with pytest.raises(LogpMismatch):
        check_logps(stage.compute, other, read_shards(whole[0]), stage.sampler, jnp.float32)


@pytest.mark.longer
def test_the_gate_follows_the_cache(stage, context, start, make_model, lone_mesh, tmp_path):
    """An int8 cache passes its own gate and would not pass float32's; other weights pass neither."""
    sampling = dataclasses.replace(SAMPLING, cache_dtype="int8")
    sampler, report = context.sampler(start, sampling, "float32"), stage(tmp_path / "int8", sampling=sampling)
    assert 1e-4 < report["logps_mean_difference"] < report["logps_max_difference"]
    groups = read_shards(tmp_path / "int8")
    with pytest.raises(LogpMismatch, match="cache_dtype auto"):
        check_logps(stage.compute, stage.params, groups, stage.sampler, jnp.float32)
    other = Checkpoint(make_model(tmp_path / "other", seed=5)).params(lone_mesh)
    with pytest.raises(LogpMismatch, match="cache_dtype int8"):
        check_logps(stage.compute, other, groups, sampler, jnp.float32)


def test_a_stop_string_that_is_never_found_is_said_before_the_stage_runs(start, prompts, context):
    eos = start.tokenizer.eos_token

    def preview(string):
        sampling = dataclasses.replace(SAMPLING, stop_strings=(string,))
        SampleStage(policy=start, prompts=GivenGroups(prompts[:2]), sampling=sampling, dtype="float32",
                    shard_size=3).preview(context)

    preview(eos)
    preview("story")
    for string in (f"{eos}\n", f"story{eos}"):
        with pytest.raises(ValueError, match="it would never be found"):
            preview(string)


def test_generation_metrics_by_hand(whole):
    group = read_shards(whole[0])[0]
    made = [dataclasses.replace(group.responses[0], ids=np.zeros(n, np.int32), finish_reason=reason)
            for n, reason in ((2, "stop"), (4, "stop"), (6, "length"))]
    found = generation_metrics([dataclasses.replace(group, responses=tuple(made))])
    assert found == {"prompts": 1, "responses": 3, "completions/mean_length": 4.0, "completions/min_length": 2.0,
                     "completions/max_length": 6.0, "completions/clipped_ratio": pytest.approx(1 / 3),
                     "completions/mean_terminated_length": 3.0}
    nothing_ended = generation_metrics([dataclasses.replace(group, responses=(made[2],))])
    assert "completions/mean_terminated_length" not in nothing_ended  # NaN has no place in a JSON report


def test_scores_are_added_and_everything_else_is_kept(whole, score, tmp_path):
    source = whole[0]
    report = score(tmp_path, FunctionScorer(lengths, name="length"), source)
    before, after = read_shards(source), read_shards(tmp_path)
    assert sorted(contents(tmp_path)) == sorted(contents(source))
    for old, new in zip(before, after, strict=True):
        assert [r.scores for r in new.responses] == [{"length": float(len(r.text))} for r in old.responses]
        assert new.with_scores("length", [None] * 2).to_json()["responses"][0]["ids"] == old.responses[0].ids.tolist()
    per_prompt = [[len(r.text) for r in g.responses] for g in before]
    assert report["reward"] == pytest.approx(np.mean(per_prompt))
    assert report["reward_best_of_n"] == pytest.approx(np.mean(np.max(per_prompt, axis=1)))
    assert report["reward_std"] == pytest.approx(np.mean(np.std(per_prompt, axis=1)))
    assert (report["prompts"], report["unscored"]) == (10, 0)


def test_scoring_continues_where_it_was_interrupted(whole, score, tmp_path):
    scorer = FunctionScorer(lengths, name="length")
    score(tmp_path / "a", scorer, whole[0])
    expected = contents(tmp_path / "a")
    (tmp_path / "a" / "shard-00002.jsonl").unlink()
    kept = (tmp_path / "a" / "shard-00001.jsonl").stat().st_mtime_ns
    score(tmp_path / "a", scorer, whole[0])
    assert contents(tmp_path / "a") == expected
    assert (tmp_path / "a" / "shard-00001.jsonl").stat().st_mtime_ns == kept


def test_a_second_scorer_keeps_the_scores_of_the_first(whole, score, tmp_path):
    score(tmp_path / "a", FunctionScorer(lengths, name="one"), whole[0])
    score(tmp_path / "b", FunctionScorer(lengths, name="two"), tmp_path / "a")
    assert all(set(r.scores) == {"one", "two"} for g in read_shards(tmp_path / "b") for r in g.responses)


def test_failures_are_those_of_this_stage_alone(whole, score, tmp_path):
    scorer = FunctionScorer(none_for_short, name="s")
    first = score(tmp_path / "a", scorer, whole[0])
    second = score(tmp_path / "b", scorer, whole[0])
    failed = sum(len(r.text) % 2 for g in read_shards(whole[0]) for r in g.responses)
    assert 0 < failed < 20
    assert first["failures"] == second["failures"] == {"no_score": failed}
    assert first["unscored"] == failed


def test_score_metrics_leave_out_what_has_no_score_and_refuse_where_nothing_has(whole):
    groups = [g.with_scores("s", [{"": 1.0}, {"": 3.0}]) for g in read_shards(whole[0])[:2]]
    groups[1] = dataclasses.replace(groups[1], responses=tuple(
        dataclasses.replace(r, scores={}) for r in groups[1].responses))
    assert score_metrics(groups, "s") == {"prompts": 2, "reward": 2.0, "reward_std": 1.0, "reward_best_of_n": 3.0,
                                          "frac_reward_zero_std": 0.0, "unscored": 2}
    with pytest.raises(ValueError, match="gave no score to any response"):
        score_metrics(groups[1:], "s")


def test_a_source_without_shards_and_a_broken_shard_are_errors_that_name_them(whole, score, tmp_path):
    scorer = FunctionScorer(lengths, name="s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no shard"):
        score(tmp_path / "out", scorer, tmp_path / "empty")
    (tmp_path / "empty" / "shard-00000.jsonl").write_bytes((whole[0] / "shard-00000.jsonl").read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"shard-00000.jsonl, line 3: .*not whole JSON"):
        score(tmp_path / "out", scorer, tmp_path / "empty")


def test_shard_names_sort_in_order_beyond_ten():
    names = [shard_name(i) for i in range(12)]
    assert names == sorted(names)
