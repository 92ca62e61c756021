"""The enhancer as a pair rule: states beside scores, pairs that follow from them, and what rounds hand on."""

import json

import numpy as np
import pytest

from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.data.features import read_features, response_id, write_features
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.models import load_params
from rlhf_jax.scoring import FunctionScorer
from rlhf_jax.workflow.enhancer import EarlierPairs, Enhancer, StoredStates
from rlhf_jax.workflow.products import COVARIANCE, FEATURES, PAIRS, DamagedProduct
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.score import ScoreStage
from rlhf_jax.workflow.stages.shards import ShardFolder, shard_name

SCORES = (3.0, 2.0, 1.0)
STATES = np.float32([[0, 0], [2, 0], [0, 1]])  # the second best differs along e1, the worst by less along e2


def scored(folder, names=("p0", "p1"), states=STATES):
    """Shards of prompts with three answers each, and the states of these."""
    groups = [PromptGroup(name, np.array([1], np.int32), tuple(
        Response(np.array([7, i + 10], np.int32), np.ones(2, bool), "x", scores={"proxy": score})
        for i, score in enumerate(SCORES)), prompt=name) for name in names]
    (folder / FEATURES).mkdir(parents=True)
    write_features(folder / FEATURES / shard_name(0), groups, [
        [np.stack([state, np.full_like(state, np.nan)]) for state in states] for _ in groups], np.float32)
    write_groups(folder / shard_name(0), groups)
    return folder


@pytest.fixture
def pair(make_context, tmp_path):
    """pair(name, source, earlier, **options): pairs and folder of a stage of the enhancer."""

    def make(name, source, earlier=None, **options):
        stage = PairsStage(source=ShardFolder(source), options=PairOptions(rule="enhancer", **options),
                           states=StoredStates(source / FEATURES), earlier=earlier and EarlierPairs(earlier))
        done = make_context(tmp_path / "run").do(name, stage)
        return [g.extra["response_indices"] for g in read_groups(done.folder / PAIRS)], done.folder

    return make


def test_rounds_go_where_earlier_pairs_said_least(pair, tmp_path):
    source = scored(tmp_path / "scored")
    first, folder = pair("one", source)
    assert first == [[0, 1], [0, 1]]  # both under the same covariance, whatever the other's pair is
    np.testing.assert_allclose(np.load(folder / COVARIANCE), np.diag([1 + 2 * 4.0, 1.0]))
    second, later = pair("two", source, folder)
    assert second == [[0, 2], [0, 2]]
    np.testing.assert_allclose(np.load(later / COVARIANCE), np.diag([9.0, 3.0]))
    assert pair("near", source, folder, width=1.0)[0] == [[0, 1], [0, 1]]
    assert pair("stiff", source, folder, ridge=1.0)[0] == second


def test_width_0_is_max_max_and_a_budget_is_all_that_is_learned(pair, tmp_path):
    source = scored(tmp_path / "scored", states=STATES[::-1])
    assert pair("none", source, width=0.0)[0] == [[0, 1], [0, 1]]
    _, folder = pair("one", source, budget=1)
    difference = STATES[2] - STATES[1]  # of one pair alone
    np.testing.assert_allclose(np.load(folder / COVARIANCE), np.eye(2) + np.outer(difference, difference))


def test_features_are_projected_where_that_is_asked(pair, tmp_path):
    source = scored(tmp_path / "scored")
    _, folder = pair("one", source, projection=1)
    assert np.load(folder / COVARIANCE).shape == (1, 1)
    with pytest.raises(ValueError, match="earlier pairs' features have 1 numbers and these 2"):
        pair("two", source, folder)
    assert pair("same", source, folder, projection=1)
    with pytest.raises(ValueError, match="were projected by another seed than 3"):
        pair("other", source, folder, projection=1, seed=3)


def test_a_pair_stage_is_keyed_by_the_states_it_reads(tmp_path):
    one, two = (scored(tmp_path / name, states=states) for name, states in (("one", STATES), ("two", 2 * STATES)))
    assert ShardFolder(one).key == ShardFolder(two).key
    assert StoredStates(one / FEATURES).key != StoredStates(two / FEATURES).key


def test_what_is_not_there_is_said(pair, tmp_path):
    source = scored(tmp_path / "scored")
    with pytest.raises(ValueError, match=r"holds no covariance.npy; give the output_dir of a finished `rlhf-jax pairs"):
        pair("one", source, tmp_path)
    others = scored(tmp_path / "others", names=("q0",))
    enhancer = Enhancer(PairOptions(rule="enhancer"), StoredStates(others / FEATURES))
    (group, *_) = read_groups(source / shard_name(0))
    with pytest.raises(ValueError, match=r"the features hold no answer .* to 'p0', which has a score"):
        enhancer.places(group, [0, 1, 2], SCORES)
    with pytest.raises(ValueError, match=r"rule = 'enhancer' reads the reward model's features, .* holds none"):
        StoredStates(tmp_path / "nothing").read()


@pytest.fixture(scope="module")
def judged(do_verb, make_model, tmp_path_factory):
    """A reward model, and rows of text that it scored with features: three answers each, one too long for it."""
    folder = tmp_path_factory.mktemp("judged")
    model = make_model(folder / "rm", num_labels=1, tie_embeddings=False)
    answers = {"responses": ["Dear Mia.", "The cat sat. " * 3, "No. " * 200], "rewards": [1, 2, 3]}
    rows = [{"prompt": f"Write {name}.", **answers} for name in ("one", "two", "three")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"kind": "bradley_terry", "model_name_or_path": str(model), "dataset_name": str(folder / "rows.jsonl"),
             "shard_size": 2, "max_length": 150}
    return model, do_verb("score", folder / "scored", features=True, **given), given


def test_the_states_beside_a_score_are_what_its_head_reads(judged):
    model, done, _ = judged
    head = load_params(model)["score"]
    for name in (shard_name(0), shard_name(1)):
        groups, shard = read_groups(done.folder / name), read_features(done.folder / FEATURES / name)
        answers = [r for group in groups for r in group.responses if "proxy" in r.scores]
        assert len(answers) == 2 * len(groups)  # the long one has neither a score nor a state
        assert [answer for row in shard.rows for answer in row.responses] == list(map(response_id, answers))
        np.testing.assert_allclose(shard.response @ head[0], [r.scores["proxy"] for r in answers], atol=1e-4)
    products = json.loads((done.folder / "stage.json").read_text())["products"]
    assert {f"{FEATURES}/shard-0000{i}.{kind}" for i in (0, 1) for kind in ("jsonl", "safetensors")} <= products.keys()


@pytest.mark.longer
def test_a_killed_scoring_writes_its_states_again_to_the_same_bytes(judged, do_verb, tmp_path):
    _, done, given = judged
    again = tmp_path / "again"
    (again / FEATURES).mkdir(parents=True)
    (again / FEATURES / shard_name(0)).write_text("{}\n")  # killed before its shard of scores was there
    do_verb("score", again, features=True, **given)
    for path in sorted(done.folder.rglob("shard-*")):
        assert (again / path.relative_to(done.folder)).read_bytes() == path.read_bytes()


def test_the_verbs_one_after_the_other(judged, do_verb, tmp_path):
    _, done, _ = judged
    first = do_verb("pairs", tmp_path / "one", input=str(done.folder), rule="enhancer")
    assert first.report["funnel"]["kept"] == 3
    second = do_verb("pairs", tmp_path / "two", input=str(done.folder), rule="enhancer", earlier=str(tmp_path / "one"))
    grown = [np.linalg.eigvalsh(np.load(stage.folder / COVARIANCE)) for stage in (first, second)]
    assert np.all(grown[1] >= grown[0] - 1e-9)
    assert grown[1].max() > grown[0].max()


@pytest.mark.longer
def test_states_that_something_else_changed_are_refused(judged, do_verb, tmp_path):
    _, _, given = judged
    done = do_verb("score", tmp_path / "scored", features=True, **given)
    (done.folder / FEATURES / "shard-00000.safetensors").write_bytes(b"")
    with pytest.raises(DamagedProduct, match=r"features/shard-00000.safetensors has 0 bytes"):
        do_verb("pairs", tmp_path / "pairs", input=str(done.folder), rule="enhancer")


def test_a_scorer_without_states_is_refused(make_context, tmp_path):
    def lengths(prompts, completions, **columns):
        return list(map(len, completions))

    stage = ScoreStage(scorer=FunctionScorer(lengths, name="proxy"), source=ShardFolder(tmp_path), features=True)
    with pytest.raises(ValueError, match="features are the hidden states of a reward model, and the scorer 'proxy'"):
        stage.preview(make_context(tmp_path))
