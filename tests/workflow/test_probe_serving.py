"""From graded rows to features, to a probe, to scores: every number served is the one that the features say."""

import json
import sys

import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.scorer import (
    BradleyTerryScoring,
    MultiObjectiveScoring,
    RegressionScoring,
    ScorerModel,
    TreeScoring,
)
from rlhf_jax.data.example import Example, as_text
from rlhf_jax.data.features import read_features
from rlhf_jax.data.jsonl import read_jsonl, write_jsonl_atomic
from rlhf_jax.models import CheckpointError, gated_scores, load_params, read_config
from rlhf_jax.training.tree import Tree, probability
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.stages.shards import shard_name

NAMES = ("honest", "vivid", "words")
FEW = {"few_rows": True, "held_out": 0.3}
GATE = {"gate_hidden": 8, "gate_layers": 2, "gate_steps": 20}


@pytest.fixture(scope="module")
def rated(world):
    """Two answers to each prompt with three ratings each, some of them missing."""
    rng, rows = np.random.default_rng(0), []
    for number, row in enumerate(read_jsonl(world / "preference.jsonl")):
        ratings = [{name: float(rng.random()) for name in NAMES if name != NAMES[number % 4 - 1]} for _ in range(2)]
        rows.append({"id": f"p{number}", "prompt": row["prompt"], "responses": [
            {"text": row[side], "score": score, "scores": some}
            for side, score, some in zip(("chosen", "rejected"), (1.0, 0.0), ratings, strict=True)]})
    return rows


@pytest.fixture(scope="module")
def features(do_verb, model, rated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_jsonl_atomic(folder / "rated.jsonl", rated)
    do_verb("features", folder / "f", model_name_or_path=str(model), kind="preference",
            dataset_name=str(folder / "rated.jsonl"))
    return folder / "f"


@pytest.fixture(scope="module")
def groups(rated):
    return [as_text(Example(row["prompt"], tuple(r["text"] for r in row["responses"]), prompt_id=row["id"]))
            for row in rated]


@pytest.fixture(scope="module")
def probe(do_verb, model, features):
    def run(folder, **changes):
        paired = {} if changes.get("kind") == "ridge" else {"pairs": str(features)}
        objectives = [f"data/{name}" for name in NAMES]
        done = do_verb("probe", folder, **{"model_name_or_path": str(model), "ratings": str(features), **paired,
                                           "objectives": objectives, **FEW, **changes})
        return done.folder / "model"

    return run


@pytest.fixture(scope="module")
def armorm(probe, tmp_path_factory):
    return probe(tmp_path_factory.mktemp("armorm"), debias="words", **GATE)


@pytest.fixture(scope="module")
def states(features):
    """Of each prompt its answers' states [2, D], and its own [D]."""
    shard = read_features(features / shard_name(0))
    return list(zip(shard.response.reshape(-1, 2, shard.response.shape[1]), shard.prompt, strict=True))


def opened(options, mesh):
    return open_scorer(options, mesh, "gold")


def test_inspect_says_what_a_probe_serves(armorm, probe, tmp_path):
    facts = inspect_model(armorm, MeshConfig(), 1).facts
    assert (facts["serves"], facts["outputs"]) == ("kind: multi_objective", "honest, vivid, words")
    ridge = inspect_model(probe(tmp_path, kind="ridge"), MeshConfig(), 1).facts
    assert ridge["serves"] == "kind: regression; kind: bradley_terry with output"


@pytest.mark.longer
def test_the_packed_model_serves_every_objective_and_what_it_counts(armorm, states, groups, lone_mesh):
    params, config = load_params(armorm), read_config(armorm)
    scores = opened(MultiObjectiveScoring(ScorerModel(str(armorm))), lone_mesh).score(groups)
    assert len(scores) == len(states)
    for (answers, prompt), found in zip(states, scores, strict=True):
        expected = gated_scores(params, config, answers, np.broadcast_to(prompt, answers.shape))
        for i, verdict in enumerate(found):
            assert verdict[""] == pytest.approx(float(expected.score[i]), rel=1e-4, abs=1e-6)
            for k, name in enumerate(NAMES):
                assert verdict[name] == pytest.approx(float(expected.rewards[i, k]), rel=1e-4, abs=1e-5)
                assert verdict[f"coefficient/{name}"] == pytest.approx(float(expected.coefficients[i, k]), rel=1e-4,
                                                                       abs=1e-6)
            parts = sum(verdict[name] * verdict[f"coefficient/{name}"] for name in NAMES)
            assert verdict[""] == pytest.approx(parts, rel=1e-4, abs=1e-6)
    stored = groups[0].with_scores("gold", scores[0]).responses[0].scores
    assert {"gold", "gold/vivid", "gold/coefficient/vivid"} <= stored.keys()


def test_a_regression_serves_its_outputs_by_name(probe, states, groups, lone_mesh, tmp_path):
    model = probe(tmp_path, kind="ridge")
    weights = np.asarray(load_params(model)["score"])
    scores = opened(BradleyTerryScoring(ScorerModel(str(model)), output=1), lone_mesh).score(groups)
    for (answers, _), found in zip(states, scores, strict=True):
        for answer, verdict in zip(answers, found, strict=True):
            expected = dict(zip(("honest", "", "words"), weights @ answer, strict=True))
            assert verdict == pytest.approx(expected, rel=1e-4, abs=1e-5)
    named = opened(RegressionScoring(ScorerModel(str(model)), objective="vivid"), lone_mesh).score(groups)
    assert [[{**verdict, "vivid": verdict[""]} for verdict in group] for group in scores] == named


@pytest.mark.slow
@pytest.mark.torch
def test_a_torch_module_of_the_published_layout_gives_the_same_scores(armorm, states, groups, armorm_in_torch,
                                                                      lone_mesh):
    torch = pytest.importorskip("torch")
    theirs = armorm_in_torch(armorm)
    scores = opened(MultiObjectiveScoring(ScorerModel(str(armorm))), lone_mesh).score(groups)
    for (answers, prompt), found in zip(states, scores, strict=True):
        with torch.no_grad():
            gate = theirs.gating(torch.tensor(np.array(prompt)))
            rewards = theirs.regression_layer(torch.tensor(np.array(answers))) @ theirs.reward_transform_matrix
        for verdict, expected in zip(found, (rewards @ gate).tolist(), strict=True):
            assert verdict[""] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def tree(probe, tmp_path_factory):
    pytest.importorskip("sklearn")
    return probe(tmp_path_factory.mktemp("tree"), kind="tree", tree_depth=2, tree_bootstraps=5)


def test_a_tree_is_served_without_scikit_learn(tree, states, groups, lone_mesh, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    weights = np.asarray(load_params(tree)["score"])
    stored = json.loads((tree / "tree.json").read_text())
    assert stored["objectives"] == list(NAMES)
    grown = Tree.from_json(stored["tree"])
    scorer = opened(TreeScoring(ScorerModel(str(tree))), lone_mesh)
    games = [(group.prompt, group.responses[0].text, group.responses[1].text) for group in groups]
    compared = scorer.compare(games)
    for (answers, _), group, verdicts, p in zip(states, groups, scorer.score(groups), compared, strict=True):
        expected = float(probability(grown, (weights @ (answers[0] - answers[1]))[None])[0])
        assert p == pytest.approx(expected, abs=1e-6), group.prompt_id
        assert [v[""] for v in verdicts] == pytest.approx([expected, 1 - expected], abs=1e-6)
        assert verdicts[0]["vivid"] == pytest.approx(float(weights[1] @ answers[0]), rel=1e-4, abs=1e-5)
    assert len(set(compared)) > 1


def test_a_tree_judges_any_number_of_answers_and_none_alone(tree, groups, lone_mesh):
    scorer = opened(TreeScoring(ScorerModel(str(tree))), lone_mesh)
    texts = tuple(r.text for group in groups[:2] for r in group.responses)
    many = as_text(Example(groups[0].prompt, texts, prompt_id="many"))
    alone = as_text(Example(groups[0].prompt, texts[:1], prompt_id="alone"))
    verdicts, lonely = scorer.score([many, alone])
    assert sum(verdict[""] for verdict in verdicts) == pytest.approx(2.0)  # four answers, six games
    assert lonely == [None]
    assert inspect_model(tree, MeshConfig(), 1).facts["serves"].startswith("kind: tree")
    assert scorer.name == "gold"


def test_its_report_says_what_decides(tree):
    report = json.loads((tree.parent / "stage.json").read_text())["report"]["tree"]
    assert set(report["importances"]) == set(NAMES)
    assert sum(found["mean"] for found in report["importances"].values()) == pytest.approx(1.0, abs=1e-6)
    assert "P(first better)" in (tree / "README.md").read_text()


def test_a_tree_that_is_not_there_or_is_none_is_refused(tree, armorm, lone_mesh, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no tree\.json; give a model that"):
        opened(TreeScoring(ScorerModel(str(armorm))), lone_mesh)
    for path in tree.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tree.json").write_text('{"tree": {"objective": [7]}}')
    with pytest.raises(CheckpointError, match="holds no decision tree"):
        opened(TreeScoring(ScorerModel(str(tmp_path))), lone_mesh)
    foreign = Tree(*(np.array(x) for x in ([9, -1, -1], [0.0] * 3, [1, -1, -1], [2, -1, -1], [0.5, 0.0, 1.0])))
    (tmp_path / "tree.json").write_text(json.dumps({"tree": foreign.to_json()}))
    with pytest.raises(CheckpointError, match="looks at objective 9 and the model beside it has 3 outputs"):
        opened(TreeScoring(ScorerModel(str(tmp_path))), lone_mesh)


def test_a_tree_asked_without_its_extra_is_refused_before_any_work(probe, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(RuntimeError, match="install rlhf_jax with the extra 'trees'"):
        probe(tmp_path, kind="tree")
    assert not (tmp_path / "model").exists()
