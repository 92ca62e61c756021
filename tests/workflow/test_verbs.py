"""What the single verbs make of rows that are out of the ordinary."""

import dataclasses
import json

import pytest

from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.models import CheckpointError
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.workflow.commands import EvaluateCommand, GenerateCommand, RewardCommand
from rlhf_jax.workflow.options import ScorerOptions
from rlhf_jax.workflow.sample import read_shards
from rlhf_jax.workflow.stage import StageConflict
from rlhf_jax.workflow.verbs import run_evaluate, run_generate, run_reward

SAMPLING = {"num_generations": 1, "max_new_tokens": 4, "slots": 4, "block": 4}


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def write(tmp_path):
    """write(rows): a file of these rows."""

    def make(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return make


@pytest.fixture
def said(make_context, tmp_path):
    """A context and the list of what it announced."""
    context, lines = make_context(tmp_path / "out"), []
    context.run.announce = lines.append
    return context, lines


def generate(model, source, folder, **changes):
    assert set(SAMPLING) <= {field.name for field in dataclasses.fields(SamplingConfig)}
    return GenerateCommand(model_name_or_path=str(model), dataset_name=source, output_dir=str(folder), **SAMPLING,
                           **changes)


def test_what_no_json_holds_in_a_column_that_nobody_reads_does_not_end_the_sampling(model, write, said, tmp_path):
    source = write([{"prompt": user("a"), "x": float("nan"), "half": "\ud83d", "id": "1"}, {"prompt": user("b")}])
    stage = run_generate(generate(model, source, tmp_path / "out"), said[0])
    (first, _) = read_shards(stage.folder)
    assert first.extra == {"x": None, "half": "\ud83d"}
    assert stage.report["funnel"]["notes"] == {"non_finite_as_null": 1}


def test_the_funnel_is_said_before_the_work_begins(model, write, said, tmp_path):
    source = write([{"prompt": user("word " * n)} for n in (1, 2, 200, 1, 1)])
    command = generate(model, source, tmp_path / "out", max_samples=3, max_length=100)
    stage = run_generate(command, said[0])
    assert stage.report["funnel"]["dropped"] == {"beyond_max_samples": 2, "prompt_too_long": 1}
    assert ["kept", "2"] in [line.split() for line in said[1][0].splitlines()]
    assert run_generate(command, said[0]).reused
    assert len(said[1]) == 1  # nothing is read again


def test_a_refused_command_leaves_the_quarantine_of_the_finished_one(model, write, said, tmp_path):
    source = write([{"prompt": user("a")}, {"prompt": ""}])
    command = generate(model, source, tmp_path / "out", max_bad_rows=1)
    run_generate(command, said[0])
    quarantine = tmp_path / "out" / "quarantine-train.jsonl"
    assert [row["row_number"] for row in read_jsonl(quarantine)] == [2]
    for other in (write([{"prompt": user("b")}], "good.jsonl"), write([{"prompt": ""}] * 3, "bad.jsonl")):
        with pytest.raises(StageConflict, match="differ: data"):
            run_generate(dataclasses.replace(command, dataset_name=other), said[0])
        assert [row["row_number"] for row in read_jsonl(quarantine)] == [2]


def test_evaluate_counts_what_the_scorers_own_limit_leaves_out(make_model, write, said, tmp_path):
    scorer = make_model(tmp_path / "scorer", num_labels=1)
    rows = [{"prompt": user("a"), "chosen": "word " * n, "rejected": "word"} for n in (2, 3, 4, 60, 70, 80)]
    stage = run_evaluate(EvaluateCommand(dataset_name=write(rows), output_dir=str(tmp_path / "out"),
                                         scorer=ScorerOptions(model_name_or_path=str(scorer), max_length=64)), said[0])
    report = stage.report
    assert (report["pairs_read"], report["pairs"], report["failures"]) == (6, 3, {"response_too_long": 3})
    assert (report["funnel"]["kept"], report["funnel"]["dropped"]) == (3, {"response_too_long": 3})


def test_letters_that_cannot_be_read_are_said_before_a_pairwise_model_is_trained(model, write, said, tmp_path):
    template = tmp_path / "spaced.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + ('~' if m.role == 'assistant' else '') + m.content"
                        " + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    source = write([{"prompt": user("a"), "chosen": "b", "rejected": "c"}])
    command = RewardCommand(model_name_or_path=str(model), dataset_name=source, output_dir=str(tmp_path / "out"),
                            kind="pairwise", chat_template_path=str(template))
    with pytest.raises(CheckpointError, match="the reply 'A' takes 2 tokens"):
        run_reward(command, said[0])
    assert not (tmp_path / "out" / "model").exists()
