"""Self-training: confident pairs are kept, flipped where they must be; rounds are stages and report what came out."""

import json
from types import SimpleNamespace

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.scorer import PairwiseScoring, ScorerModel
from rlhf_jax.config.self_training import SelfTrainingCommand
from rlhf_jax.data.groups import text_group
from rlhf_jax.scoring import PairwiseScorer
from rlhf_jax.workflow import self_training
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.self_training import self_train
from rlhf_jax.workflow.stages.pseudo_label import COMPARED, label_counts, pseudo_labelled

TRAIN = {"train_batch_size": 8, "row_length": 256, "learning_rate": 3e-3, "max_steps": 4}


def said(*values):
    return lambda games: list(values)[: len(games)]


def two(prompt):
    return text_group(prompt, prompt, [("chosen", {}), ("rejected", {})], pairs=((0, 1),), margins=(2.0,))


def test_a_pair_of_p_0_05_is_kept_and_flipped():
    """Fact 13: the published code keeps it with the label it had."""
    groups = [two(name) for name in "abcde"]
    found = pseudo_labelled(groups, said(0.05, 0.95, 0.8, 0.2, None), 0.8)
    assert [group.pairs for group in found] == [((1, 0),), ((0, 1),), (), (), ()]
    assert [group.margins for group in found] == [()] * 5  # those of the old labels say nothing of the new ones
    assert [group.extra[COMPARED] for group in found] == [[[0, 1, p]] for p in (0.05, 0.95, 0.8, 0.2, None)]
    assert label_counts(found) == {"prompts": 5, "compared": 5, "kept_pairs": 2, "kept_share": 0.4, "flip_rate": 0.5,
                                   "failed": 1}


def test_all_pairs_of_several_answers_are_asked_and_labels_are_not_read():
    group = text_group("a", "a", [(text, {}) for text in "xyz"])
    asked = []

    def compare(games):
        asked.extend(games)
        return [0.9, 0.1, 0.5]

    (found,) = pseudo_labelled([group], compare, 0.8)
    assert asked == [("a", "x", "y"), ("a", "x", "z"), ("a", "y", "z")]
    assert found.pairs == ((0, 1), (2, 0))
    swapped = text_group("a", "a", [(text, {}) for text in "xyz"], pairs=((2, 1), (1, 0)))
    assert pseudo_labelled([swapped], compare, 0.8)[0].pairs == found.pairs


@pytest.fixture(scope="module")
def command(world, model):
    """command(folder, **changes): self-training on the micro world."""
    def make(folder, **changes):
        return build(SelfTrainingCommand, {
            "model_name_or_path": str(model), "output_dir": str(folder), "rounds": 2, "confidence": 0.5,
            "dataset_name": f"{world / 'preference.jsonl'}[:8]", "max_length": 400, "shard_size": 3,
            "unlabelled_dataset_name": f"{world / 'preference.jsonl'}[8:]",
            "eval_dataset_name": f"{world / 'preference_eval.jsonl'}[:6]", **TRAIN, **changes})

    return make


@pytest.fixture
def certain(monkeypatch):
    """The model of a few steps answers other words than A and B: its letters alone are compared."""
    opened = PairwiseScorer.__init__
    monkeypatch.setattr(PairwiseScorer, "__init__", lambda self, *args, **more: opened(
        self, *args, **{**more, "min_letter_mass": 0.0}))


def names(context):
    return [stage.name for stage in context.run.stages]


@pytest.mark.longer
def test_each_round_is_a_stage_and_reports_what_was_kept_flipped_and_right(command, certain, make_context, products,
                                                                           tmp_path):
    context = make_context(tmp_path / "run")
    rounds = self_train(command(tmp_path / "run"), context)
    assert names(context) == ["round-0/reward", "round-0/evaluate", "round-1/label", "round-1/reward",
                              "round-1/evaluate", "round-2/label", "round-2/reward", "round-2/evaluate"]
    assert [found["round"] for found in rounds] == [0, 1, 2]
    assert [set(found) for found in rounds[1:]] == [{
        "round", "compared", "kept_pairs", "kept_share", "flip_rate", "failed", "accuracy"}] * 2
    assert rounds[1]["compared"] == 8
    assert 0 <= rounds[1]["accuracy"]["low"] <= rounds[1]["accuracy"]["value"] <= 1
    assert json.loads((tmp_path / "run/rounds.json").read_text()) == rounds
    inputs = {s.name: json.loads((s.folder / "inputs.json").read_text())["inputs"] for s in context.run.stages}
    keys = {s.name: s.key for s in context.run.stages}
    assert inputs["round-2/reward"]["start"] == keys["round-1/reward"]
    assert len(inputs["round-1/reward"]["data"]) == 2
    assert inputs["round-1/reward"]["data"][0] == inputs["round-0/reward"]["data"][0]
    last = next(s for s in context.run.stages if s.name == "round-2/reward")
    assert (tmp_path / "run/model").resolve() == (last.folder / "model").resolve()
    assert last.report["groups"] == 8 + rounds[2]["kept_pairs"]
    whole = products(tmp_path / "run")

    class Killed(BaseException):
        pass

    again = make_context(tmp_path / "again")
    shards = []

    def dying(*args):
        if args[0] == "round-1/label":
            shards.append(1)
            if len(shards) == 2:
                raise Killed

    with pytest.raises(Killed):
        self_train(command(tmp_path / "again"), make_context(tmp_path / "again", tick=dying))
    assert self_train(command(tmp_path / "again"), again) == rounds
    assert products(tmp_path / "again") == whole


@pytest.mark.longer
def test_rounds_may_begin_again_from_the_start(command, certain, make_context, tmp_path, start):
    context = make_context(tmp_path)
    self_train(command(tmp_path, rounds=1, init_from="start", eval_dataset_name=()), context)
    inputs = {s.name: json.loads((s.folder / "inputs.json").read_text())["inputs"] for s in context.run.stages}
    assert inputs["round-1/reward"]["start"] == inputs["round-0/reward"]["start"] == start.key
    assert not [name for name in names(context) if "evaluate" in name]


@pytest.mark.longer
def test_a_model_that_is_sure_of_nothing_ends_the_run_and_says_so(command, certain, make_context, tmp_path):
    told = []
    context = make_context(tmp_path)
    context.run.announce = told.append
    rounds = self_train(command(tmp_path, confidence=1.0), context)
    assert [found["round"] for found in rounds] == [0, 1]
    assert rounds[1]["kept_pairs"] == 0
    assert any("round 1 ends the run: of 8 pairs none has more than 1.0 for one side" in text for text in told)


@pytest.mark.parametrize(("changes", "words"), [
    ({"confidence": 0.4}, "confidence = 0.4; it must be at least 0.5 and at most 1"),
    ({"unlabelled_dataset_name": ()}, "unlabelled_dataset_name is empty"),
    ({"eval_steps": 2, "eval_dataset_name": ()}, "eval_steps = 2 has no effect without eval_dataset_name"),
])
def test_what_cannot_work_is_refused(command, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        command(tmp_path, **changes)


@pytest.mark.longer
def test_a_model_that_knows_the_neutral_answer_is_served_with_it(do_verb, model, world, tmp_path, lone_mesh):
    """Trained on 14 rows for a pair, held-out pairs as they are; the third answer counts half for each side."""
    done = do_verb("reward", tmp_path / "rrm", model_name_or_path=str(model), kind="pairwise", augment="rrm",
                   neutral_answer="C", dataset_name=f"{world / 'preference.jsonl'}[:6]", max_length=400,
                   eval_dataset_name=f"{world / 'preference_eval.jsonl'}[:6]", **TRAIN)
    assert done.report["funnel"]["notes"]["augmented"] == 84
    assert done.report["groups"] == 84
    served = PairwiseScoring(ScorerModel(str(tmp_path / "rrm/model")), neutral_answer="C")
    scorer = open_scorer(served, lone_mesh, "proxy")
    scorer._mass = 0.0
    games = [("Write.", "Dear Mia.", "No."), ("Write.", "No.", "Dear Mia.")]
    there, back = scorer.compare(games)
    assert there + back == pytest.approx(1, abs=1e-6)
    plain = open_scorer(PairwiseScoring(ScorerModel(str(tmp_path / "rrm/model"))), lone_mesh, "proxy")
    plain._mass = 0.0
    assert plain.key != scorer.key
    assert abs(plain.compare(games)[0] - 0.5) > abs(there - 0.5)  # what falls on the third answer is shared
    with pytest.raises(Exception, match=r"the reply 'Same again' takes .* Use another neutral_answer, such as C"):
        open_scorer(PairwiseScoring(ScorerModel(str(tmp_path / "rrm/model")), neutral_answer="Same again"), lone_mesh,
                    "proxy")


def test_rounds_judge_with_the_rendering_that_they_train_with(tmp_path, monkeypatch):
    command = build(SelfTrainingCommand, {
        "model_name_or_path": "m", "output_dir": str(tmp_path), "dataset_name": "d", "unlabelled_dataset_name": "u",
        "text_as_chat": True, "system_prompt": "Be strict.", "max_length": 99})
    monkeypatch.setattr(self_training.pairwise, "open_scorer", lambda served, mesh, name: served)
    served = self_training._scorer(command, SimpleNamespace(local_mesh=None), SimpleNamespace(folder="m"))
    model = served.model
    assert (model.text_as_chat, model.system_prompt, model.max_length) == (True, "Be strict.", 99)
