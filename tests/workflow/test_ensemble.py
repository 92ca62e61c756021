"""An ensemble as a kind: members that differ, what they say together under names, and what is no ensemble."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.scorer import BradleyTerryScoring, EnsembleScoring, ScorerModel
from rlhf_jax.config.training import EnsembleOptions, TrainConfig
from rlhf_jax.data.example import Example, as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.tokenizer import TEMPLATES
from rlhf_jax.models import CheckpointError, load_params, read_config
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.kinds.ensemble import draws, member_weights, with_draws

pytestmark = pytest.mark.longer
TRAIN = {"kind": "ensemble", "members": 3, "train_batch_size": 8, "row_length": 192, "learning_rate": 1e-3}
GROUP = as_text(Example([{"role": "user", "content": "Write."}], ("Dear Mia.", "The cat sat. " * 9, "No.")))
TOGETHER = {"", "mean", "worst_case", "uncertainty_weighted", "std"}


@pytest.fixture(scope="module")
def ensemble(do_verb, model, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    done = do_verb("reward", folder, model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
                   eval_dataset_name=str(world / "preference_eval.jsonl"), num_train_epochs=3, **TRAIN)
    return folder / "model", done.report


def members_of(verdict):
    return [verdict[name] for name in sorted(verdict) if name.startswith("member-")]


def test_every_member_is_a_named_head_of_its_own(ensemble):
    folder, report = ensemble
    config, heads = read_config(folder), load_params(folder)["score"]
    assert config.labels == ("member-0", "member-1", "member-2")
    assert heads.shape == (3, 16)
    assert min(float(np.abs(heads[i] - heads[j]).max()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.05
    assert report["train"]["disagreement"] > 0
    assert {"accuracy", "accuracy_of_a_member", "margin"} <= report["train"].keys()
    assert "eval_disagreement" in report["eval"]
    assert inspect_model(folder, MeshConfig(), 1).facts["serves"] == "kind: ensemble"


@pytest.mark.parametrize(("aggregate", "weight", "expected"), [
    ("mean", 1.0, np.mean), ("worst_case", 1.0, np.min),
    ("uncertainty_weighted", 0.5, lambda m: np.mean(m) - 0.5 * np.std(m)),
])
def test_the_score_is_what_was_asked_for_and_the_rest_stands_beside_it(ensemble, lone_mesh, aggregate, weight,
                                                                       expected):
    options = EnsembleScoring(ScorerModel(str(ensemble[0])), aggregate=aggregate, uncertainty_weight=weight)
    (found,) = open_scorer(options, lone_mesh, "proxy").score([GROUP])
    heads = [open_scorer(BradleyTerryScoring(ScorerModel(str(ensemble[0])), output=i), lone_mesh, "proxy")
             .score([GROUP])[0] for i in range(3)]
    for place, verdict in enumerate(found):
        assert set(verdict) == {*TOGETHER, "member-0", "member-1", "member-2"}
        members = members_of(verdict)
        assert members == [head[place][""] for head in heads]
        assert verdict[""] == verdict[aggregate] == pytest.approx(expected(members), rel=1e-5)
        assert verdict["std"] == pytest.approx(np.std(members), rel=1e-4)
        assert verdict["worst_case"] <= verdict["mean"]


def test_models_of_one_vocabulary_are_members_too(ensemble, make_model, lone_mesh, tmp_path):
    """Each has its own backbone and all read the same rows: what each says alone."""
    other = make_model(tmp_path / "rm", seed=5, num_labels=1, tie_embeddings=False, embed=24, layers=1)
    options = EnsembleScoring(ScorerModel(str(ensemble[0])), members=(str(other),))
    scorer = open_scorer(options, lone_mesh, "proxy")
    (found,), (alone,) = scorer.score([GROUP]), open_scorer(
        BradleyTerryScoring(ScorerModel(str(other))), lone_mesh, "proxy").score([GROUP])
    assert [members_of(verdict)[3] for verdict in found] == pytest.approx([verdict[""] for verdict in alone], rel=1e-5)
    without = open_scorer(dataclasses.replace(options, members=()), lone_mesh, "proxy")
    moved = make_model(tmp_path / "elsewhere", seed=5, num_labels=1, tie_embeddings=False, embed=24, layers=1)
    again = open_scorer(dataclasses.replace(options, members=(str(moved),)), lone_mesh, "proxy")
    assert scorer.key == again.key != without.key  # what lies there counts, not where


def test_members_of_different_vocabularies_or_templates_are_refused(ensemble, make_model, tiny_tokenizer, lone_mesh,
                                                                    tmp_path):
    other = make_model(tmp_path / "rm", num_labels=1, tie_embeddings=False, vocab_size=280)
    tiny_tokenizer("chatml").save_pretrained(other)
    with pytest.raises(ValueError, match=r"have different vocabularies: .* read the same tokens in one pass"):
        open_scorer(EnsembleScoring(ScorerModel(str(ensemble[0])), members=(str(other),)), lone_mesh, "proxy")
    same = make_model(tmp_path / "same", num_labels=1, tie_embeddings=False)
    (same / "chat_template.jinja").write_text(TEMPLATES["plain"].replace("Assistant", "Bot"))
    with pytest.raises(ValueError, match="has another chat template than"):
        open_scorer(EnsembleScoring(ScorerModel(str(ensemble[0])), members=(str(same),)), lone_mesh, "proxy")


@pytest.mark.parametrize(("changes", "words"), [
    ({"num_labels": 1, "tie_embeddings": False}, "at least two members and this checkpoint is one reward model"),
    ({}, "one of these is a language model"),
    ({"num_labels": 2, "labels": ("length", "quality"), "tie_embeddings": False},
     "outputs of this checkpoint are length, quality: different things"),
], ids=["one head", "no head", "ODIN"])
def test_what_is_no_ensemble_is_refused(make_model, lone_mesh, tmp_path, changes, words):
    folder = make_model(tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=words):
        open_scorer(EnsembleScoring(ScorerModel(str(folder))), lone_mesh, "proxy")


def test_training_goes_on_from_an_ensemble_of_as_many_members(ensemble, do_verb, world, tmp_path):
    rows = str(world / "preference.jsonl")
    do_verb("reward", tmp_path / "more", model_name_or_path=str(ensemble[0]), dataset_name=rows, max_steps=1,
            **TRAIN)
    assert read_config(tmp_path / "more/model") == read_config(ensemble[0])
    with pytest.raises(ValueError, match=r"members = 4 and this checkpoint has 3 output\(s\)"):
        do_verb("reward", tmp_path / "four", model_name_or_path=str(ensemble[0]), dataset_name=rows,
                **{**TRAIN, "members": 4})


def test_an_adapter_trains_all_heads_and_its_outputs_are_members(do_verb, model, world, tmp_path, lone_mesh):
    do_verb("reward", tmp_path / "lora", model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
            use_peft=True, lora_r=2, lora_target_modules=["q_proj"], max_steps=1, **TRAIN)
    merged = tmp_path / "lora/model"
    assert read_config(merged).num_labels == 3
    both = EnsembleScoring(ScorerModel(str(merged)), members=(str(merged / "adapter"),))
    for verdict in open_scorer(both, lone_mesh, "proxy").score([GROUP])[0]:
        assert members_of(verdict)[:3] == pytest.approx(members_of(verdict)[3:], rel=1e-4)


@pytest.fixture(scope="module")
def adapters(do_verb, model, world, tmp_path_factory):
    """Two adapters of reward models over one language model."""
    def trained(seed):
        folder = tmp_path_factory.mktemp("adapter")
        do_verb("reward", folder, model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
                use_peft=True, lora_r=2, lora_target_modules=["q_proj", "down_proj"], max_steps=3, seed=seed,
                **{name: x for name, x in TRAIN.items() if name not in ("kind", "members", "learning_rate")},
                learning_rate=0.05)
        return folder / "model/adapter"

    return trained(0), trained(1)


def test_adapters_on_one_backbone_hold_it_once_and_say_what_each_says_alone(adapters, lone_mesh):
    one, other = map(Checkpoint.find, adapters)
    found = member_weights({"0": one, "1": other}, lone_mesh, np.float32)
    assert found["0"]["embed"] is found["1"]["embed"]
    shared = {id(x) for x in jax.tree.leaves(found["0"])} & {id(x) for x in jax.tree.leaves(found["1"])}
    held = sum(x.size for member in found.values() for x in jax.tree.leaves(member) if id(x) not in shared)
    assert held < 0.2 * sum(x.size for x in jax.tree.leaves(found["0"]))

    options = EnsembleScoring(ScorerModel(str(adapters[0])), members=(str(adapters[1]),))
    (together,) = open_scorer(options, lone_mesh, "proxy").score([GROUP])
    alone = [open_scorer(BradleyTerryScoring(ScorerModel(str(folder))), lone_mesh, "proxy").score([GROUP])[0]
             for folder in adapters]
    for place, verdict in enumerate(together):
        assert members_of(verdict) == pytest.approx([member[place][""] for member in alone], rel=1e-4, abs=1e-5)
        assert abs(verdict["member-0"] - verdict["member-1"]) > 1e-3


def test_an_adapter_beside_its_merged_model_is_read_as_it_is_alone(adapters, lone_mesh):
    merged = Checkpoint.find(adapters[0].parent)
    found = member_weights({"0": merged, "1": Checkpoint.find(adapters[1])}, lone_mesh, np.float32)
    assert isinstance(found["1"]["layers"]["attention"]["q"], jax.Array)  # merged: nobody shares its base
    assert found["0"]["embed"] is not found["1"]["embed"]


def test_members_draw_prompts_by_themselves_and_the_same_ones_every_time():
    options = EnsembleOptions(members=4)
    found = np.array([list(draws(f"prompt {i}", options).values()) for i in range(2000)])
    assert np.abs(found.mean(axis=0) - 1).max() < 0.1  # each row once on average
    assert np.abs(found.var(axis=0) - 1).max() < 0.15
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.1
    assert draws("prompt 0", options) == draws("prompt 0", options)
    other = dataclasses.replace(options, train=TrainConfig(seed=1))
    assert [draws(f"prompt {i}", other) for i in range(9)] != [draws(f"prompt {i}", options) for i in range(9)]


def test_rows_of_one_prompt_are_drawn_together_and_keep_their_numbers():
    options = EnsembleOptions(members=2)
    examples = [Example(prompt, ("a", "b"), pairs=((0, 1),), scores=({"data": 1.0}, {}), prompt_id=str(i))
                for i, prompt in enumerate(("Write  it.", [{"role": "user", "content": "write it."}]))]
    one, two = with_draws(options, examples, Funnel(), None)
    assert one.scores[1] == two.scores[1] == draws("write it.", options)
    assert one.scores[0]["data"] == 1.0
    plain = build(EnsembleOptions, {"members": 2, "bootstrap": False})
    assert with_draws(plain, examples, Funnel(), None) == examples


def test_without_a_bootstrap_members_differ_by_their_start_alone(do_verb, model, world, tmp_path):
    do_verb("reward", tmp_path / "all", model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
            max_steps=1, bootstrap=False, **TRAIN)
    heads = jax.device_get(load_params(tmp_path / "all/model")["score"])
    assert np.abs(heads[0] - heads[1]).max() > 0.05
