"""The feature store: states as a model alone gives them, whole shards or none, nothing left out in silence."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.data.example import Example
from rlhf_jax.data.features import read_features, response_id
from rlhf_jax.data.jsonl import SourceError, write_jsonl_atomic
from rlhf_jax.workflow.datasets import GivenGroups
from rlhf_jax.workflow.features import Features, PromptStates, is_held_out
from rlhf_jax.workflow.stages.features import FeaturesStage
from rlhf_jax.workflow.stages.shards import shard_name

ANSWERS = ("The golden cat came.", "I saw a storm near the harbor. Love, Ana.", "No.")


@pytest.fixture(scope="module")
def groups(start):
    renderer = start.renderer(RenderOptions(max_length=200), scores=True)
    return [renderer.render(Example([{"role": "user", "content": f"Write about the {thing}."}], ANSWERS[: 1 + i % 3],
                                    prompt_id=f"p{i}"))
            for i, thing in enumerate(("cat", "storm", "boat", "song", "dog"))]


@pytest.fixture(scope="module")
def stage(start, groups, make_context, tmp_path_factory):
    """stage(folder, **changes): features of five prompts in shards of two."""
    context = make_context(tmp_path_factory.mktemp("run"))

    def run(folder, **changes):
        folder.mkdir(exist_ok=True)
        fields = {"model": start, "data": GivenGroups(groups), "pool": "last", "dtype": "float32", "shard_size": 2}
        return FeaturesStage(**{**fields, **changes}).run(folder, context)

    return run


@pytest.mark.longer
def test_packed_states_are_those_of_each_conversation_alone(stage, start, groups, plain, lone_mesh, tmp_path,
                                                            exact_matmul):
    report = stage(tmp_path / "f")
    assert report["prompts"] == 5
    assert report["responses"] == 1 + 2 + 3 + 1 + 2
    assert report["without_gate_position"] == 0
    params, stop = start.params(lone_mesh), start.tokenizer.convert_tokens_to_ids("<|end|>")
    shards = [read_features(tmp_path / "f" / shard_name(i)) for i in range(3)]
    answers = np.concatenate([shard.response for shard in shards])
    prompts = np.concatenate([shard.prompt for shard in shards])
    rows = [row for shard in shards for row in shard.rows]
    assert [row.prompt_id for row in rows] == [group.prompt_id for group in groups]
    assert [row.responses for row in rows] == [tuple(map(response_id, group.responses)) for group in groups]
    group, at = groups[1], np.flatnonzero(groups[1].prompt_ids == stop)[-1]
    for place, response in enumerate(group.responses, start=1):  # of one prompt: an independent decoder takes its time
        ids = np.concatenate([group.prompt_ids, response.ids])
        hidden = np.asarray(plain(params, start.config, jnp.asarray(ids)))
        np.testing.assert_allclose(answers[place], hidden[-1], rtol=1e-5, atol=1e-5 * np.abs(hidden[-1]).max())
        np.testing.assert_allclose(prompts[1], hidden[at], rtol=1e-5, atol=1e-5 * np.abs(hidden[at]).max())


@pytest.mark.longer
def test_a_mean_is_over_the_tokens_of_the_answer(stage, start, groups, plain, lone_mesh, tmp_path, exact_matmul):
    stage(tmp_path / "f", pool="mean", shard_size=9)
    found = read_features(tmp_path / "f" / shard_name(0)).response
    params = start.params(lone_mesh)
    group = groups[1]
    for place, response in enumerate(group.responses, start=1):
        hidden = plain(params, start.config, jnp.asarray(np.concatenate([group.prompt_ids, response.ids])))
        expected = np.asarray(hidden)[len(group.prompt_ids) :].mean(0)
        np.testing.assert_allclose(found[place], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.longer
def test_a_killed_stage_makes_the_rest_to_the_same_bytes(stage, tmp_path):
    stage(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "shard-00001.jsonl").unlink()  # it had written the tensors
    (tmp_path / "killed" / "shard-00002.jsonl").unlink()
    (tmp_path / "killed" / "shard-00002.safetensors").unlink()
    kept = (tmp_path / "killed" / "shard-00000.jsonl").stat().st_mtime_ns
    stage(tmp_path / "killed")
    assert (tmp_path / "killed" / "shard-00000.jsonl").stat().st_mtime_ns == kept
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()} == files
    assert len([name for name in files if name.startswith("shard-")]) == 6


@pytest.mark.longer
def test_bfloat16_is_stored_as_it_is_computed(stage, tmp_path):
    stage(tmp_path / "wide")
    stage(tmp_path / "narrow", dtype="bfloat16")
    wide, narrow = (read_features(tmp_path / name / shard_name(1)).response for name in ("wide", "narrow"))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(np.float32), wide, atol=0.1 * np.abs(wide).max())


def test_an_answer_that_is_too_long_is_left_out_alone_and_named(do_verb, model, tmp_path):
    words = "the golden cat came to the harbor "
    rows = [{"id": "a", "prompt": "Hi.", "responses": [{"text": "No.", "score": 0.1}, {"text": words * 99, "score": 1},
                                                        {"text": "Yes.", "score": 0.7}]},
            {"id": "b", "prompt": "Hi.", "responses": [{"text": words * 99, "score": 1}]},
            {"id": "c", "prompt": words * 99, "responses": [{"text": "No.", "score": 1}]}]
    write_jsonl_atomic(tmp_path / "rows.jsonl", rows)
    done = do_verb("features", tmp_path / "f", model_name_or_path=str(model), text_as_chat=True,
                   dataset_name=str(tmp_path / "rows.jsonl"))
    assert done.report["responses"] == 2
    funnel = done.report["funnel"]
    assert funnel["dropped"] == {"response_too_long": 1, "prompt_too_long": 1}
    assert funnel["notes"]["left_out_responses"] == 3
    left_out = [json.loads(line) for line in (tmp_path / "f" / "left_out.jsonl").read_text().splitlines()]
    assert [(row["prompt_id"], row["response"], row["reason"]) for row in left_out] == [
        ("a", 1, "response_too_long"), ("b", 0, "response_too_long"), ("c", 0, "prompt_too_long")]
    shard = read_features(tmp_path / "f" / shard_name(0))
    assert [dict(scores) for scores in shard.rows[0].scores] == [{"data": 0.1}, {"data": 0.7}]


def test_a_pair_of_which_one_is_too_long_is_left_out_and_others_of_its_row_stay(do_verb, model, tmp_path):
    long = "the golden cat came to the harbor " * 99
    rows = [{"id": "a", "prompt": "Hi.", "responses": [{"text": text, "score": score} for text, score in (
                ("No.", 0.1), (long, 0.5), ("Yes.", 0.7))]},
            {"id": "b", "prompt": "Hi.", "chosen": long, "rejected": "No."}]
    write_jsonl_atomic(tmp_path / "rows.jsonl", rows)
    done = do_verb("features", tmp_path / "f", model_name_or_path=str(model), text_as_chat=True, kind="preference",
                   dataset_name=str(tmp_path / "rows.jsonl"))
    assert (done.report["prompts"], done.report["pairs"]) == (1, 1)
    assert read_features(tmp_path / "f" / shard_name(0)).rows[0].pairs == ((1, 0),)


def test_plain_text_has_no_place_for_a_gate(do_verb, model, tmp_path):
    rows = [{"prompt": "Once", "responses": [{"text": " upon a time.", "score": 1.0}]}]
    write_jsonl_atomic(tmp_path / "rows.jsonl", rows)
    done = do_verb("features", tmp_path / "f", model_name_or_path=str(model), dataset_name=str(tmp_path / "rows.jsonl"))
    assert done.report["without_gate_position"] == 1
    shard = read_features(tmp_path / "f" / shard_name(0))
    assert not shard.rows[0].gate
    assert (shard.prompt == 0).all()


def test_files_that_are_no_features_are_refused(stage, tmp_path):
    stage(tmp_path / "f")
    path = tmp_path / "f" / shard_name(0)
    tensors = path.with_suffix(".safetensors")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="are no features"):
        read_features(path)
    shutil.copy(tmp_path / "f" / "shard-00002.safetensors", tensors)
    with pytest.raises(SourceError, match="names 3 answers of 2 prompts"):
        read_features(path)
    tensors.unlink()
    with pytest.raises(SourceError, match="are no features"):
        read_features(path)


def test_states_of_prompts_are_found_in_any_order():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 1, 6)]
    places = rng.integers(0, 11, 50)
    np.testing.assert_array_equal(PromptStates(parts)(places), np.concatenate(parts)[places])


def test_what_is_held_out_depends_on_name_and_seed_alone():
    names = [f"p{i}" for i in range(5000)]
    shares = [np.mean([is_held_out(name, 0.2, seed) for name in names]) for seed in (0, 1)]
    assert shares == pytest.approx([0.2, 0.2], abs=0.02)
    assert [is_held_out(n, 0.2, 0) for n in names[:50]] != [is_held_out(n, 0.2, 1) for n in names[:50]]


@pytest.mark.longer
def test_features_of_another_model_or_of_means_are_refused(do_verb, model, world, tmp_path):
    common = {"model_name_or_path": str(model), "kind": "preference", "dataset_name": str(world / "preference.jsonl")}
    do_verb("features", tmp_path / "f", **common)
    do_verb("features", tmp_path / "mean", pool="mean", **common)
    with pytest.raises(ValueError, match="of another model than other"):
        Features((tmp_path / "f",)).check_model("another", "other")
    means = Features((tmp_path / "mean",))
    key = means.made_by(tmp_path / "mean")["model"]
    with pytest.raises(ValueError, match="are means over tokens"):
        means.check_model(key, "it")
    with pytest.raises(ValueError, match="no output_dir of a finished `rlhf-jax features`"):
        Features((world,)).made_by(world)
