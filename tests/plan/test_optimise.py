"""The search for faster forms of a recipe, with a made-up compiler; and once with the real one."""

import dataclasses
import json

import pytest
import yaml

from rlhf_jax.cli.plan import read
from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.models import config_to_hf
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.plan.measure import StagePlan, placed, resident_bytes
from rlhf_jax.plan.optimise import Tried, as_tree, frontier, optimise, tried_rows, words
from rlhf_jax.plan.recipe import tasks_of
from rlhf_jax.plan.shapes import Assumptions, TrainShape

EIGHT = find_accelerator("cpu-8")
RECIPE = {
    "prompts": {"max_prompt_length": 64},
    "loop": {"prompts_per_round": 100, "rounds": 2},
    "sampling": {"slots": 8, "num_generations": 2, "max_new_tokens": 64, "prompt_length": 64},
    "dpo": {"train_batch_size": 64, "micro_rows": 1, "row_length": 256, "remat": "full"},
}


@pytest.fixture
def recipe(tmp_path, tiny):
    """recipe(tree) -> the parsed config and its tasks."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_to_hf(tiny())))

    def parsed(tree):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        _, command, model = read(PlanOptions, "plan", ["--config", str(tmp_path / "recipe.yaml"), "--accelerator",
                                                       "cpu-8"])
        return command, tasks_of(command, model, Assumptions(40, 40), 100)

    return parsed


class Compiler:
    """Stands in for `measure`: one second a call, 1 GiB; what `rules` say of a stage on a mesh replaces that."""

    def __init__(self, rules=lambda stage, mesh: {}):
        self.rules, self.seen = rules, []

    def __call__(self, stage, mesh, accelerator, devices):
        self.seen.append((stage.name, mesh))
        laid, _, hosts, _ = placed(stage, mesh, accelerator, devices)
        plan = StagePlan(stage.name, {axis: laid.shape[axis] for axis in AXES}, True, 2.0**32, True, hosts=hosts,
                         peak=2.0**30, compute_s=1.0, executed=2.0, useful=1.0)
        return dataclasses.replace(plan, **self.rules(stage, mesh))


def named(found):
    return {found.chosen[place].candidate.task.stage.name: some for place, some in found.tried.items()}


def chosen(found):
    return {one.candidate.task.stage.name: one for one in found.chosen}


def search(tasks, compiler, tries=4):
    return optimise(tasks, MeshConfig(), EIGHT, tries, 0.5, compiled=compiler, said=lambda line: None)


def test_no_stage_is_compiled_more_often_than_asked(recipe):
    _, tasks = recipe(RECIPE)
    for tries in (1, 4):
        compiler = Compiler()
        found = search(tasks, compiler, tries)
        counts = {name: len(some) for name, some in named(found).items()}
        assert set(counts) == {"decode", "score", "dpo"}
        assert counts["dpo"] == tries
        assert max(counts.values()) <= tries
        assert len(compiler.seen) == sum(counts.values()) + 2  # the reference and the prefill follow


def test_the_configs_own_form_is_the_first_and_stays_where_nothing_is_better(recipe):
    command, tasks = recipe(RECIPE)
    found = search(tasks, Compiler(lambda stage, mesh: {"compute_s": 1.0}))
    (dpo,) = (one for one in found.chosen if one.candidate.task.stage.name == "dpo")
    assert dpo is named(found)["dpo"][0]
    assert dpo.candidate.keys == {}
    assert "dpo" not in as_tree(found, command)
    assert "mesh" not in as_tree(found, command, whole=False)


def test_the_fastest_form_is_chosen_and_written_where_the_config_has_it(recipe):
    def rules(stage, mesh):
        if isinstance(stage, TrainShape):
            return {"compute_s": {"none": 0.2, "dots": 0.5, "full": 1.0}[stage.remat] / stage.micro_rows}
        return {"compute_s": 1.0}

    command, tasks = recipe(RECIPE)
    found = search(tasks, Compiler(rules), tries=500)
    keys = chosen(found)["dpo"].candidate.keys
    assert keys["remat"] == "none"
    tree = as_tree(found, command)
    assert tree["dpo"] == keys
    assert tree["mesh"] == {axis: getattr(found.mesh, axis) for axis in AXES}
    assert tree["sampling"]["slots"] > 8  # as many seconds for more lanes are fewer hours
    assert chosen(found)["prefill"].candidate.task.stage.sampling.slots == tree["sampling"]["slots"]
    assert chosen(found)["reference"].candidate.task.stage.rows == keys["micro_rows"]
    _, again = recipe({**RECIPE, "dpo": {**RECIPE["dpo"], **tree["dpo"]}})
    stage = next(task.stage for task in again if task.stage.name == "dpo")
    assert (stage.remat, stage.micro_rows, stage.row_length) == tuple(keys[k] for k in ("remat", "micro_rows",
                                                                                    "row_length"))


def test_what_does_not_fit_is_not_chosen_however_fast(recipe):
    def rules(stage, mesh):
        tempting = isinstance(stage, TrainShape) and stage.remat == "none"
        return {"compute_s": 0.01, "fits": False} if tempting else {}

    _, tasks = recipe(RECIPE)
    found = search(tasks, Compiler(rules), tries=500)
    assert any(not tried.plan.fits for tried in named(found)["dpo"])
    assert chosen(found)["dpo"].candidate.keys.get("remat") != "none"


def test_stages_that_share_the_mesh_share_the_one_on_which_all_fit(recipe):
    """dpo alone would be fastest on the mesh of two tensor ways, where the score pass does not fit."""

    def rules(stage, mesh):
        if mesh.tensor == 2:
            return {"fits": stage.name != "score", "compute_s": 0.1}
        return {}

    _, tasks = recipe(RECIPE)
    found = search(tasks, Compiler(rules), tries=6)
    assert found.mesh.tensor != 2
    assert {one.candidate.mesh for one in found.chosen} == {found.mesh}


def test_where_nothing_fits_it_is_said(recipe):
    _, tasks = recipe(RECIPE)
    with pytest.raises(ValueError, match=r"give more --tries, or more devices"):
        search(tasks, Compiler(lambda stage, mesh: {"fits": stage.name != "dpo"}))
    with pytest.raises(ValueError, match=r"decode fits in none of the"):
        search(tasks, Compiler(lambda stage, mesh: {"fits": False, "peak": 0.0} if stage.name == "decode" else {}))


def test_the_frontier_leaves_out_what_is_beaten_in_both():
    def tried(hours, gib, fits=True):
        plan = StagePlan("dpo", {}, fits, 0.0, True, peak=gib * 2.0**30)
        return Tried(None, plan, hours, 0.5)

    fast, small, beaten, out = tried(1, 9), tried(3, 2), tried(2, 9.5), tried(0.5, 1, fits=False)
    assert frontier([beaten, small, out, fast]) == [fast, small]


def test_rows_say_what_was_asked_for_and_what_was_chosen(recipe):
    _, tasks = recipe(RECIPE)
    found = search(tasks, Compiler())
    rows = tried_rows(named(found)["dpo"], chosen(found)["dpo"])
    assert len(rows) == len(named(found)["dpo"])
    assert sum("the config's" in row[-1] for row in rows) == sum("chosen" in row[-1] for row in rows) == 1
    assert any(row[0] == words(chosen(found)["dpo"].candidate) for row in rows)


def test_a_sampler_whose_prefill_does_not_fit_is_not_chosen(recipe):
    """More slots decode faster, and their prefills are larger."""

    def rules(stage, mesh):
        return {"fits": stage.name != "prefill" or stage.sampling.slots <= 16}

    _, tasks = recipe(RECIPE)
    found = search(tasks, Compiler(rules), tries=20)
    assert chosen(found)["decode"].candidate.task.stage.sampling.slots == 16


def test_what_runs_apart_has_to_fit_beside_weights_over_the_chosen_mesh(recipe):
    """Two halves that each hold all weights hold twice as much on every device."""
    held = resident_bytes(recipe(RECIPE)[1][0].stage, MeshConfig(1, 8, 1, 1), EIGHT)

    def rules(stage, mesh):
        if stage.name == "decode":
            return {"peak": 2.0**32 - 1.5 * held - 2**20 * stage.sampling.slots, "held": held}
        return {"compute_s": 0.1 if mesh.data == 2 else 1.0}

    _, tasks = recipe(RECIPE)
    with pytest.raises(ValueError, match="decode fits in none"):
        search(tasks, Compiler(lambda stage, mesh: rules(stage, mesh) | ({"peak": 2.0**32 - 1.5 * held} if stage.name
                                                                         == "decode" else {})), tries=20)
    assert search(tasks, Compiler(rules), tries=20).mesh.data == 2


def test_a_second_sampler_follows_the_first(recipe):
    _, tasks = recipe({**RECIPE, "loop": {**RECIPE["loop"], "from_start": 0.5}})
    assert [task.stage.name for task in tasks].count("decode") == 2
    found = search(tasks, Compiler(), tries=20)
    slots = [one.candidate.task.stage.sampling.slots for one in found.chosen
             if one.candidate.task.stage.name in ("prefill", "decode")]
    assert len(slots) == 4
    assert len(set(slots)) == 1
    assert slots[0] > 8


def test_shares_of_the_caches_are_tried(recipe):
    """40 of 64 tokens on average, and a tenth to spare."""
    _, tasks = recipe(RECIPE)
    found = named(search(tasks, Compiler(), tries=50))["decode"]
    assert {one.candidate.task.stage.sampling.cache_share for one in found} == {1.0, 0.7}


def test_keys_of_a_training_in_the_run_stand_in_its_section(recipe):
    def rules(stage, mesh):
        whole = isinstance(stage, TrainShape) and stage.options.train.remat == "none"
        return {"compute_s": 0.5 if whole else 1.0}

    sft = {"data": {"dataset_name": "x"}, "train": {"train_batch_size": 16, "row_length": 256}}
    command, tasks = recipe({**RECIPE, "sft": sft})
    tree = as_tree(search(tasks, Compiler(rules), tries=500), command)
    assert tree["sft"]["train"]["remat"] == "none"


@pytest.mark.parametrize(("args", "said"), [
    (["--sweep", "true"], "leave sweep out"), (["--tries", "0"], "would compile nothing")])
def test_options_that_contradict(recipe, tmp_path, capsys, args, said):
    recipe(RECIPE)
    with pytest.raises(SystemExit):
        read(PlanOptions, "plan", ["--config", str(tmp_path / "recipe.yaml"), "--accelerator", "cpu-8", "--optimise",
                                   "true", *args])
    assert said in capsys.readouterr().err


@pytest.mark.longer
def test_the_command_compiles_and_writes_keys_that_a_config_takes(recipe, tmp_path, rlhf_jax):
    recipe(RECIPE)
    config, keys = str(tmp_path / "recipe.yaml"), tmp_path / "made" / "faster.yaml"
    status, out, err = rlhf_jax("plan", "--config", config, "--accelerator", "cpu-8", "--optimise", "true", "--stages",
                                "dpo", "--tries", "2", "--keys", str(keys))
    assert status == 0, err
    assert "compiling dpo, 2 of at most 2" in err
    assert "the config's" in out
    _, command, _ = read(PlanOptions, "plan", ["--config", config, "--config", str(keys), "--accelerator", "cpu-8"])
    assert "mesh" not in (yaml.safe_load(keys.read_text()) or {})  # of one stage alone: not that of the whole run
    assert command.dpo.train.row_length is not None
