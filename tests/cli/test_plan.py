"""The command line of `plan`: which verb a config belongs to, what it needs, what it refuses."""

import json

import pytest
import yaml
from rich.console import Console

from rlhf_jax.cli import plan
from rlhf_jax.cli.plan import show, verb_of
from rlhf_jax.config.commands import SftCommand
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.models import config_to_hf
from rlhf_jax.plan.measure import StagePlan
from rlhf_jax.plan.prove import Difference
from rlhf_jax.plan.report import Report


def read(words):
    return plan.read(PlanOptions, "plan", words)


@pytest.fixture
def recipe(tmp_path, tiny):
    """recipe(tree): a config file with the shape of a model beside it, as in configs/."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_to_hf(tiny())))

    def write(tree):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return ["--config", str(path)]

    return write


@pytest.mark.parametrize(("tree", "verb"), [
    ({"loop": {}}, "iterate"), ({"scorer": {}, "dpo": {}}, "iterate"), ({"beta": 0.1}, "dpo"),
    ({"over": "mean"}, "score"),
    ({"kind": "pairwise", "learning_rate": 1e-6}, "reward"), ({"num_generations": 4}, "generate"),
])
def test_a_config_tells_its_verb_by_the_keys_only_it_has(tree, verb):
    assert verb_of(tree) == verb


def test_a_config_that_could_be_several_asks_for_the_verb():
    with pytest.raises(ValueError, match=r"--verb sft"):
        verb_of({"train_batch_size": 8})


def test_neither_data_nor_weights_are_asked_for(recipe):
    options, command, model = read([*recipe({"loop": {"rounds": 2}}), "--accelerator", "v5p-16", "--mesh.fsdp", "8"])
    assert isinstance(command, ExperimentConfig)
    assert (command.loop.rounds, command.mesh.fsdp) == (2, 8)
    assert model.endswith("model")
    assert (options.accelerator, options.stage_names, options.sweep) == ("v5p-16", (), False)
    assert isinstance(read([*recipe({"beta": 0.2}), "--accelerator", "cpu-8"])[1], DpoCommand)
    assert isinstance(read([*recipe({}), "--verb", "sft", "--accelerator", "cpu-8"])[1], SftCommand)


@pytest.mark.parametrize("kind", [{"kind": "judge", "url": "http://h/v1", "model": "j"},
                                  {"kind": "reward_server", "url": "http://h", "model": "r"},
                                  {"kind": "function", "function": "m:f"}])
def test_a_scorer_whose_weights_lie_elsewhere_needs_none_here(recipe, kind):
    _, command, _ = read([*recipe({"loop": {"rounds": 2}, "scorer": kind}), "--accelerator", "cpu-8"])
    assert command.scorer.kind == kind["kind"]


@pytest.mark.parametrize("args", [[], ["--accelerator", "cpu-8", "--prove_layout", "true"]])
def test_either_an_accelerator_is_planned_for_or_the_devices_here_are_proved(recipe, rlhf_jax, args):
    status, _, err = rlhf_jax("plan", *recipe({"beta": 0.2}), *args)
    assert status == 2
    assert "give one of the two: --accelerator v5p-16, or --prove_layout true" in err


@pytest.mark.parametrize(("gap", "status"), [(1e-6, 0), (0.4, 1)])
def test_a_layout_that_trains_otherwise_ends_the_command_and_is_named(recipe, rlhf_jax, monkeypatch, gap, status):
    asked = []

    def prove(stages, mesh, devices):
        asked.extend((stage.name, stage.options.lora.lora_init, mesh, len(devices)) for stage in stages)
        yield Difference("dpo", "fsdp 4 x tensor 2", 1e-6, "the loss", 1.0)
        yield Difference("dpo", "fsdp 8, devices reversed", gap, "the gradient of layers/mlp/up", 1.0)

    monkeypatch.setattr("rlhf_jax.cli.prove.prove", prove)
    found, out, err = rlhf_jax("plan", *recipe({"beta": 0.2, "use_peft": True, "lora_init": "b", "mesh": "auto"}),
                               "--prove_layout", "true")
    assert found == status
    assert asked == [("dpo", "b", MeshConfig(fsdp=8), 8)]
    assert "fsdp 4 x tensor 2" in out
    assert "100.00%" in out
    assert ("dpo on fsdp 8, devices reversed: the gradient of layers/mlp/up differs by 4.0e-01" in err) == bool(status)


def test_a_config_that_trains_nothing_has_nothing_to_prove(recipe, rlhf_jax):
    status, _, err = rlhf_jax("plan", *recipe({"num_generations": 4}), "--prove_layout", "true")
    assert status == 1
    assert "nothing is trained here; there are prefill, decode" in err


def test_its_own_keys_and_the_configs_keys_are_kept_apart(recipe):
    options, command, _ = read([*recipe({"beta": 0.2}), "--accelerator", "cpu-8", "--stages", "dpo, reference",
                                "--assume.response_tokens", "99", "--train_batch_size", "64", "--mesh", "auto"])
    assert options.stage_names == ("dpo", "reference")
    assert options.assume.response_tokens == 99
    assert (command.options.train.train_batch_size, command.options.loss.beta, command.mesh) == (64, 0.2, "auto")


@pytest.mark.parametrize(("args", "words"), [
    (["--accelerator", "cpu-8", "--betta", "1"], "betta"),
    (["--accelerator", "cpu-8", "--assume.response_token", "1"], "response_token"),
    (["--accelerator", "cpu-8", "--assume.efficiency", "2"], "efficiency = 2"),
    ([], "accelerator"),
])
def test_unknown_keys_and_bad_values_end_with_status_2(recipe, args, words, capsys):
    with pytest.raises(SystemExit) as stop:
        read([*recipe({"beta": 0.1}), *args])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_plan_without_the_shape_of_a_model_says_what_is_enough(tmp_path):
    (tmp_path / "x.yaml").write_text("beta: 0.1")
    with pytest.raises(ValueError, match=r"config\.json"):
        read(["--config", str(tmp_path / "x.yaml"), "--accelerator", "cpu-8"])


def test_what_is_printed(capsys):
    fits = StagePlan("dpo", {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}, True, 16 * 2**30, True, peak=2**30,
                     collectives={"all-gather": (64, 3 * 2**30)}, compute_s=1.0, links_s=2.0, useful=1e12,
                     executed=2e12, kernels=4)
    misfit = StagePlan("decode", fits.mesh, False, 16 * 2**30, True, needed=20 * 2**30, hosts=2)
    report = Report("a model", "v5p-16: 8 chips", "fsdp 8", ("an average prompt of 200 tokens",), (fits, misfit),
                    {"dpo": [900], "decode": [10]}, 0.5)
    show(Console(highlight=False, width=200), [report])
    out = capsys.readouterr().out
    for words in ("1.0 + 0.0 of 16.0", "all-gather  64    3.0", "2.0 s, links", "1.00", "NO", "20.0 + 0.0 of 16.0",
                  "on each of 2 hosts", "use more devices", "assumed: an average prompt"):
        assert words in out, words
    show(Console(highlight=False, width=200), [report, report])
    assert "not decode" in capsys.readouterr().out


def test_help_lists_the_keys(rlhf_jax):
    _, out, _ = rlhf_jax("plan", "--help")
    assert all(f"--{name}" in out for name in ("accelerator", "stages", "sweep", "tries"))
    assert PlanOptions("x").tries > 0
