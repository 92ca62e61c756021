"""The loop: which policy, which data and which reference each round used, and that it really trains."""

import dataclasses
import itertools
import json
import math
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import BradleyTerryScoring, ScorerModel
from rlhf_jax.config.training import SftOptions
from rlhf_jax.data.groups import STOP, Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import load_params, save_hf
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import GivenGroups, GroupFile
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.iterate import Recipe, iterate, round_prompts
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.products import MODEL, PAIRS
from rlhf_jax.workflow.stage import hash_path
from rlhf_jax.workflow.stages.dpo import DpoStage, as_read
from rlhf_jax.workflow.stages.mix import MixStage
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.stages.shards import JoinedShards, ShardFolder, read_shards, shard_name
from rlhf_jax.workflow.stages.train import read_all

TRAIN = {"train_batch_size": 4, "micro_rows": 2, "row_length": 128, "learning_rate": 1e-2, "warmup_steps": 0,
         "logging_steps": 1}
DPO, RAFT = build(PreferenceOptions, TRAIN), build(SftOptions, TRAIN)


def make_recipe(**loop):
    return Recipe(LoopOptions(**{"prompts_per_round": 4, "shard_size": 2, **loop}),
                  SamplingConfig(num_generations=3, max_new_tokens=6, slots=4, block=3, seed=11), PairOptions(),
                  DPO, RAFT)


def variety(prompts, completions, completion_ids, **columns):
    """A score that differs between almost any two responses."""
    return [sum((k + 1) * i for k, i in enumerate(ids)) % 1009 / 100 for ids in completion_ids]


@pytest.fixture
def scorer():
    return FunctionScorer(variety, name="proxy")


def folders_of(folder):
    """stage name -> folder, from the manifest's stages."""
    return {s["name"]: folder / s["folder"] for s in json.loads((folder / "manifest.json").read_text())["stages"]}


def inputs_of(folder):
    """stage name -> inputs."""
    return {name: json.loads((stage / "inputs.json").read_text())["inputs"]
            for name, stage in folders_of(folder).items()}


def keys_of(folder):
    return {s["name"]: s["key"] for s in json.loads((folder / "manifest.json").read_text())["stages"]}


@pytest.fixture
def quick(monkeypatch):
    """Sampling and training replaced by something instant; policies of each round have weights of their own."""
    seen = {}

    def sample(stage, folder, context):
        rng = np.random.default_rng(stage.sampling.seed)
        write_groups(folder / shard_name(0), [dataclasses.replace(p, responses=tuple(
            Response(rng.integers(5, 300, 4).astype(np.int32), np.ones(4, bool), "x", STOP) for _ in range(3)))
            for p in stage.prompts.read()])
        return {}

    def train(stage, folder, context):
        params, reference = context.params(stage.start), getattr(stage, "reference", None)
        seen[folder.name.rsplit("-", 1)[0]] = {"reference": reference and context.params(reference), "start": params,
                                               "groups": read_all(stage.data)}
        moved = jax.tree.map(lambda x: np.asarray(x) + 0.5, params)
        save_hf(folder / MODEL, moved, stage.start.config, tokenizer_from=stage.start.folder)
        return {}

    for stage, stub in ((SampleStage, sample), (DpoStage, train), (SftStage, train)):
        monkeypatch.setattr(stage, "run", stub)
    return seen


def embedding(tree):
    return float(np.asarray(tree["embed"])[0, 0])


def run_quick(context, start, prompts, scorer, **loop):
    policies = iterate(context, "online", start, prompts, scorer, make_recipe(rounds=3, **loop))
    base = embedding(load_params(start.folder))
    return policies, base


@pytest.mark.longer
@pytest.mark.parametrize(("loop", "origins", "references"), [
    ({}, [0, 0.5, 1.0], [0, 0, 0]),
    ({"reference": "previous"}, [0, 0.5, 1.0], [0, 0.5, 1.0]),
    ({"init_from": "sft"}, [0, 0, 0], [0, 0, 0]),
    ({"init_from": "sft", "reference": "previous"}, [0, 0, 0], [0, 0.5, 0.5]),
    # ema: r1 = 0.6 p1 = 0.3; r2 = 0.6 p2 + 0.4 r1 = 0.72
    ({"reference": "ema"}, [0, 0.5, 1.0], [0, 0.3, 0.72]),
    ({"reference": "ema", "ref_model_mixup_alpha": 1.0}, [0, 0.5, 1.0], [0, 0.5, 1.0]),
], ids=str)
def test_each_round_starts_from_and_is_anchored_to_the_policy_the_options_name(
        quick, make_context, start, prompts, scorer, tmp_path, loop, origins, references):
    policies, base = run_quick(make_context(tmp_path), start, prompts, scorer, **loop)
    rounds = [quick[f"online-round-{n}-dpo"] for n in (1, 2, 3)]
    np.testing.assert_allclose([embedding(r["start"]) - base for r in rounds], origins, atol=1e-5)
    np.testing.assert_allclose([embedding(r["reference"]) - base for r in rounds], references, atol=1e-5)
    inputs, keys = inputs_of(tmp_path), keys_of(tmp_path)
    assert [p.key for p in policies] == [keys[f"online/round-{n}/dpo"] for n in (1, 2, 3)]
    made = [start.key, keys["online/round-1/dpo"], keys["online/round-2/dpo"]]
    assert [inputs[f"online/round-{n}/sample"]["policy"] for n in (1, 2, 3)] == made  # sampling is always on-policy
    first = [start.key] * 3 if loop.get("init_from") == "sft" else made
    assert [inputs[f"online/round-{n}/dpo"]["start"] for n in (1, 2, 3)] == first
    mixed = [start.key, *(keys.get(f"online/round-{n}/reference") for n in (1, 2))]
    anchors = {"sft": [start.key] * 3, "previous": made, "ema": mixed}[loop.get("reference", "sft")]
    assert [inputs[f"online/round-{n}/dpo"]["reference"] for n in (1, 2, 3)] == anchors


@pytest.mark.parametrize(("loop", "used"), [
    ({}, [[1], [2], [3]]),
    ({"data_policy": "accumulate"}, [[1], [1, 2], [1, 2, 3]]),
    ({"data_policy": "window"}, [[1], [1, 2], [2, 3]]),
    ({"data_policy": "window", "window": 1}, [[1], [2], [3]]),
], ids=str)
@pytest.mark.parametrize("method", ["dpo", "raft"])
def test_each_round_trains_on_the_rounds_the_data_policy_names(quick, make_context, start, prompts, scorer, tmp_path,
                                                               loop, used, method):
    run_quick(make_context(tmp_path), start, prompts, scorer, method=method, **loop)
    inputs, keys = inputs_of(tmp_path), keys_of(tmp_path)
    for number, rounds in enumerate(used, start=1):
        assert inputs[f"online/round-{number}/{method}"]["data"] == [keys[f"online/round-{n}/pairs"] for n in rounds]
        names = [g.prompt_id for g in quick[f"online-round-{number}-{method}"]["groups"]]
        expected = [p.prompt_id for n in rounds for p in prompts[(n - 1) * 4 : n * 4]]
        assert names == expected
        assert all(len(g.responses) == (2 if method == "dpo" else 1)
                   for g in quick[f"online-round-{number}-{method}"]["groups"])


def test_rounds_have_seeds_of_their_own_and_disjoint_prompts(quick, make_context, start, prompts, scorer, tmp_path):
    run_quick(make_context(tmp_path), start, prompts, scorer)
    sampled = [inputs_of(tmp_path)[f"online/round-{n}/sample"] for n in (1, 2, 3)]
    assert len({s["sampling"]["seed"] for s in sampled}) == 3
    names = [g.prompt_id for n in (1, 2, 3) for g in read_shards(folders_of(tmp_path)[f"online/round-{n}/sample"])]
    assert len(set(names)) == len(names) == 12
    assert len({s["prompts"] for s in sampled}) == 3


def test_the_same_loop_again_does_nothing_and_another_option_redoes_only_what_depends_on_it(
        quick, make_context, start, prompts, scorer, tmp_path):
    run_quick(make_context(tmp_path), start, prompts, scorer)
    context = make_context(tmp_path)
    run_quick(context, start, prompts, scorer)
    assert all(stage.reused for stage in context.run.stages)
    context = make_context(tmp_path)
    run_quick(context, start, prompts, scorer, reference="previous")
    redone = [stage.name for stage in context.run.stages if not stage.reused]
    assert redone[0] == "online/round-2/dpo"  # round 1's previous policy is the start itself
    assert {name.split("/")[1] for name in redone} == {"round-2", "round-3"}


def test_a_corrected_answer_in_the_prompts_reaches_the_scorer(quick, make_context, start, prompts, tmp_path):
    def right(prompts, completions, answer, **columns):
        return [float(number) + i / 9 for i, number in enumerate(answer)]

    def with_answer(number):
        return [dataclasses.replace(p, extra={"answer": number}) for p in prompts]

    def scores(some):
        context = make_context(tmp_path)
        iterate(context, "online", start, some, FunctionScorer(right, name="proxy"), make_recipe(rounds=1))
        folder = next(stage.folder for stage in context.run.stages if stage.name == "online/round-1/score")
        return [int(r.scores["proxy"]) for g in read_groups(folder / "shard-00000.jsonl")[:1] for r in g.responses[:1]]

    assert [scores(with_answer(number)) for number in (1, 5, 1)] == [[1], [5], [1]]


def test_preference_training_is_keyed_by_all_that_its_held_out_groups_hold(quick, make_context, start, make_groups,
                                                                           tmp_path):
    groups = make_groups(1, holes=False)
    variants = [groups, *([dataclasses.replace(groups[0], **change)] for change in (
        {"pairs": ((1, 0),)}, {"margins": (0.25,)}, {"extra": {"answer": 1}}))]
    write_groups(tmp_path / PAIRS, groups)
    made = [make_context(tmp_path).train("dpo", DpoStage(
        start=start, reference=start, data=(GroupFile(tmp_path / PAIRS, "key"),), options=DPO,
        evaluation=GivenGroups(some))).key for some in (*variants, groups)]
    assert made[-1] == made[0]
    assert len(set(made)) == len(variants)


def test_a_mixed_reference_is_the_weighted_mean_of_the_weights(make_context, make_model, start, tmp_path):
    other = Checkpoint(make_model(tmp_path / "other", seed=9))
    mixed = make_context(tmp_path / "run").train("r", MixStage(reference=start, policy=other, alpha=0.25))
    trees = [load_params(p.folder) for p in (mixed, start, other)]
    for m, a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(m, 0.75 * a + 0.25 * b, atol=1e-6)


@pytest.mark.parametrize(("count", "rounds", "each"), [(12, 3, None), (13, 3, None), (12, 3, 4), (12, 2, 5), (3, 3, 1)])
def test_rounds_share_no_prompt_and_cover_what_they_should(prompts, count, rounds, each):
    loop = LoopOptions(rounds=rounds, prompts_per_round=each)
    parts = [round_prompts(prompts[:count], loop, n) for n in range(1, rounds + 1)]
    names = [p.prompt_id for part in parts for p in part]
    covered = count if each is None else rounds * each
    assert names == [p.prompt_id for p in prompts[:covered]]
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "rounds", "each"), [(11, 3, 4), (2, 3, None)])
def test_too_few_prompts_are_an_error_that_says_how_many_there_are(prompts, count, rounds, each):
    loop = LoopOptions(rounds=rounds, prompts_per_round=each)
    with pytest.raises(ValueError, match=f"there are {count}; give more prompts"):
        [round_prompts(prompts[:count], loop, n) for n in range(1, rounds + 1)]


def test_rounds_without_prompts_are_refused_by_name():
    with pytest.raises(ValueError, match="prompts_per_round = 0; it must be at least 1, or null"):
        LoopOptions(rounds=1, prompts_per_round=0)


def test_too_few_prompts_for_the_last_round_stop_the_run_before_the_first(make_context, start, prompts, scorer,
                                                                           tmp_path):
    with pytest.raises(ValueError, match="round 3 asks for prompts 8 to 12 and there are 11"):
        iterate(make_context(tmp_path), "online", start, prompts[:11], scorer, make_recipe(rounds=3))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "manifest.json"]


def first_loss(policy):
    return json.loads((policy.folder / "trainer_state.json").read_text())["log_history"][0]


def test_dpo_rounds_end_to_end_start_at_ln_2_where_the_reference_is_the_policy(make_context, start, prompts, scorer,
                                                                              tmp_path):
    recipe = make_recipe(rounds=2, reference="previous")
    policies = iterate(make_context(tmp_path), "online", start, prompts, scorer, recipe)
    for policy in policies:
        row = first_loss(policy)
        assert row["step"] == 1
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert row["rewards/accuracies"] <= 1
        assert row["rewards/margins"] == pytest.approx(0, abs=1e-3)
    trees = [load_params(p.folder) for p in (start, *policies)]
    moved = [max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
             for pair in itertools.pairwise(trees)]
    assert min(moved) > 1e-4
    for pairs in sorted(tmp_path.glob("stages/online-round-*-pairs-*/pairs.jsonl")):
        for group in read_groups(pairs):
            scores = [r.scores["proxy"] for r in group.responses]
            assert group.margins == (scores[0] - scores[1],)
            assert group.margins[0] > 0
    weights = [(p.folder / "model.safetensors").read_bytes() for p in policies]
    shutil.rmtree(next(tmp_path.glob("stages/online-round-2-dpo-*")))  # again, from what the first rounds left
    shutil.rmtree(tmp_path / "reference_cache")
    again = iterate(make_context(tmp_path), "online", start, prompts, scorer, recipe)
    assert [(p.folder / "model.safetensors").read_bytes() for p in again] == weights


@pytest.mark.longer
def test_raft_end_to_end_trains_on_the_best_and_lowers_their_loss(make_context, start, prompts, scorer, tmp_path):
    recipe = make_recipe(rounds=1, method="raft")
    recipe = dataclasses.replace(recipe, raft=build(SftOptions, {**TRAIN, "num_train_epochs": 4}))
    policy, = iterate(make_context(tmp_path), "raft", start, prompts, scorer, recipe)
    best = read_groups(next(tmp_path.glob("stages/*-pairs-*/pairs.jsonl")))
    scored = read_groups(next(tmp_path.glob("stages/*-score-*/shard-00000.jsonl")))
    assert best[0].responses[0].scores["proxy"] == max(r.scores["proxy"] for r in scored[0].responses)
    log = json.loads((policy.folder / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["loss"] < log[0]["loss"] - 0.05


def test_the_key_of_a_policy_stands_for_its_weights_and_not_its_folder(make_model, tmp_path):
    one, two = (make_model(tmp_path / name) for name in ("one", "two"))
    assert hash_path(one) == hash_path(two)
    assert hash_path(make_model(tmp_path / "three", seed=1)) != hash_path(one)


@pytest.mark.longer
@pytest.mark.parametrize("loop", [{}, {"init_from": "sft", "reference": "previous"}], ids=str)
def test_training_holds_its_state_and_no_other_weights(loop, make_context, start, prompts, scorer, tmp_path,
                                                       watch_arrays):
    """A master and two moments of each weight; gone are what training starts from and the reference."""
    shape, held = load_params(start.folder)["layers"]["mlp"]["down"].shape, []

    def tick(name, done, total, words):
        if name.endswith("/dpo"):
            held.append(sum(x.shape == shape for x in made()))

    context, made = make_context(tmp_path, tick=tick), watch_arrays()
    iterate(context, "online", start, prompts, scorer, make_recipe(rounds=2, **loop))
    assert set(held) == {3}


def test_the_start_answers_its_share_and_pairs_hold_one_answer_of_each_policy(quick, make_context, start, prompts,
                                                                             scorer, tmp_path):
    recipe = make_recipe(rounds=2, from_start=1 / 3)
    recipe = dataclasses.replace(recipe, pairs=PairOptions(rule="across"))
    policies = iterate(make_context(tmp_path), "online", start, prompts, scorer, recipe)
    inputs, folders = inputs_of(tmp_path), folders_of(tmp_path)
    for number, policy in ((1, start), (2, policies[0])):
        own, theirs = (inputs[f"online/round-{number}/{name}"] for name in ("sample", "sample_start"))
        assert (own["policy"], theirs["policy"]) == (policy.key, start.key)
        assert (own["sampling"]["num_generations"], theirs["sampling"]["num_generations"]) == (2, 1)
        assert own["sampling"]["seed"] != theirs["sampling"]["seed"]
        scored = read_shards(folders[f"online/round-{number}/score"])
        assert [r.scores["by_other"] for r in scored[0].responses] == [0, 0, 0, 1, 1, 1]  # the stub's three of each
        for group in quick[f"online-round-{number}-dpo"]["groups"]:
            assert {r.scores["by_other"] for r in group.responses} == {0.0, 1.0}
            assert group.responses[0].scores["proxy"] > group.responses[1].scores["proxy"]


def test_rounds_of_the_enhancer_hand_on_what_their_pairs_said(quick, make_context, make_model, start, prompts,
                                                              lone_mesh, tmp_path):
    model = make_model(tmp_path / "rm", num_labels=1, tie_embeddings=False)
    scorer = open_scorer(BradleyTerryScoring(ScorerModel(str(model))), lone_mesh, "proxy")
    recipe = dataclasses.replace(make_recipe(rounds=2), pairs=PairOptions(rule="enhancer"))
    iterate(make_context(tmp_path / "run"), "online", start, prompts, scorer, recipe)
    inputs, keys, folders = (read(tmp_path / "run") for read in (inputs_of, keys_of, folders_of))
    pairs = [f"online/round-{number}/pairs" for number in (1, 2)]
    assert [inputs[name]["states"] for name in pairs] == [keys[f"online/round-{n}/score"] for n in (1, 2)]
    assert [inputs[name]["earlier"] for name in pairs] == [None, keys[pairs[0]]]
    first, second = (np.linalg.eigvalsh(np.load(folders[name] / "covariance.npy")) for name in pairs)
    assert np.all(second >= first - 1e-9)


@pytest.mark.longer
def test_xpo_end_to_end_starts_at_ln_2_and_alpha_times_the_mean_of_what_the_start_says(make_context, start, prompts,
                                                                                      scorer, tmp_path):
    recipe = dataclasses.replace(make_recipe(rounds=1, from_start=1 / 3), pairs=PairOptions(rule="across"),
                                 dpo=build(PreferenceOptions, {**TRAIN, "xpo_alpha": 0.02}))
    (policy,) = iterate(make_context(tmp_path), "online", start, prompts, scorer, recipe)
    pairs = read_groups(next(tmp_path.glob("stages/*-pairs-*/pairs.jsonl")))
    says = [float(r.logps.sum()) for group in pairs for r in group.responses if r.scores["by_other"] == 1.0]
    assert len(says) == len(pairs) <= TRAIN["train_batch_size"]  # one batch holds them all
    row = first_loss(policy)
    assert row["loss/xpo"] == pytest.approx(0.02 * np.mean(says), abs=1e-4)
    assert row["loss"] == pytest.approx(math.log(2) + row["loss/xpo"], abs=1e-4)


def test_answers_of_two_policies_are_joined_by_prompt(prompts, tmp_path):
    own, other = (ShardFolder(tmp_path / name) for name in ("own", "other"))
    answers = {"own": (5, 6), "other": (7,)}
    for name, ids in answers.items():
        (tmp_path / name).mkdir()
        write_groups(tmp_path / name / shard_name(0), [dataclasses.replace(prompt, responses=tuple(
            Response(np.array([i], np.int32), np.ones(1, bool)) for i in ids)) for prompt in prompts[:2]])
    joined = JoinedShards(own, other)
    for groups in (joined.groups(), joined.read_shard(0)):
        assert [[(int(r.ids[0]), r.scores["by_other"]) for r in g.responses] for g in groups] == 2 * [
            [(5, 0.0), (6, 0.0), (7, 1.0)]]
    assert joined.key != JoinedShards(other, own).key
    write_groups(tmp_path / "other" / shard_name(0), prompts[1:3])
    with pytest.raises(ValueError, match="were not asked the same prompts in the same order"):
        list(joined.groups())
    write_groups(tmp_path / "other" / shard_name(0),
                 [dataclasses.replace(prompt, prompt_ids=prompt.prompt_ids + 1) for prompt in prompts[:2]])
    with pytest.raises(ValueError, match="has other token ids in the other policy's samples"):
        list(joined.groups())


@pytest.mark.parametrize(("options", "scores", "message"), [
    ({"loss_type": "sppo"}, {"proxy": 1.5}, "'sppo' reads the number 'proxy' as .* probability of winning, .* has 1.5"),
    ({"loss_type": "sppo", "win_rate": "won"}, {"proxy": 0.5}, "'won' as .* has no such number"),
    ({"xpo_alpha": 1.0}, {"proxy": 1.5, "by_other": 0.0}, "no response is marked as one .by_other = 1.. Set loop"),
])
def test_pairs_without_what_the_loss_reads_are_refused(make_groups, options, scores, message):
    groups = [dataclasses.replace(g, responses=tuple(dataclasses.replace(r, scores=scores) for r in g.responses))
              for g in make_groups(2, holes=False)]
    with pytest.raises(ValueError, match=message):
        as_read(build(PreferenceOptions, options), groups)


def test_held_out_pairs_need_no_answer_of_another_policy_but_a_probability_of_winning(make_groups):
    groups = make_groups(2, holes=False)
    assert as_read(build(PreferenceOptions, {"xpo_alpha": 1.0}), groups, held_out=True) == groups
    with pytest.raises(ValueError, match=r"of the held-out rows a response to .* or leave out eval_dataset_name"):
        as_read(build(PreferenceOptions, {"loss_type": "sppo"}), groups, held_out=True)


def test_the_matched_control_has_the_prompts_and_the_budget_of_all_rounds(make_context, prompts, tmp_path):
    def recipe(**pairs):
        config = build(ExperimentConfig, {
            "output_dir": str(tmp_path), "model_name_or_path": "m", "prompts": {"dataset_name": "p"}, "pairs": pairs,
            "scorer": {"kind": "function", "function": "m:f"}, "loop": {"rounds": 3, "prompts_per_round": 4}})
        return Experiment(config, make_context(tmp_path)).matched(prompts)

    assert (recipe().loop.rounds, recipe().loop.prompts_per_round, recipe().pairs) == (1, 12, PairOptions())
    assert recipe(budget=2).pairs == PairOptions(budget=6)
