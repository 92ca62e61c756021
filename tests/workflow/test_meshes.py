"""`mesh: auto` on the eight devices of this process."""

import json

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.commands import GenerateCommand, ScoreCommand, SftCommand
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.models import config_to_hf
from rlhf_jax.parallel import Need
from rlhf_jax.workflow.meshes import need_of, resolved


@pytest.fixture
def model(tmp_path, tiny):
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(tiny(vocab_size=128))))
    return str(tmp_path)


def sft(model, **options):
    return build(SftCommand, {"model_name_or_path": model, "output_dir": "o", **options})


def test_sizes_are_taken_as_they_are(model):
    assert resolved(MeshConfig(fsdp=2), sft(model)) == (MeshConfig(fsdp=2), "")
    assert resolved(None, sft(model)) == (MeshConfig(), "")


def test_auto_follows_the_batch(model):
    assert resolved("auto", sft(model, train_batch_size=32)).mesh == MeshConfig(1, 8)
    small = resolved("auto", sft(model, train_batch_size=4))
    assert small.mesh == MeshConfig(1, 4, 1, 2)
    assert "a batch of 4 rows does not feed 8 devices" in small.why


def test_what_a_command_needs(model):
    assert need_of(sft(model, train_batch_size=32)).rows == 32
    assert need_of(GenerateCommand(model_name_or_path=model, output_dir="o")).rows is None  # nothing is trained
    assert need_of(build(ScoreCommand, {"input": "i", "output_dir": "o", "model_name_or_path": model})).heads == 4
    assert need_of(sft(model)).params > 1000


def test_a_run_needs_rows_for_its_smallest_batch():
    run = build(ExperimentConfig, {
        "output_dir": "o", "scratch": {"tokenizer": "t"}, "scorer": {"kind": "function", "function": "m:f"},
        "sft": {"data": {}, "train": {"train_batch_size": 16}}, "dpo": {"train_batch_size": 8}})
    assert need_of(run) == Need(0, 8)


def test_a_section_that_nothing_reads_asks_for_nothing(model):
    """The raft section's batch is 32 unless it is given."""
    run = {"output_dir": "o", "model_name_or_path": model, "scorer": {"kind": "function", "function": "m:f"},
           "dpo": {"train_batch_size": 256}}
    assert need_of(build(ExperimentConfig, run)).rows == 256
    assert need_of(build(ExperimentConfig, {**run, "baselines": ["raft"]})).rows == 32
    assert need_of(build(ExperimentConfig, {**run, "loop": {"method": "raft"}})).rows == 32


@pytest.mark.parametrize(("row_length", "rows"), [(512, 64), (1024, 64), (1100, 32), (5500, 7)])
def test_rows_are_packed(model, row_length, rows):
    """By an average prompt of 200 tokens and response of 350."""
    assert need_of(sft(model, train_batch_size=64, row_length=row_length)).rows == rows
