"""Where a stage's groups come from: rows that are read, counted and rendered."""

import json

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.data import RenderOptions, RowOptions
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.scorer import BradleyTerryScoring
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.datasets import RenderedRows, read_data
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.iterate import round_prompts
from rlhf_jax.workflow.kinds import open_scorer

TEXTS = ("Tell me of the sea.", "A story.", " Tell me\nof the  sea.", "Another story.", "A story.", "The end.")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    return str(path)


def test_duplicate_prompts_are_dropped_before_samples_are_counted(source):
    examples, funnel = read_data(RowOptions(source, drop_duplicate_prompts=True, max_samples=3), "prompt")
    assert [e.prompt for e in examples] == [TEXTS[0], TEXTS[1], TEXTS[3]]
    assert funnel.to_json() == {"read": 4, "valid": 4, "kept": 3, "invalid": {}, "notes": {},
                                "dropped": {"duplicate_prompt": 1}}


def test_prompts_from_means_something_for_prompts_alone(source):
    with pytest.raises(ValueError, match="prompts_from = 'first_user' has no effect on sft data"):
        read_data(RowOptions(source, prompts_from="first_user"), "sft")


def test_elsewhere_they_are_kept_under_names_of_their_own(source):
    examples, funnel = read_data(RowOptions(source), "prompt")
    assert [e.prompt for e in examples] == list(TEXTS)
    assert examples[2].prompt_id == f"{examples[0].prompt_id}#1"
    assert (funnel.dropped, funnel.notes) == ({}, {"renamed_prompt_id": 2})


def test_rounds_share_no_prompt_however_often_the_file_repeats_it(source, start, make_context, tmp_path):
    config = build(ExperimentConfig, {
        "output_dir": str(tmp_path), "prompts": {"dataset_name": source}, "model_name_or_path": str(start.folder),
        "scorer": {"kind": "function", "function": "m:f"}})
    experiment = Experiment(config, make_context(tmp_path / "run"))
    groups = experiment.rows("prompts", config.prompts, "prompt", start).read()
    loop = LoopOptions(rounds=2)
    first, second = ({" ".join(g.prompt.split()) for g in round_prompts(groups, loop, n)} for n in (1, 2))
    assert first | second == {" ".join(text.split()) for text in TEXTS}
    assert not first & second
    assert experiment.funnels["prompts"].dropped == {"duplicate_prompt": 2}


def test_later_turns_and_texts_are_held_against_benchmarks_too(start, tmp_path):
    asked = "one two three four five six seven eight nine ten eleven twelve thirteen"
    said = ("Hi", "Yes?", asked, "So.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    rows = [{"messages": turns}, {"text": f"Question: {asked}"}, {"prompt": "Hi", "completion": asked}]
    for name, some in (("rows", rows), ("bench", [{"question": asked}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    told = []
    RenderedRows(checkpoint=start, kind="sft", rows=RowOptions(str(tmp_path / "rows.jsonl")), render=RenderOptions(),
                 announce=told.append, benchmarks=str(tmp_path / "bench.jsonl")).read()
    assert "2 of 3 prompts are asked by a benchmark too" in told[-1]


def test_a_model_with_fewer_rows_than_tokens_is_refused_wherever_it_is_opened(make_model, lone_mesh, tmp_path):
    tokens = len(Checkpoint(make_model(tmp_path / "whole")).tokenizer)
    short = make_model(tmp_path / "short", vocab_size=tokens - 2)
    make_model(tmp_path / "scorer", vocab_size=tokens - 2, num_labels=1)
    options = build(BradleyTerryScoring, {"model_name_or_path": str(tmp_path / "scorer")})
    for opened in (lambda: Checkpoint(short).renderer(RenderOptions()), lambda: Checkpoint(short).stop_ids,
                   lambda: check_vocabularies(Checkpoint(tmp_path / "whole"), Checkpoint(short), "because"),
                   lambda: open_scorer(options, lone_mesh, "proxy")):
        with pytest.raises(ValueError, match=rf"2 tokens without a row .* of {tokens - 2:,} rows"):
            opened()
    assert Checkpoint(make_model(tmp_path / "roomy", vocab_size=tokens + 20)).stop_ids
