"""Probes: what was put into features comes out as a model's heads; whatever cannot be regressed or gated is refused."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from rlhf_jax.config.build import build
from rlhf_jax.config.probe import ProbeCommand
from rlhf_jax.data.features import write_features
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.models import Gate, load_params, read_config
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.probing import find_objectives
from rlhf_jax.workflow.stage import run_stage
from rlhf_jax.workflow.stages.shards import shard_name

WIDTH, PROMPTS = 16, 1000
NAMES = ("honest", "vivid", "words")
GATE = {"gate_hidden": 16, "gate_layers": 1, "gate_steps": 300, "gate_batch_size": 256,
        "gate_learning_rate": 0.03}


@pytest.fixture(scope="module")
def truth():
    """[3, D] what the ratings are made of; the last one, verbosity, is in the other two."""
    weights = np.random.default_rng(0).normal(size=(3, WIDTH)) / WIDTH**0.5 * 0.1
    weights[:2] += 0.5 * weights[2]
    return weights


@pytest.fixture(scope="module")
def make_features(model, truth):
    """make_features(folder, **changes): two answers to each prompt, rated on half of the objectives, as if a model had
    read them. The prompt's first number says whether honest or vivid counts."""

    def make(folder, seed=0, prompts=PROMPTS, gate=True, pairs=True, scores=None, key=None):
        rng = np.random.default_rng(seed)
        one = np.array([1], np.int32)

        def group(number, states):
            ratings = np.clip(0.5 + states[:, 0] @ truth.T, 0, 1)
            rated = [{f"data/{NAMES[k]}": float(r[k]) for k in range(3) if rng.random() < 0.5} for r in ratings]
            first = ratings[0] > ratings[1]
            better = first[int(states[0, 1, 0] > 0)]
            answers = tuple(Response(one * (2 * number + i + 1), one == 1, "", scores=scores or some)
                            for i, some in enumerate(rated))
            return PromptGroup(f"{seed}-{number}", one, answers, f"prompt {seed} {number}",
                               ((0, 1) if better else (1, 0),) * pairs)

        def body(folder):
            for shard in range(-(-prompts // 100)):
                states = rng.normal(size=(100, 2, 2, WIDTH))
                states[..., 0, -1] = 1.0  # what a constant can be regressed on
                states[:, 1, 1] = states[:, 0, 1]
                groups = [group(100 * shard + i, some) for i, some in enumerate(states)]
                states[:, :, 1] = states[:, :, 1] if gate else np.nan
                write_features(folder / shard_name(shard), groups, list(states), np.float32)
            return {}

        inputs = {"model": key or Checkpoint(model).key, "pool": "last", "dtype": "float32", "seed": seed}
        run_stage(folder, "features", inputs, body)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def features(make_features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return make_features(folder / "rated"), make_features(folder / "pairs", seed=1)


@pytest.fixture(scope="module")
def probe(do_verb, model, features):
    """probe(folder, **changes): what it reports."""

    def run(folder, **changes):
        pairs = {"pairs": features[1]} if changes.get("kind", "armorm") == "armorm" else {}
        return do_verb("probe", folder, **{"model_name_or_path": str(model), "ratings": features[0], **pairs,
                                           **changes}).report

    return run


@pytest.fixture(scope="module")
def armorm(probe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("armorm")
    return folder, probe(folder, debias="words", **GATE)


@pytest.mark.longer
def test_a_ridge_model_has_an_output_for_each_objective_by_name(probe, model, truth, tmp_path):
    report = probe(tmp_path / "p", kind="ridge")
    assert list(report["objectives"]) == list(NAMES)
    for found in report["objectives"].values():
        assert found["r2"] > 0.95
        assert 0.15 < found["held_out"] / found["rows"] < 0.25
    config, before = read_config(tmp_path / "p" / "model"), read_config(model)
    assert (config.num_labels, config.labels, config.gate) == (3, NAMES, None)
    params, base = load_params(tmp_path / "p" / "model"), load_params(model)
    np.testing.assert_allclose(params["score"][:, :-1], truth[:, :-1], atol=0.02)
    jax.tree.map(np.testing.assert_array_equal, params["layers"], base["layers"])
    assert "head" not in params
    assert before.num_labels == 0


def test_the_gate_sees_which_objective_counts(armorm):
    _, report = armorm
    assert report["gate"]["accuracy"]["value"] > report["gate"]["accuracy_of_the_plain_sum"]["value"] + 0.05
    assert report["gate"]["pairs"] + report["gate"]["held_out"] == PROMPTS


def test_the_other_objectives_are_freed_of_one(armorm, make_features, tmp_path):
    folder, report = armorm
    assert report["debias"]["of"] == "words"
    assert report["debias"]["still_following"] == []
    params = load_params(folder / "model")
    transform = np.asarray(params["reward_transform"])
    assert transform[2, 2] == 0
    for k, name in enumerate(NAMES[:2]):
        found = report["debias"]["objectives"][name]
        assert found["before"] > 0.15
        assert abs(found["after"]) <= 0.03 + 1e-6
        assert transform[2, k] == pytest.approx(-found["penalty"], rel=1e-6)
    states = np.random.default_rng(5).normal(size=(4000, WIDTH))
    states[:, -1] = 1.0
    rewards = states @ np.asarray(params["score"]).T
    assert abs(spearmanr((rewards @ transform)[:, 0], rewards[:, 2]).statistic) < 0.08


def test_the_packed_model_has_the_published_layout(armorm):
    from safetensors.numpy import load_file

    folder, _ = armorm
    names = set(load_file(folder / "model" / "model.safetensors"))
    assert {"regression_layer.weight", "reward_transform_matrix", "gating.logit_scale", "gating.layers.0.weight",
            "gating.layers.1.bias"} <= names
    assert not {"score.weight", "lm_head.weight"} & names
    config = read_config(folder / "model")
    assert config.gate == Gate(16, 1, 10.0)
    assert config.labels == NAMES


@pytest.mark.longer
def test_the_same_command_gives_the_same_bytes(armorm, probe, tmp_path):
    folder, _ = armorm
    probe(tmp_path / "again", debias="words", **GATE)
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / "model" / name).read_bytes() == (folder / "model" / name).read_bytes()


@pytest.mark.longer
def test_without_a_debiased_objective_the_transform_is_the_identity(probe, tmp_path):
    assert probe(tmp_path / "p", **GATE)["debias"] == {}
    np.testing.assert_array_equal(load_params(tmp_path / "p" / "model")["reward_transform"], np.eye(3))


@pytest.mark.longer
def test_the_published_grid_and_row_split_are_options(probe, tmp_path):
    exact, seeds = (probe(tmp_path / name, kind="ridge", **changes) for name, changes in {
        "exact": {}, "seeds": {"split": "row", "refit": False}}.items())
    assert seeds["objectives"]["vivid"]["rows"] < exact["objectives"]["vivid"]["rows"]
    found = probe(tmp_path / "grid", debias="words", debias_grid="armorm", **GATE)["debias"]["objectives"]
    assert {round(row["penalty"] * 1000) % 25 for row in found.values()} <= {0, 10}


def test_objectives_that_nobody_names_are_armorms_in_its_order_and_others_by_name():
    names = ("data/zest", "data", "proxy", "data/helpsteer-verbosity", "data/helpsteer-helpfulness", "data/apt")
    row = SimpleNamespace(scores=(dict.fromkeys(names, 0.5),))
    found = find_objectives(SimpleNamespace(shards=lambda: iter([SimpleNamespace(rows=[row])])), ())
    assert [objective.name for objective in found] == ["helpsteer-helpfulness", "helpsteer-verbosity", "data", "apt",
                                                       "zest"]


def test_objectives_are_chosen_by_name_and_scale(probe, make_features, tmp_path):
    report = probe(tmp_path / "one", kind="ridge", objectives=["data/vivid"])
    assert list(report["objectives"]) == ["vivid"]
    with pytest.raises(ValueError, match="no row is rated for 'data/funny'"):
        probe(tmp_path / "none", kind="ridge", objectives=["data/vivid", "data/funny"])
    with pytest.raises(ValueError, match="named twice"):
        probe(tmp_path / "twice", kind="ridge", objectives=["data/vivid", "data/vivid:1:5"])
    with pytest.raises(ValueError, match=r"prompt '0-\d+': data/vivid is rated 0\.\d+, and its scale is 1 to 5"):
        probe(tmp_path / "scale", kind="ridge", objectives=["data/vivid:1:5"])


def test_what_cannot_be_probed_is_refused(probe, make_features, features, model, tmp_path):
    few = make_features(tmp_path / "few", prompts=100)
    with pytest.raises(ValueError, match=r"'data/honest' is rated in \d training rows and a feature has 16 numbers"):
        probe(tmp_path / "a", kind="ridge", ratings=few, held_out=0.95)
    with pytest.raises(ValueError, match="no answer of the features is rated"):
        probe(tmp_path / "b", kind="ridge",
              ratings=make_features(tmp_path / "proxy", prompts=100, scores={"proxy": 1.0}))
    with pytest.raises(ValueError, match="has no end of turn before its answers, so the gate has no place"):
        probe(tmp_path / "c", pairs=make_features(tmp_path / "gateless", prompts=100, gate=False), **GATE)
    with pytest.raises(ValueError, match="hold no pair"):
        probe(tmp_path / "d", pairs=make_features(tmp_path / "pairless", prompts=100, pairs=False), **GATE)
    with pytest.raises(ValueError, match="debias = 'length' is none of the objectives, which are honest, vivid, words"):
        probe(tmp_path / "e", debias="length", **GATE)
    with pytest.raises(ValueError, match="of another model than"):
        probe(tmp_path / "f", kind="ridge", ratings=make_features(tmp_path / "foreign", prompts=100, key="another"))
    shutil.copytree(features[0], tmp_path / "begun")
    (tmp_path / "begun" / "stage.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        probe(tmp_path / "g", kind="ridge", ratings=str(tmp_path / "begun"))


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "armorm"}, "kind = 'armorm' learns from pairs, and none are given"),
    ({"kind": "ridge", "pairs": "p"}, "pairs = 'p' has no effect with kind = 'ridge'"),
    ({"kind": "ridge", "reference": "p"}, "reference = 'p' has no effect without debias"),
    ({"pairs": "p", "reference": "p"}, "reference = 'p' has no effect without debias"),
    ({"pairs": "p", "debias_threshold": 0.1}, "debias_threshold = 0.1 has no effect"),
    ({"kind": "ridge", "ratings": []}, "ratings names no folder"),
])
def test_options_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(ProbeCommand, {"model_name_or_path": "m", "ratings": "f", "output_dir": "o", **changes})


@pytest.mark.longer
def test_no_features_of_all_rows_are_in_memory_at_once(probe, make_features, monkeypatch, tmp_path):
    """Ten times the rows: the same number of rows is asked for at a time."""
    from rlhf_jax.workflow import probing as module

    largest = []
    read = module.shard_rewards
    monkeypatch.setattr(module, "shard_rewards", lambda shard, w: largest.append(len(shard.response)) or read(shard, w))
    probe(tmp_path / "p", ratings=make_features(tmp_path / "many", prompts=2000), debias="words", **GATE)
    assert max(largest) == 200


def test_a_probe_of_a_probe_keeps_its_backbone(armorm, do_verb, make_features, tmp_path):
    folder, _ = armorm
    packed = folder / "model"
    rated = make_features(tmp_path / "f", key=Checkpoint(packed).key)
    do_verb("probe", tmp_path / "p", model_name_or_path=str(packed), ratings=rated, kind="ridge")
    config = read_config(tmp_path / "p" / "model")
    assert (config.gate, config.num_labels) == (None, 3)
    assert dataclasses.replace(config, gate=Gate(16, 1, 10.0)) == read_config(packed)
