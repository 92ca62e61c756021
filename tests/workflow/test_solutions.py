"""Mathematics by the verbs: outcome and process models trained and served, steps labelled by rollouts, votes."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.data import RenderOptions, RowOptions
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import OutcomeGenerativeScoring, OutcomeScoring, ProcessScoring, ScorerModel
from rlhf_jax.config.steps import StepsCommand
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.answers import RULES
from rlhf_jax.data.arithmetic import arithmetic_rows
from rlhf_jax.data.groups import PromptGroup, Response, text_group
from rlhf_jax.data.jsonl import read_groups, read_jsonl, write_jsonl_atomic
from rlhf_jax.data.steps import split_steps
from rlhf_jax.models import CheckpointError
from rlhf_jax.workflow.datasets import RenderedRows
from rlhf_jax.workflow.inspection import inspect_model
from rlhf_jax.workflow.kinds import open_scorer
from rlhf_jax.workflow.stages.steps import StepsStage, rows_name

pytestmark = pytest.mark.longer
TRAIN = {"train_batch_size": 8, "row_length": 256, "learning_rate": 3e-2, "warmup_steps": 0}
KINDS = {"process": ProcessScoring, "outcome_generative": OutcomeGenerativeScoring, "outcome": OutcomeScoring}


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Folder of a micro world of arithmetic."""
    folder = tmp_path_factory.mktemp("sums")
    config = WorldConfig(subject="arithmetic", sft_rows=4, preference_rows=24, prompt_rows=5, eval_prompts=4)
    for name, rows in arithmetic_rows(config).items():
        write_jsonl_atomic(folder / f"{name}.jsonl", rows[:24])
    return folder


@pytest.fixture(scope="module")
def trained(do_verb, model, sums, tmp_path_factory):
    """trained(kind): the finished `reward` stage, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            rows = {"dataset_name": str(sums / "steps.jsonl"), "eval_dataset_name": str(sums / "steps_eval.jsonl")}
            made[kind] = do_verb("reward", folder, kind=kind, model_name_or_path=str(model), **rows, **TRAIN,
                                 max_steps=6 if kind == "outcome" else 40)
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_trained_served_and_named(trained, kind, lone_mesh):
    done = trained(kind)
    assert done.report["groups"] == 24
    assert done.report["eval"]["eval_loss"] < (2.0 if kind == "outcome" else 1.0)
    model = str(done.folder / "model")
    assert kind in inspect_model(done.folder / "model", MeshConfig(), 1).facts["serves"]
    scorer = open_scorer(KINDS[kind](ScorerModel(model)), lone_mesh, "proxy")
    group = text_group("p", "What is 2 + 3 + 4?", [("2 + 3 = 5\n\n5 + 4 = 9\n#### 9", {}), ("9", {})])
    verdicts = scorer.score([group])[0]
    assert not scorer.failures
    assert all(0 < verdict[""] < 1 for verdict in verdicts)
    others = {"process": {"mean", "min", "last", "product", "step-1", "step-2"}, "outcome": {"logit"}}
    assert set(verdicts[0]) == {"", *others.get(kind, set())}
    if kind == "outcome":
        assert verdicts[0][""] == pytest.approx(1 / (1 + np.exp(-verdicts[0]["logit"])), abs=1e-6)


def test_what_is_of_another_kind_is_refused(trained, do_verb, model, sums, lone_mesh, tmp_path):
    with pytest.raises(CheckpointError, match="set kind: outcome"):
        open_scorer(ProcessScoring(ScorerModel(str(trained("outcome").folder / "model"))), lone_mesh, "p")
    with pytest.raises(CheckpointError, match="of a language model set kind: outcome_generative"):
        open_scorer(OutcomeScoring(ScorerModel(str(model))), lone_mesh, "p")
    rows = {"dataset_name": str(sums / "steps.jsonl"), **TRAIN}
    with pytest.raises(ValueError, match="start from a language model"):
        do_verb("reward", tmp_path / "a", kind="process", model_name_or_path=str(trained("outcome").folder / "model"),
                **rows)
    with pytest.raises(ValueError, match="pair_rule has no effect with kind = 'process', which learns from no pairs"):
        do_verb("reward", tmp_path / "b", kind="process", model_name_or_path=str(model), pair_rule="best_worst", **rows)


def test_a_trajectory_without_steps_is_a_bad_row_and_counted(do_verb, model, sums, tmp_path):
    rows = [*read_jsonl(sums / "steps.jsonl")][:8]
    write_jsonl_atomic(tmp_path / "rows.jsonl", [{**rows[0], "steps": [], "labels": []}, *rows[1:]])
    done = do_verb("reward", tmp_path / "r", kind="process", model_name_or_path=str(model), max_bad_rows=1,
                   dataset_name=str(tmp_path / "rows.jsonl"), **TRAIN, max_steps=1)
    assert done.report["funnel"]["invalid"] == {"no_steps": 1}
    assert done.report["funnel"]["notes"]["steps"] == sum(len(row["steps"]) for row in rows[1:])


def test_labelled_steps_are_scored_and_measured(trained, do_verb, sums, tmp_path):
    """`score` on rows of steps, then `evaluate --measure steps`; by hand from the rows it leaves."""
    do_verb("score", tmp_path / "scored", kind="process", model_name_or_path=str(trained("process").folder / "model"),
            dataset_name=str(sums / "steps_eval.jsonl"))
    done = do_verb("evaluate", tmp_path / "found", input=str(tmp_path / "scored"), measure="steps")
    found, rows = done.report["step_accuracy"], list(read_jsonl(tmp_path / "found" / "rows.jsonl"))
    assert found["solutions"] == 24
    labels = {row["id"]: [label == "+" for label in row["labels"]] for row in read_jsonl(sums / "steps_eval.jsonl")}
    assert {row["id"]: row["right"] for row in rows} == labels
    exact = [row["first_error"] == row["found"] for row in rows]
    assert found["numbers"]["first_error"]["value"] == pytest.approx(np.mean(exact))
    kinds = [np.mean([e for e, row in zip(exact, rows, strict=True) if all(row["right"]) == right])
             for right in (True, False)]
    numbers = {name: estimate["value"] for name, estimate in found["numbers"].items()}
    assert (numbers["first_error/right"], numbers["first_error/wrong"]) == pytest.approx(tuple(kinds))
    assert numbers["f1"] == pytest.approx(2 * kinds[0] * kinds[1] / max(sum(kinds), 1e-9))
    seen = [(likely > 0.5) == right for row in rows
            for likely, right in list(zip(row["likely"], row["right"], strict=True))[: row["first_error"] + 1]]
    assert numbers["accuracy"] == pytest.approx(np.mean(seen))


def test_votes_of_scored_samples(do_verb, tmp_path):
    folder = tmp_path / "scored"
    folder.mkdir()
    said = (("#### 3", 0.9), ("#### 4", 0.2), ("#### 4", 0.3), ("none", 0.1))
    groups = [text_group(name, name, [(text, {"proxy": score}) for text, score in said], extra={"answer": answer})
              for name, answer in (("p", "3"), ("q", "#### 4"))]
    write_jsonl_atomic(folder / "shard-00000.jsonl", [group.to_json() for group in groups])
    done = do_verb("evaluate", tmp_path / "votes", input=str(folder), measure="voting")
    numbers = {name: value["value"] for name, value in done.report["voting"]["numbers"].items()}
    assert numbers["pass@1"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert numbers["pass@4"] == 1.0
    assert numbers["majority@4"] == 0.5
    assert numbers["weighted_majority@4"] == 0.5
    assert numbers["best_of@4"] == 0.5
    bare = do_verb("evaluate", tmp_path / "bare", input=str(folder), measure="voting", score=None, max_n=2)
    assert set(bare.report["voting"]["numbers"]) == {f"{name}@{n}" for name in ("pass", "majority") for n in (1, 2)}
    with pytest.raises(ValueError, match="no response has the score 'gold'; there are proxy"):
        do_verb("evaluate", tmp_path / "c", input=str(folder), measure="voting", score="gold")


@pytest.mark.parametrize(("changes", "words"), [
    ({"measure": "steps", "score": None}, "score is null and measure = 'steps' reads scores"),
    ({"measure": "voting", "length_unit": "characters"}, "no effect with measure = 'voting'"),
    ({"answers": "math"}, "no effect with measure = 'length_bias'"),
])
def test_idle_keys_are_refused(do_verb, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        do_verb("evaluate", tmp_path / "e", input="x", **changes)


SAMPLING = SamplingConfig(num_generations=3, max_new_tokens=16, slots=8, block=8)


@pytest.fixture(scope="module")
def make_steps(start, sums, make_context, tmp_path_factory):
    """make_steps(folder, **changes): the steps of an untrained model's answers, cut at a letter that is often there."""
    context = make_context(tmp_path_factory.mktemp("run"))
    prompts = RenderedRows(checkpoint=start, kind="prompt", rows=RowOptions(dataset_name=str(sums / "prompts.jsonl")),
                           render=RenderOptions())

    def run(folder, **changes):
        folder.mkdir(exist_ok=True)
        command = StepsCommand(model_name_or_path="", output_dir="", completions=4, sampling=SAMPLING)
        fields = {"policy": start, "prompts": prompts, "sampling": SAMPLING, "rollouts": command.rollouts,
                  "labels": "hard", "step_separator": "e", "answers": "gsm8k_flexible", "answer_column": "answer",
                  "dtype": "float32", "shard_size": 2}
        stage = StepsStage(**{**fields, **changes})
        return stage.run(folder, context), stage, context

    return run


@pytest.fixture(scope="module")
def labelled(make_steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "s"
    return folder, *make_steps(folder)


@pytest.mark.parametrize(("tokens", "prefixes"), [
    (["a", "\n\n", "b", "\n\n", "\n\n", "c"], ["a\n\n", "a\n\nb\n\n"]),
    (["a", "\n", "\nb", "\n\nc"], ["a\n", "a\n\nb"]),  # no token is cut: it goes on from the one before
    (["a b c"], []), (["a", "\n\n"], []), (["\n\n", "a", "\n\nb"], ["\n\na"]),
])
def test_a_prefix_is_the_sampled_tokens_that_lie_before_the_next_step(tokens, prefixes):
    policy = SimpleNamespace(decode_text=lambda prompt, ids: "".join(tokens[i] for i in ids))
    stage = StepsStage(policy=policy, prompts=None, sampling=SAMPLING, rollouts=SAMPLING, labels="hard",
                       step_separator="\n\n", answers="gsm8k", answer_column="answer", dtype="float32", shard_size=1)
    ids = np.arange(len(tokens), dtype=np.int32)
    response = Response(ids, np.ones(len(ids), bool), "".join(tokens))
    found = stage._prefixes(PromptGroup("p", np.zeros(1, np.int32), (response,)), response)
    assert [prefix.text for prefix in found] == prefixes


def test_labels_are_those_of_completions_sampled_alone(labelled, start, lone_mesh):
    folder, report, stage, context = labelled
    rows = [row for number in range(3) for row in read_jsonl(folder / rows_name(number))]
    groups = {f"{g.prompt_id}/{i}": (g, r) for number in range(3)
              for g in read_groups(folder / f"shard-0000{number}.jsonl") for i, r in enumerate(g.responses)}
    assert report["responses"] == len(groups) == 15
    assert report["solutions"] == len(rows)
    _, rollouts = stage._checked()
    sampler, params = context.sampler(start, rollouts, "float32"), start.params(lone_mesh, jnp.float32)
    checked = 0
    for row in rows:
        group, response = groups[row["prompt_id"]]
        assert row["steps"] == [s.strip() for s in response.text.split("e") if s.strip()]
        assert row["labels"] == ["+" if value > 0 else "-" for value in row["values"]]
        assert len(row["values"]) == len(row["steps"])
        right = RULES["gsm8k_flexible"].find(response.text) == row["answer"]
        assert row["label"] == row["values"][-1] == right
        prefixes = stage._prefixes(group, response)
        assert len(prefixes) == len(row["steps"]) - 1
        for step, prefix in enumerate(prefixes, start=1):
            text = start.decode_text(group.prompt_ids.tolist(), prefix.ids.tolist())
            assert prefix.text == text
            assert response.text.startswith(text)
            assert len(split_steps(text, "e")) <= step
        if prefixes and checked < 3:  # one prompt alone, as no batch of the stage had it
            prompt = PromptGroup(prefixes[0].name, np.concatenate([group.prompt_ids, prefixes[0].ids]), ())
            ((_, alone),) = sampler.generate(params, [prompt])
            found = [RULES["gsm8k_flexible"].find(prefixes[0].text + r.text) == row["answer"] for r in alone.responses]
            assert row["values"][0] == np.mean(found)
            checked += 1
    assert checked == 3
    assert report["steps_labelled"] == sum(len(row["steps"]) for row in rows) > 20


def test_a_killed_stage_makes_the_rest_to_the_same_bytes(labelled, make_steps, tmp_path):
    whole = labelled[0]
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.suffix == ".jsonl"}
    assert {name for name in files if name.startswith("steps-")} == {rows_name(i) for i in range(3)}
    shutil.copytree(whole, tmp_path / "s")
    for name in ("steps-00000.jsonl", "steps-00002.jsonl", "shard-00002.jsonl"):
        (tmp_path / "s" / name).unlink()
    report = make_steps(tmp_path / "s")[0]
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir() if p.suffix == ".jsonl"} == files
    assert report["steps_labelled"] == labelled[1]["steps_labelled"]


def test_soft_labels_are_shares_and_train_by_a_threshold(labelled, make_steps, do_verb, model, tmp_path):
    make_steps(tmp_path / "soft", labels="soft")
    rows = [row for number in range(3) for row in read_jsonl(tmp_path / "soft" / rows_name(number))]
    hard = [row for number in range(3) for row in read_jsonl(labelled[0] / rows_name(number))]
    assert [row["labels"] for row in rows] == [row["values"] for row in hard]
    done = do_verb("reward", tmp_path / "r", kind="process", model_name_or_path=str(model), label_threshold=0.5,
                   dataset_name=str(tmp_path / "soft" / "steps-*.jsonl"), **TRAIN, max_steps=1)
    assert done.report["funnel"]["notes"]["steps_right"] == sum(v > 0.5 for row in hard for v in row["values"])


def test_a_problem_without_a_reference_and_too_little_room_are_said(labelled, make_steps, tmp_path):
    with pytest.raises(ValueError, match=r"'prompts-0' has no column 'gold', the reference; it has answer\. Set"):
        make_steps(tmp_path / "a", answer_column="gold")
    with pytest.raises(ValueError, match="the model has 256 positions; lower max_new_tokens"):
        make_steps(tmp_path / "b", sampling=dataclasses.replace(SAMPLING, max_new_tokens=120))
    for sampling, words in ((dataclasses.replace(SAMPLING, temperature=(1.0, 0.7)), "sampled at one temperature"),
                            (dataclasses.replace(SAMPLING, prompt_length=64), "prompt_length = 64 has no effect")):
        with pytest.raises(ValueError, match=words):
            StepsCommand(model_name_or_path="m", output_dir="o", sampling=sampling)


def test_the_verb_writes_a_record_and_its_samples_can_be_scored(do_verb, model, sums, tmp_path):
    done = do_verb("steps", tmp_path / "s", model_name_or_path=str(model), dataset_name=str(sums / "prompts.jsonl"),
                   num_generations=2, completions=1, max_new_tokens=8, slots=8, block=8)
    assert json.loads((tmp_path / "s" / "stage.json").read_text())["report"] == done.report
    assert done.report["responses"] == 10
    votes = do_verb("evaluate", tmp_path / "v", input=str(tmp_path / "s"), measure="voting", score=None)
    assert votes.report["voting"]["prompts"] == 5
