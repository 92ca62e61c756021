"""Every YAML under configs/ is what its verb takes; the presets of meshes fit the accelerators they are named for."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest
import yaml
from jax.sharding import AbstractMesh

from rlhf_jax.cli.parser import parse, parse_tree
from rlhf_jax.cli.plan import read
from rlhf_jax.config.commands import RewardCommand, SftCommand
from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.config.mixes import DataCommand
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.sweep import SweepCommand
from rlhf_jax.data.converters import find_converter
from rlhf_jax.data.world import world_rows
from rlhf_jax.models import config_from_hf, count_params, param_specs
from rlhf_jax.models.params import is_spec
from rlhf_jax.parallel import param_shardings
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import read_data

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
VERBS = {"sft": SftCommand, "reward": RewardCommand, "pairwise": RewardCommand}
GIVEN_LATER = {"output_dir": "o", "model_name_or_path": "m"}
"""What a user adds on the command line."""
MIXES = sorted(CONFIGS.glob("mixes/*.yaml"))
SWEEPS = sorted(set(CONFIGS.glob("exploration/*.yaml")) - {CONFIGS / "exploration" / "world.yaml"})
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml"))
           if path.parent.name not in ("mesh", "mixes") and path not in SWEEPS]
MODELS = {"llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496, "gemma2_9b": 9_241_705_984,
          "qwen3_8b": 8_190_735_360}
"""Parameters as published."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_is_what_its_verb_takes(path):
    tree = yaml.safe_load(path.read_text())
    if (kind := VERBS.get(path.stem)) is not None:
        parse_tree(kind, path.stem, {**GIVEN_LATER, "dataset_name": "d", **tree})
        return
    given = {} if "scratch" in tree else {"model_name_or_path": "m"}
    judge = {"kind": "bradley_terry", "model_name_or_path": "m"}
    own = "reward" in tree or tree.get("scorer", {}).get("kind") == "function"
    judges = {} if own else {"scorer": {**judge, **tree.get("scorer", {})}}
    if tree.get("gold", {}).get("kind") == "bradley_terry":
        judges["gold"] = {**judge, **tree["gold"]}
    parse_tree(ExperimentConfig, "iterate", {"output_dir": "o", **given, **tree, **judges})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_one_over_the_world(path):
    words = ["--config", str(path.parent / "world.yaml"), "--config", str(path)]
    command = parse(SweepCommand, "sweep", words)
    assert math.prod(map(len, command.grid.values())) > 1  # each cell was built, or the command refused
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()


@pytest.mark.parametrize("path", MIXES, ids=lambda path: path.stem)
def test_every_mix_names_converters_that_there_are(path):
    mix = parse_tree(DataCommand, "data", {"output_dir": "o", **yaml.safe_load(path.read_text())})
    for source in mix.sources:
        assert source.converter is None or find_converter(source.converter, source.converter_options)


def test_the_papers_mix_has_the_rows_of_its_table():
    tree = yaml.safe_load((CONFIGS / "mixes" / "mix2.yaml").read_text())
    mix = parse_tree(DataCommand, "data", {"output_dir": "o", **tree})
    assert sum(source.published for source in mix.sources) == 848_965


def test_the_quickstart_has_a_prompt_for_every_place_of_its_rounds(tmp_path):
    """Its world knows fewer requests than its rounds ask, so it asks them again."""
    config = parse_tree(ExperimentConfig, "iterate", yaml.safe_load((CONFIGS / "quickstart.yaml").read_text()))
    rows = world_rows(config.world)["prompts"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    located = dataclasses.replace(config.prompts.rows, dataset_name=str(tmp_path / "prompts.jsonl"))
    examples, _ = read_data(located, "prompt")
    assert len(examples) >= config.loop.rounds * config.loop.prompts_per_round


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mesh/*.yaml")), ids=lambda path: path.stem)
def test_every_mesh_preset_is_valid_for_the_accelerator_it_is_named_for(path):
    accelerator = find_accelerator(path.stem)
    mesh = MeshConfig(**yaml.safe_load(path.read_text())["mesh"])
    data, _, _, tensor = mesh.shape(accelerator.devices)
    assert tensor <= accelerator.per_host
    assert data % accelerator.slices == 0 or accelerator.slices == 1


@pytest.mark.parametrize(("name", "count"), MODELS.items())
def test_the_shapes_beside_the_recipes_are_those_of_the_published_models(name, count):
    raw = json.loads((CONFIGS / name / "model" / "config.json").read_text())
    assert count_params(config_from_hf(raw)) == count


@pytest.mark.parametrize("devices", [16, 64, 256])
@pytest.mark.parametrize("name", MODELS)
def test_every_large_weight_is_cut_over_all_devices(name, devices):
    config = Checkpoint(CONFIGS / name / "model").config
    mesh = AbstractMesh((1, devices, 1, 1), AXES)
    shardings = jax.tree.leaves(param_shardings(config, mesh))
    for spec, sharding in zip(jax.tree.leaves(param_specs(config), is_leaf=is_spec), shardings, strict=True):
        if len(spec.shape) > 2 or spec.axes[0] == "vocab":
            assert math.prod(sharding.shard_shape(spec.shape)) * devices == math.prod(spec.shape), spec.hf_name


@pytest.mark.parametrize("name", MODELS)
def test_every_large_recipe_can_be_planned_and_says_how(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    lines = (CONFIGS / name / "README.md").read_text().splitlines()
    plans = [words for words in map(str.split, lines) if words[:2] == ["rlhf-jax", "plan"] and "--verb" not in words]
    assert plans
    for words in plans:
        options, command, model = read(PlanOptions, "plan", words[2:])
        assert Path(model).resolve() == (CONFIGS / name / "model").resolve()
        assert (command.loop.rounds, command.loop.prompts_per_round, command.dpo.loss.beta) == (3, 20_000, 0.1)
        assert options.accelerator


def test_the_papers_numbers():
    sft, reward, pairwise, loop = (yaml.safe_load((CONFIGS / "llama3_8b" / f"{name}.yaml").read_text())
                                   for name in ("sft", "reward", "pairwise", "iterate"))
    for stage, rate in ((sft, 2e-5), (reward, 2e-6), (pairwise, 5e-6), (loop["dpo"], 5e-7)):
        assert stage["learning_rate"] == rate
        assert (stage["lr_scheduler_type"], stage["warmup_steps"]) == ("cosine", 0.03)
    assert (sft["row_length"], pairwise["row_length"], reward["max_length"]) == (8192, 3072, 4096)
    assert (reward["train_batch_size"], reward["weight_decay"]) == (512, 0.001)
    assert (loop["dpo"]["train_batch_size"], loop["dpo"]["num_train_epochs"], loop["dpo"]["beta"]) == (128, 2, 0.1)
    assert (loop["sampling"]["num_generations"], loop["sampling"]["temperature"]) == (8, [1.0, 0.7])
    assert loop["sampling"]["max_new_tokens"] == 2048
    assert (loop["loop"]["reference"], loop["pairs"]["rule"]) == ("sft", "max_min")
