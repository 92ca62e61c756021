"""ODIN as a kind: trained on pairs with lengths, served by its quality, refused where it is something else."""

import pytest

from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.scorer import BradleyTerryScoring, OdinScoring, ScorerModel
from rlhf_jax.config.training import OdinOptions
from rlhf_jax.data.example import Example, as_text
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.models import CheckpointError, load_params, read_config
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.kinds.odin import with_lengths

pytestmark = pytest.mark.longer
TRAIN = {"kind": "odin", "train_batch_size": 8, "micro_rows": 8, "row_length": 192, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def odin(do_verb, model, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odin")
    done = do_verb("reward", folder, model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
                   eval_dataset_name=str(world / "preference_eval.jsonl"), **TRAIN)
    return folder / "model", done.report


def test_it_is_trained_with_two_named_heads_and_its_correlations_are_logged(odin):
    folder, report = odin
    config = read_config(folder)
    assert (config.num_labels, config.labels) == (2, ("length", "quality"))
    assert load_params(folder)["score"].shape == (2, 16)
    for name in ("correlation/length_head", "correlation/quality_head"):
        assert -1 <= report["train"][name] <= 1
        assert -1 <= report["eval"][f"eval_{name}"] <= 1
    assert {"accuracy", "accuracy_of_both_heads", "orthogonality"} <= report["train"].keys()


def test_inspect_says_what_it_serves(odin, model):
    found = inspect_model(odin[0], MeshConfig(), 1).facts
    assert (found["serves"], found["outputs"]) == ("kind: odin", "length, quality")
    assert inspect_model(model, MeshConfig(), 1).facts["serves"].startswith("a policy")


def test_it_is_served_by_its_quality_and_the_length_stands_beside_it(odin, lone_mesh):
    folder, _ = odin
    group = as_text(Example([{"role": "user", "content": "Write."}], ("Dear Mia.", "The cat sat. " * 9)))
    (found,) = open_scorer(OdinScoring(ScorerModel(str(folder))), lone_mesh, "proxy").score([group])
    (plain,) = open_scorer(BradleyTerryScoring(ScorerModel(str(folder)), output=1), lone_mesh, "proxy").score([group])
    assert found == plain
    assert [set(verdict) for verdict in found] == [{"", "length"}] * 2
    named = group.with_scores("proxy", found)
    assert set(named.responses[0].scores) == {"proxy", "proxy/length"}


def test_an_adapter_trains_both_heads(do_verb, model, world, tmp_path):
    do_verb("reward", tmp_path / "lora", model_name_or_path=str(model), dataset_name=str(world / "preference.jsonl"),
            use_peft=True, lora_r=2, lora_target_modules=["q_proj"], max_steps=1, **TRAIN)
    assert read_config(tmp_path / "lora" / "model").labels == ("length", "quality")


def test_training_goes_on_from_an_odin_model(odin, do_verb, world, tmp_path):
    folder, _ = odin
    do_verb("reward", tmp_path / "more", model_name_or_path=str(folder), dataset_name=str(world / "preference.jsonl"),
            max_steps=1, **TRAIN)
    assert read_config(tmp_path / "more" / "model") == read_config(folder)


def test_what_is_no_odin_model_is_refused(do_verb, make_model, world, lone_mesh, tmp_path):
    plain = make_model(tmp_path / "rm", num_labels=1, tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"has two outputs, length and quality, and this checkpoint has 1"):
        open_scorer(OdinScoring(ScorerModel(str(plain))), lone_mesh, "proxy")
    with pytest.raises(ValueError, match="has two outputs and this checkpoint has 1; start from a language model"):
        do_verb("reward", tmp_path / "o", model_name_or_path=str(plain),
                dataset_name=str(world / "preference.jsonl"), **TRAIN)


def test_a_batch_that_does_not_fit_into_one_micro_batch_is_refused(do_verb, model, world, tmp_path):
    with pytest.raises(ValueError, match=r"looks across a whole batch, and this batch needs \d micro-batches"):
        do_verb("reward", tmp_path / "o", model_name_or_path=str(model),
                dataset_name=str(world / "preference.jsonl"), **{**TRAIN, "micro_rows": 1})


def test_no_row_is_computed_that_is_empty_in_every_step(odin):
    assert odin[1]["packing_efficiency"] > 0.5  # of eight micro rows a batch of eight pairs fills fewer


@pytest.mark.parametrize(("unit", "expected"), [("characters", [9.0, 3.0]), ("tokens", None)])
def test_the_length_is_that_of_the_last_turn(unit, expected, start):
    turns = [{"role": "assistant", "content": "a long first turn"}, {"role": "user", "content": "and?"},
             {"role": "assistant", "content": "No."}]
    example = Example("Write.", ("Dear Mia.", turns), pairs=((0, 1),), scores=({"data": 1.0}, {}))
    (found,) = with_lengths(OdinOptions(length_unit=unit), [example], Funnel(), start.renderer(
        RenderOptions()))
    lengths = [scores["length"] for scores in found.scores]
    tokens = [float(len(start.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in ("Dear Mia.", "No.")]
    assert lengths == (expected or tokens)
    assert found.scores[0]["data"] == 1.0
