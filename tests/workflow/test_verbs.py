"""What the single verbs make of rows that are out of the ordinary."""

import json

import pytest

from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build
from rlhf_jax.data.jsonl import read_jsonl
from rlhf_jax.models import CheckpointError
from rlhf_jax.workflow.stage import StageConflict
from rlhf_jax.workflow.stages.shards import read_shards
from rlhf_jax.workflow.verbs import STAGES

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
    context.run.announce, context.run.single = lines.append, True
    return context, lines


def run(verb, context, **settings):
    """Does what a verb asks for with these keys."""
    command = build(named(VERBS[verb].options), {"output_dir": str(context.run.folder), **settings})
    return context.do(verb, STAGES[verb](command, context))


def generate(context, model, source, **changes):
    return run("generate", context, model_name_or_path=str(model), dataset_name=source, **SAMPLING, **changes)


@pytest.mark.longer
def test_what_no_json_holds_in_a_column_that_nobody_reads_does_not_end_the_sampling(model, write, said, tmp_path):
    source = write([{"prompt": user("a"), "x": float("nan"), "half": "\ud83d", "id": "1"}, {"prompt": user("b")}])
    stage = generate(said[0], model, source)
    (first, _) = read_shards(stage.folder)
    assert first.extra == {"x": None, "half": "\ud83d"}
    assert stage.report["funnel"]["notes"] == {"non_finite_as_null": 1}


@pytest.mark.longer
def test_the_funnel_is_said_before_the_work_begins(model, write, said, tmp_path):
    source = write([{"prompt": user("word " * n)} for n in (1, 2, 200, 1, 1)])
    limits = {"max_samples": 3, "max_length": 100}
    stage = generate(said[0], model, source, **limits)
    assert stage.report["funnel"]["dropped"] == {"prompt_too_long": 1}
    assert ["kept", "2"] in [line.split() for line in said[1][0].splitlines()]
    assert generate(said[0], model, source, **limits).reused
    assert len(said[1]) == 1  # nothing is read again


def test_a_refused_command_leaves_the_quarantine_of_the_finished_one(model, write, said, tmp_path):
    source = write([{"prompt": user("a")}, {"prompt": ""}])
    generate(said[0], model, source, max_bad_rows=1)
    quarantine = tmp_path / "out" / "quarantine-train.jsonl"
    assert [row["row_number"] for row in read_jsonl(quarantine)] == [2]
    for other in (write([{"prompt": user("b")}], "good.jsonl"), write([{"prompt": ""}] * 3, "bad.jsonl")):
        with pytest.raises(StageConflict, match="differ: prompts"):
            generate(said[0], model, other, max_bad_rows=1)
        assert [row["row_number"] for row in read_jsonl(quarantine)] == [2]


def test_evaluate_counts_what_the_scorers_own_limit_leaves_out(make_model, write, said, tmp_path):
    scorer = make_model(tmp_path / "scorer", num_labels=1)
    rows = [{"prompt": user("a"), "chosen": "word " * n, "rejected": "word"} for n in (2, 3, 4, 60, 70, 80)]
    report = run("evaluate", said[0], dataset_name=write(rows),
                 scorer={"model_name_or_path": str(scorer), "max_length": 64}).report
    results = [row["result"] for row in read_jsonl(tmp_path / "out" / "rows.jsonl")]
    assert [result is None for result in results] == [False] * 3 + [True] * 3
    assert (report["pairs_read"], report["pairs"], report["failures"]) == (6, 3, {"response_too_long": 3})
    assert (report["funnel"]["kept"], report["funnel"]["dropped"]) == (3, {"response_too_long": 3})


def test_letters_that_cannot_be_read_are_said_before_a_pairwise_model_is_trained(model, write, said, tmp_path):
    template = tmp_path / "spaced.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + ('~' if m.role == 'assistant' else '') + m.content"
                        " + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    source = write([{"prompt": user("a"), "chosen": "b", "rejected": "c"}])
    with pytest.raises(CheckpointError, match="the reply 'A' takes 2 tokens"):
        run("reward", said[0], model_name_or_path=str(model), dataset_name=source, kind="pairwise",
            chat_template_path=str(template))
    assert not (tmp_path / "out" / "model").exists()
