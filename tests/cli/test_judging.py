"""Implicit rewards, agreement of judges, and benchmark prompts in training data, as a user meets them."""

import json

import numpy as np
import pytest


def shorter(prompts, completions, **columns):
    return [-float(len(text if isinstance(text, str) else text[-1]["content"])) for text in completions]


def first_letter(prompts, completions, **columns):
    return [float(ord((text if isinstance(text, str) else text[-1]["content"]).strip()[:1] or "a"))
            for text in completions]


@pytest.fixture
def evaluated(world, rlhf_jax, tmp_path, monkeypatch):
    """evaluated(function of this file) -> folder of its evaluation on the world's pairs."""
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])

    def run(name, *more):
        folder = tmp_path / name
        status, out, err = rlhf_jax("evaluate", "--scorer.kind", "function", "--scorer.function",
                                    f"test_judging:{name}", "--dataset_name", world / "preference_eval.jsonl",
                                    "--output_dir", folder, *more)
        assert status == 0, err
        return folder, out

    return run


def results(folder):
    return np.array([json.loads(line)["result"] for line in (folder / "rows.jsonl").read_text().splitlines()])


def test_judges_are_held_against_each_other_and_against_the_labels(evaluated, rlhf_jax, tmp_path):
    (one, _), (other, _) = evaluated("shorter"), evaluated("first_letter")
    status, _, err = rlhf_jax("agreement", "--verdicts", f"[{one}, {other}]", "--output_dir", tmp_path / "agreed")
    assert status == 0, err
    found = json.loads((tmp_path / "agreed/metrics.json").read_text())
    a, b = results(one), results(other)
    assert found["pairs"] == len(a) == 100
    sides = [(row["first"].rsplit("/", 1)[-1], row["second"].rsplit("/", 1)[-1]) for row in found["agreements"]]
    assert sides == [("shorter", "first_letter"), ("shorter", "labels"), ("first_letter", "labels")]
    assert found["agreements"][0]["agreement"]["value"] == pytest.approx(np.mean(a == b))
    assert found["agreements"][1]["agreement"]["value"] == pytest.approx(np.mean(a == 1))
    (ahead,) = found["comparisons"]
    assert ahead["difference"]["value"] == pytest.approx(np.mean(a - b))
    assert 0 < ahead["p_value"] == ahead["adjusted"] <= 1

    rows = [json.loads(line) for line in (one / "rows.jsonl").read_text().splitlines()]
    asked = len({row["prompt_hash"] for row in rows})
    (tmp_path / "renamed.jsonl").write_text("".join(  # another id for each row: what they ask decides
        json.dumps(row | {"id": str(i), "prompt_hash": row["prompt_hash"][:1]}) + "\n" for i, row in enumerate(rows)))
    assert ahead["difference"]["count"] == asked
    status, _, err = rlhf_jax("agreement", "--verdicts", tmp_path / "renamed.jsonl", "--output_dir", tmp_path / "few")
    assert status == 0, err
    few = json.loads((tmp_path / "few/metrics.json").read_text())["agreements"][0]["agreement"]
    assert few["count"] == len({row["prompt_hash"][:1] for row in rows}) < asked

    people = tmp_path / "people.jsonl"
    people.write_text("".join(json.dumps({"id": "nobody", "result": 1}) + "\n" for _ in range(2)))
    status, _, err = rlhf_jax("agreement", "--verdicts", f"[{one}, {people}]", "--output_dir", tmp_path / "none")
    assert status == 1
    assert "no pair was judged by all" in err
    people.write_text('{"id": "x", "result": "good"}\n')
    status, _, err = rlhf_jax("agreement", "--verdicts", f"[{one}, {people}]", "--output_dir", tmp_path / "none")
    assert "people.jsonl, row 1: a verdict has id, pair and result" in err


def test_training_rows_that_are_asked_here_too_are_said(evaluated, world):
    folder, out = evaluated("shorter", "--trained_on.dataset_name", world / "preference_eval.jsonl")
    assert "prompts are asked by a benchmark too (13 words in a row)" in " ".join(out.split())
    report = json.loads((folder / "stage.json").read_text())["report"]
    assert report["trained_on"]["asked_here"] == report["trained_on"]["prompts"] > 0
    assert report["accuracy"]["value"] == pytest.approx(results(folder).mean())


@pytest.mark.longer
def test_benchmark_prompts_in_training_rows_are_said_before_training(world, rlhf_jax, tmp_path):
    question = json.loads((world / "prompts.jsonl").read_text().splitlines()[0])["prompt"]
    text = question if isinstance(question, str) else question[-1]["content"]
    (tmp_path / "bench.jsonl").write_text(json.dumps({"instruction": text}) + "\n")
    status, out, err = rlhf_jax("generate", "--model_name_or_path", world / "base", "--dataset_name",
                                world / "prompts.jsonl", "--benchmarks", tmp_path / "bench.jsonl", "--max_new_tokens",
                                4, "--num_generations", 1, "--slots", 8, "--block", 4, "--output_dir", tmp_path / "g")
    assert status == 0, err
    assert "warning: 1 of 8 prompts are asked by a benchmark too" in " ".join(out.split())


def test_a_policy_is_scored_against_its_reference(world, rlhf_jax, tmp_path):
    asked = ["evaluate", "--scorer.kind", "implicit", "--scorer.model_name_or_path", world / "base",
             "--dataset_name", world / "preference.jsonl", "--output_dir", tmp_path / "implicit"]
    status, _, err = rlhf_jax(*asked)
    assert status == 2
    assert "reference_model is missing" in err
    status, _, err = rlhf_jax(*asked, "--scorer.reference_model", world / "base", "--scorer.over", "mean")
    assert status == 0, err
    assert set(results(tmp_path / "implicit")) == {0.5}  # the reference against itself
    row = json.loads((tmp_path / "implicit/rows.jsonl").read_text().splitlines()[0])
    assert row["scores"]["chosen"] == 0.0
    assert row["scores"]["chosen/policy"] == row["scores"]["chosen/reference"] < 0
    status, out, _ = rlhf_jax("inspect", world / "base")
    assert "kind: implicit against its reference_model; kind: local_judge" in " ".join(out.split())


@pytest.mark.longer
def test_a_model_here_judges_by_a_rubric_of_ones_own(world, rlhf_jax, tmp_path):
    """Whatever the untrained judge says, this rubric reads a tie; the one that comes with the program is too long."""
    (tmp_path / "rubric.yaml").write_text('user: "{question} {answer_a} {answer_b}"\nverdict: "()"\ntie: ""\n')
    asked = ["evaluate", "--scorer.kind", "local_judge", "--scorer.model_name_or_path", world / "base",
             "--scorer.max_tokens", 4, "--scorer.slots", 8, "--dataset_name",
             f"{world / 'preference_eval.jsonl'}[:3]", "--output_dir", tmp_path / "judged"]
    status, _, err = rlhf_jax(*asked)
    assert status == 1
    assert "none of the 3 pairs could be judged" in err
    assert "'prompt_too_long': 6" in err
    status, _, err = rlhf_jax(*asked, "--scorer.rubric", tmp_path / "rubric.yaml")
    assert status == 0, err
    assert results(tmp_path / "judged").tolist() == [0.5] * 3
