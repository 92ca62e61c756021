"""Whole plans of a small model over this process's eight CPU devices."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml

from rlhf_jax.cli.plan import read
from rlhf_jax.config.build import build as build_options
from rlhf_jax.config.commands import RewardCommand, ScoreCommand, SftCommand
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.config.plan import PlanOptions
from rlhf_jax.config.preference import DpoCommand, PreferenceOptions
from rlhf_jax.config.run import EvaluationSection, ExperimentConfig, SftSection
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.packing import power_of_two, unpack_targets
from rlhf_jax.models import config_to_hf, count_params
from rlhf_jax.models.flops import forward_flops
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.parallel.auto import room_of
from rlhf_jax.parallel.topology import captured_stderr
from rlhf_jax.plan.compile import REMATERIALIZED, Compiled, Memory, needed_bytes
from rlhf_jax.plan.hlo import Module
from rlhf_jax.plan.measure import StagePlan, measure, meshes_to_try, plan_all, plan_stage, resident_bytes
from rlhf_jax.plan.programs import build
from rlhf_jax.plan.recipe import Shards, scope_of, stages_named, tasks_of
from rlhf_jax.plan.report import Report, markdown, notes, read_json, sweep_rows, write_json
from rlhf_jax.plan.reports import chosen_mesh, make_reports, report_of
from rlhf_jax.plan.roofline import work_of
from rlhf_jax.plan.shapes import Assumptions, TrainShape, at_a_time, score_shape
from rlhf_jax.training.evaluate import PackedMap
from rlhf_jax.workflow.meshes import resolved

CONFIGS = Path(__file__).parents[2] / "configs"
MESH_OF_ONE = dict.fromkeys(AXES, 1)
CPU = find_accelerator("cpu-8")
SHORT = Assumptions(prompt_tokens=20, response_tokens=30)
TRAIN = {"train_batch_size": 32, "micro_rows": 1, "row_length": 256, "dtype": "bfloat16", "remat": "full",
         "logits_chunk": 64}
SCORED = {"input": "i", "output_dir": "o", "model_name_or_path": "m"}
SUMMED = {"input": "i", "output_dir": "o", "kind": "combine", "weights": {"proxy/a": 1.0}}
LIMITS = {"max_length": 128, "max_prompt_length": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny):
    """A folder that holds config.json and nothing else."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny(vocab_size=500, embed=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp=128, max_position=512)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    return str(folder)


@pytest.fixture(scope="module")
def experiment():
    return build_options(ExperimentConfig, {
        "output_dir": "unused", "model_name_or_path": "unused", "prompts": LIMITS,
        "sft": {"data": LIMITS, "train": TRAIN}, "reward": {"data": LIMITS, "train": TRAIN},
        "loop": {"rounds": 2, "prompts_per_round": 100}, "dpo": {**TRAIN, "num_train_epochs": 2},
        "sampling": {"slots": 16, "num_generations": 4, "max_new_tokens": 64, "block": 8, "prompt_length": 64}})


@pytest.fixture(scope="module")
def reports(experiment, model):
    return make_reports(experiment, model, "cpu-8", (), assume=SHORT, examples=1000, tries=0, sweep=False)


def read_command(config, *changed):
    """(command, the folder of its shape) of a config that lies in configs/."""
    words = ["--config", str(CONFIGS / config), "--accelerator", "v5p-16", *changed]
    _, command, folder = read(PlanOptions, "plan", words)
    return command, folder


def tasks(experiment, model):
    return {task.stage.name: task for task in tasks_of(experiment, model, SHORT, 1000)}


@pytest.mark.longer
def test_every_stage_fits_without_rematerialization_and_without_gathering_the_whole_tree(reports):
    (report,) = reports
    assert [s.stage for s in report.stages] == ["sft", "reward", "prefill", "decode", "score", "reference", "dpo"]
    for stage in report.stages:
        assert stage.fits, stage
        assert stage.rematerialized == 0, stage.stage
        assert stage.whole_tree == 0, stage.stage
        assert stage.peak >= stage.arguments + stage.temporaries > 0
        here, links = max(stage.compute_s, stage.hbm_s), stage.links_s
        assert stage.times.step == (here + links if stage.stage == "decode" else max(here, links)) > 0


@pytest.mark.longer
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=4), MeshConfig(fsdp=4, tensor=2)])
def test_argument_bytes_are_those_of_the_formula(experiment, model, mesh):
    found = measure(tasks(experiment, model)["dpo"].stage, mesh, CPU, jax.devices())
    assert found.arguments == pytest.approx(found.formula_arguments, rel=1e-3)  # jax 0.12's XLA counts 112 bytes less
    assert found.rematerialized == 0


def test_a_state_takes_twelve_bytes_a_weight_over_the_devices(experiment, model):
    stage = tasks(experiment, model)["dpo"].stage
    mesh = make_mesh(MeshConfig())
    program = build(stage, mesh)
    state, _, batch, *_ = program.args
    counted = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    shards = jax.tree.leaves(jax.tree.map(lambda s, x: math.prod(s.shard_shape(x.shape)),
                                          param_shardings(stage.config, mesh), state.params))
    assert counted == 12 * sum(shards) + 4 + 4  # and two counters: the step and Adam's
    assert batch.tokens.shape == (power_of_two(stage.micro_batches(8)), 8, 256)


@pytest.mark.longer
def test_gradients_and_moments_carry_the_parameters_shardings(experiment, model):
    stage = dataclasses.replace(tasks(experiment, model)["dpo"].stage,
                                assume=dataclasses.replace(SHORT, groups_per_row=1))
    mesh = make_mesh(MeshConfig())
    program = build(stage, mesh)
    assert program.trips == 4
    compiled = program.jitted.lower(*program.args).compile()
    wanted = param_shardings(stage.config, mesh)
    state = compiled.output_shardings[0]
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
        assert jax.tree.all(jax.tree.map(lambda found, want, x: found.is_equivalent_to(want, x.ndim), tree, wanted,
                                         program.args[0].params))
    module = Module(compiled.as_text(), trips=program.trips, layers=3)
    loops = [i for c in module.computations.values() for i in c.instructions if i.opcode == "while"]
    whole = [x.size for x in jax.tree.leaves(program.args[0].params) if x.ndim > 2]
    carried = [size for loop in loops for dtype, size in loop.arrays if dtype == "f32" and size in whole]
    assert not carried  # no loop carries a float32 gradient that is not cut


def test_two_samplers_are_each_counted_with_their_own_calls(experiment, model):
    """A quarter of the samples is the start's: three lanes of the policy, one of the start."""
    loop = dataclasses.replace(experiment.loop, from_start=0.25)
    both = tasks_of(dataclasses.replace(experiment, loop=loop), model, SHORT, 1000)

    plans = [StagePlan(task.stage.name, MESH_OF_ONE, True, 1.0, True, compute_s=1.0) for task in both]
    report = report_of(both, MeshConfig(), CPU, model, "", SHORT, 0, plan=lambda *_: plans)
    ours, theirs = report.calls["decode"]
    assert (ours, theirs) == (math.ceil(200 * 3 * 30 / (16 * 3 * 8)), math.ceil(200 * 30 / (16 * 8)))  # blocks of 8
    found = [runs for stage, runs, _ in report.runs if stage.stage == "decode"]
    assert found == [ours, theirs]
    assert report.hours["decode"] == pytest.approx((ours + theirs) / SHORT.efficiency / 3600)


def test_how_often_each_program_runs(experiment, model):
    found = {name: task.calls(8) for name, task in tasks(experiment, model).items()}
    assert found["sft"] == math.ceil(1000 / 32)
    assert found["dpo"] == math.ceil(2 * 2 * 100 / 32)  # two rounds, two epochs
    assert found["prefill"] == math.ceil(200 / 8)  # a quarter of 16 slots, and at least one for each of 8 ways
    assert found["decode"] == math.ceil(200 * 4 * 30 / (16 * 4 * 8))
    groups = 256 // (20 + 2 * 30)
    assert found["reference"] == math.ceil(200 / groups / 8)
    section = build_options(SftSection, {"data": LIMITS, "train": {**TRAIN, "max_steps": 7}})
    limited = dataclasses.replace(experiment, sft=section, dpo=build_options(
        PreferenceOptions, {**TRAIN, "num_train_epochs": 2, "max_steps": 5}))
    found = {name: task.calls(8) for name, task in tasks(limited, model).items()}
    assert (found["sft"], found["dpo"], found["reference"]) == (7, 2 * 5, math.ceil(200 / groups / 8))


@pytest.mark.parametrize(("hosts", "most"), [(1, 20_000), (4, 5 * 1024), (16, 2 * 1024), (32, 1024)])
def test_the_host_with_most_shards_is_waited_for(experiment, model, hosts, most):
    """20,000 prompts are 20 shards of 1,024: of 16 hosts four have two, and the others wait."""
    loop = dataclasses.replace(experiment.loop, prompts_per_round=20_000, shard_size=1024)
    found = tasks(dataclasses.replace(experiment, loop=loop), model)
    for name in ("decode", "score"):
        assert found[name].calls(1, hosts) == pytest.approx(found[name].calls(1) * most / 20_000, rel=0.01, abs=1)


@pytest.mark.parametrize("recipe", ["llama3_8b", "llama3_70b", "qwen3_8b", "gemma2_9b"])
@pytest.mark.parametrize("hosts", [2, 4, 16, 32])
def test_the_recipes_shards_divide_evenly(recipe, hosts):
    loop = read_command(f"{recipe}/iterate.yaml")[0].loop
    assert Shards(loop.prompts_per_round, loop.shard_size).largest_share(hosts) == 1 / hosts


@pytest.mark.parametrize("slots", [8, 16, 40])
def test_a_prefill_reads_as_many_prompts_in_the_plan_as_in_the_sampler(experiment, model, slots):
    sampling = dataclasses.replace(experiment.sampling, slots=slots)
    task = tasks(dataclasses.replace(experiment, sampling=sampling), model)["prefill"]
    mesh = make_mesh(MeshConfig())
    rows = build(task.stage, mesh).args[2].tokens.shape[0]
    assert rows == at_a_time(task.stage, 8)
    assert task.calls(8) == math.ceil(200 / rows)
    assert work_of(task.stage, mesh, 0).useful == pytest.approx(
        forward_flops(task.stage.config, rows * SHORT.prompt_tokens, context=SHORT.prompt_tokens / 2).total)


def test_baselines_are_counted_and_what_is_not_is_said(experiment, model):
    evaluated = dataclasses.replace(experiment, evaluation=build_options(EvaluationSection, {"data": {}}))
    assert scope_of(evaluated) == ["not counted: what evaluation sample and score"]
    plain, both = (tasks(dataclasses.replace(experiment, baselines=names), model) for names in (
        (), ("matched_dpo", "raft", "offline_dpo")))
    assert both["decode"].groups == 3 * plain["decode"].groups == 600
    assert both["score"].groups == 3 * plain["score"].groups
    assert both["reference"].groups == 200 + 200 + 1000
    assert both["dpo"].groups == 2 * (200 + 200 + 1000)
    assert both["raft"].groups == 200
    assert "raft" not in plain
    assert "offline_dpo are counted" in scope_of(dataclasses.replace(experiment, baselines=("offline_dpo",)))[0]


@pytest.mark.parametrize("accelerator", ["v5e-64", "v5e-256", "2xv5e-256", "v5p-16", "4x8xH100"])
@pytest.mark.parametrize("changed", [[], ["--baselines", "[raft]", "--raft.train_batch_size", "8"],
                                     ["--loop.method", "raft"]])
def test_a_run_and_its_plan_choose_the_same_mesh(accelerator, changed, monkeypatch):
    command, folder = read_command("llama3_8b/iterate.yaml", *changed)
    room = room_of(find_accelerator(accelerator))
    monkeypatch.setattr("rlhf_jax.workflow.meshes.room_here", lambda devices: room)
    run = dataclasses.replace(command, model_name_or_path=folder)
    planned = chosen_mesh("auto", tasks_of(command, folder, Assumptions(), 1000), room)
    assert resolved("auto", run) == planned
    preset = Path(CONFIGS / "mesh" / f"{accelerator}.yaml")
    if not changed and accelerator != "4x8xH100":  # whose 32 ways are nearly fed by 26 rows
        assert MeshConfig(**yaml.safe_load(preset.read_text())["mesh"]) == planned.mesh


@pytest.mark.parametrize(("policy", "rounds"), [("fresh", 3), ("accumulate", 6), ("window", 5)])
def test_rounds_that_keep_data_train_longer(experiment, model, policy, rounds):
    loop = LoopOptions(rounds=3, prompts_per_round=100, data_policy=policy)
    found = tasks(dataclasses.replace(experiment, loop=loop), model)
    assert found["dpo"].groups == 2 * 100 * rounds


def command(verb, **options):
    return build_options(verb, {"model_name_or_path": "unused", "output_dir": "unused", **options})


@pytest.mark.parametrize(("made", "stages"), [
    (command(SftCommand, dataset_name="d"), ["sft"]),
    (command(RewardCommand, dataset_name="d"), ["reward"]),
    (command(RewardCommand, dataset_name="d", kind="pairwise"), ["pairwise"]),
    (command(RewardCommand, dataset_name="d", kind="odin"), ["reward"]),
    (command(RewardCommand, dataset_name="d", kind="process"), ["process"]),
    (command(RewardCommand, dataset_name="d", kind="outcome_generative"), ["outcome_generative"]),
    (command(RewardCommand, dataset_name="d", kind="outcome"), ["outcome"]),
    (command(RewardCommand, dataset_name="d", kind="regression", objectives=["data"]), ["reward"]),
    (command(RewardCommand, dataset_name="d", kind="ensemble", members=3), ["reward"]),
    (command(DpoCommand, dataset_name="d"), ["reference", "dpo"]),
    (command(DpoCommand, dataset_name="d", loss_type="simpo"), ["dpo"]),  # no reference, no pass over it
    (build_options(ScoreCommand, SCORED), ["score"]),
    (build_options(ScoreCommand, {**SCORED, "kind": "pairwise"}), ["score"]),
    (build_options(ScoreCommand, {**SCORED, "kind": "process"}), ["score"]),
    (build_options(ScoreCommand, {**SCORED, "kind": "outcome"}), ["score"]),
    (build_options(ScoreCommand, {**SCORED, "kind": "regression"}), ["score"]),
    (build_options(ScoreCommand, SUMMED), []),
    (build_options(ScoreCommand, {**SUMMED, "scorer": {"kind": "regression", "model_name_or_path": "m"}}), ["score"]),
    (build_options(ScoreCommand, {**SCORED, "kind": "ensemble"}), ["score"]),
])
def test_each_verb_has_its_stages(made, stages, model):
    assert [task.stage.name for task in tasks_of(made, model, SHORT, 100)] == stages


def test_a_stage_the_config_has_not_is_refused_with_those_it_has(experiment, model):
    with pytest.raises(ValueError, match=r"no stage 'dpoo'; it has sft, reward, prefill"):
        stages_named(tasks_of(experiment, model, SHORT, 10), ("dpoo",))


def test_a_row_holds_what_packing_puts_there():
    stage = TrainShape("dpo", None, build_options(PreferenceOptions, {"train_batch_size": 64, "micro_rows": 2}), 512, 2,
                       Assumptions(prompt_tokens=50, response_tokens=60))
    assert stage.groups_per_row == 512 // 170
    assert (stage.rows(), stage.micro_batches(4)) == (22, 3)
    assert (stage.shape().slots, stage.shape().pairs, stage.shape().targets) == (8, 4, 512)
    few = dataclasses.replace(stage, assume=Assumptions(groups_per_row=1, targets_per_row=100))
    assert (few.rows(), few.shape().targets, few.shape().slots) == (64, 128, 2)


@pytest.mark.parametrize(("answers", "lengths", "max_length"), [
    (8, (200, 350), 1024), (8, (20, 30), 128), (2, (100, 100), 1024), (1, (900, 3000), 4096), (16, (500, 500), None)])
def test_scoring_is_planned_for_the_rows_that_scoring_packs(answers, lengths, max_length, tiny):
    prompt, answer = lengths
    config = tiny(max_position=8192)
    stage = score_shape(config, "bradley_terry", max_length, answers, Assumptions(*lengths), "float32")
    response = Response(np.zeros(answer, np.int32), np.ones(answer, bool))
    groups = [PromptGroup(str(i), np.zeros(prompt, np.int32), (response,) * answers) for i in range(60)]
    lone = make_mesh(devices=jax.devices()[:1])  # where rows are as long as on TPUs and GPUs
    found = PackedMap(lambda params, batch: None, lone, unpack_targets).shape(groups)
    most = power_of_two(max_length or 2048)  # one conversation of that length may be among them
    assert stage.tokens == max(found.tokens, most)
    if found.tokens >= most:
        assert stage.shape().slots == found.slots


def too_large(stage, mesh, accelerator, fits):
    """A plan with a compiler for which `fits(program)` decides."""
    def compile_it(program):
        size = 1.0 if fits(program) else 1e12
        return Compiled(Memory(size, size, size), None, "", 0, 0.0)

    return plan_stage(stage, mesh, accelerator, jax.devices(), 9, compile_it)


def test_a_misfit_says_what_made_it_fit_and_what_it_asked_for(experiment, model):
    options = build_options(PreferenceOptions, {**TRAIN, "micro_rows": 2})
    stage = dataclasses.replace(tasks(experiment, model)["dpo"].stage, options=options)
    found = too_large(stage, MeshConfig(), CPU, lambda program: program.args[2].tokens.shape[1] == 8)
    assert (found.fits, found.change, found.needed) == (True, ("micro_rows 1",), 1e12)
    assert found.more_calls == 1  # a step is a step, in however many micro-batches
    decode = tasks(experiment, model)["decode"].stage
    half = too_large(decode, MeshConfig(), CPU, lambda program: program.args[2].token.shape[0] < 16)
    assert (half.change, half.more_calls) == (("slots 8",), 2.0)
    assert Report("", "", "", (), (dataclasses.replace(half, compute_s=18.0),), {"decode": [100]}, 0.5).hours == {
        "decode": 2.0}
    never = too_large(stage, MeshConfig(), CPU, lambda program: False)
    assert (never.fits, never.change) == (False, ())


@pytest.mark.parametrize(("message", "size"), [
    ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... Used 18.00G of 15.75G hbm. Exceeded", 18 * 2**30),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error: (36.4G) exceeds available HBM (15.75G)", 36.4 * 2**30),
    ("RESOURCE_EXHAUSTED: no number here", None),
])
def test_what_a_refused_program_wants(message, size):
    assert needed_bytes(message) == size


def test_what_c_code_writes_to_stderr_is_seen(capfd):
    import os

    with captured_stderr() as read:
        os.write(2, f"{REMATERIALIZED} at line 1".encode())
        assert read().count(REMATERIALIZED) == 1
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_sweeps_try_meshes_that_divide_devices_heads_and_slots(experiment, model):
    stages = [task.stage for task in tasks(experiment, model).values()]
    found = meshes_to_try(stages, CPU)
    assert found == [MeshConfig(1, 8), MeshConfig(1, 4, 1, 2), MeshConfig(2, 4), MeshConfig(2, 2, 1, 2)]


@pytest.mark.longer
def test_a_report_survives_json_and_says_what_is_wrong(reports, tmp_path):
    write_json(tmp_path / "plan.json", reports)
    (found,) = read_json(tmp_path / "plan.json")
    assert found == reports[0]
    text = markdown(found)
    assert "| dpo | fsdp 8 | yes |" in text
    assert "| all |" in text
    bad = dataclasses.replace(found.stages[-1], rematerialized=2, whole_tree=2**31, across=2**30, exact=False)
    said = " ".join(notes(dataclasses.replace(found, stages=(bad, dataclasses.replace(bad, fits=False)))))
    for words in (REMATERIALIZED, "2.0 GiB of weights", "slower network", "CPU's compiler", "use more devices"):
        assert words in said


@pytest.mark.longer
def test_the_best_mesh_comes_first(reports):
    (good,) = reports
    slow = dataclasses.replace(good, mesh="data 2 x fsdp 4", stages=tuple(
        dataclasses.replace(s, compute_s=9 + s.times.step) for s in good.stages))
    misfit = dataclasses.replace(good, stages=(dataclasses.replace(good.stages[0], fits=False), *good.stages[1:]))
    rows = sweep_rows([misfit, slow, good])
    assert [row[1] for row in rows] == ["all", "all", "not sft"]
    assert [row[0] for row in rows][:2] == ["fsdp 8", "data 2 x fsdp 4"]


def test_what_a_run_holds_beside_each_program(experiment, model):
    found = {name: task.stage for name, task in tasks(experiment, model).items()}
    one = 4 * count_params(found["dpo"].config) / 8
    held = {name: resident_bytes(stage, MeshConfig(), CPU) for name, stage in found.items()}
    assert held == {"sft": 0, "reward": 0, "dpo": 0, "reference": 2 * one, "prefill": one, "decode": one,
                    "score": 4 * count_params(found["score"].config) / 8}
    adapter = dataclasses.replace(found["dpo"], options=build_options(PreferenceOptions, {**TRAIN, "use_peft": True}))
    assert resident_bytes(adapter, MeshConfig(data=2), CPU) == 2 * one  # merged at the end


def test_a_sweep_compiles_once_what_runs_on_each_host_by_itself(experiment, model, monkeypatch):
    compiled = []

    def compile_it(program):
        compiled.append(program)
        return Compiled(Memory(1.0, 1.0, 1.0), None, "", 0, 0.0)

    monkeypatch.setattr("rlhf_jax.plan.measure.plan_stage",
                        lambda stage, mesh, accelerator, devices, tries: measure(stage, mesh, accelerator, devices,
                                                                                 compile_it))
    found = make_reports(experiment, model, "cpu-8", ("decode", "dpo"), assume=SHORT, examples=10, tries=0, sweep=True)
    assert [r.mesh for r in found] == ["fsdp 8", "fsdp 4 x tensor 2", "data 2 x fsdp 4", "data 2 x fsdp 2 x tensor 2"]
    assert len(compiled) == 5  # decode once, dpo for each mesh
    assert found[2].stages[0].held == 2 * found[0].stages[0].held  # weights twice, over `data`


@pytest.mark.parametrize(("options", "responses", "values"), [
    ({"loss_type": "kto", "split_pairs": True}, 4, 2), ({"loss_type": "kto"}, 2, 2), ({"loss_type": "bco"}, 1, 1)])
def test_groups_of_single_responses_have_the_branches_and_numbers_that_their_loss_reads(options, responses, values,
                                                                                      model):
    command = build_options(DpoCommand, {"model_name_or_path": model, "output_dir": "o", "dataset_name": "d", **TRAIN,
                                         **LIMITS, **options})
    (stage,) = (task.stage for task in tasks_of(command, model, SHORT, 1000) if task.stage.name == "dpo")
    assert stage.responses == responses
    program = build(stage, make_mesh(MeshConfig()))
    assert program.args[2].slot_values.shape[-1] == values
    program.jitted.eval_shape(*program.args)  # traces


def test_a_model_with_two_heads_reads_lengths_and_its_batch_is_one_micro_batch_without_empty_rows(model):
    options = {"kind": "odin", **TRAIN, "micro_rows": 64, **LIMITS, "dataset_name": "d", "output_dir": "o",
               "model_name_or_path": model}
    (task,) = tasks_of(build_options(RewardCommand, options), model, SHORT, 100)
    batch = build(task.stage, make_mesh(MeshConfig())).args[2]
    rows = -(-task.stage.rows() // 8) * 8
    assert batch.tokens.shape[:2] == (1, rows)
    assert batch.slot_values.shape[-1] == 1
    assert task.stage.config.num_labels == 2


def test_a_regression_has_a_head_for_each_rating_and_reads_as_many(model):
    options = {"kind": "regression", "objectives": ["data/a:1:5", "data/b", "data/c"], **TRAIN, **LIMITS,
               "dataset_name": "d", "output_dir": "o", "model_name_or_path": model}
    (task,) = tasks_of(build_options(RewardCommand, options), model, SHORT, 100)
    assert (task.stage.config.num_labels, task.stage.config.labels) == (3, ("a", "b", "c"))
    assert build(task.stage, make_mesh(MeshConfig())).args[2].slot_values.shape[-1] == 3


def test_an_ensemble_has_as_many_heads_and_draws_as_members(model):
    options = {"kind": "ensemble", "members": 5, **TRAIN, **LIMITS, "dataset_name": "d", "output_dir": "o",
               "model_name_or_path": model}
    (task,) = tasks_of(build_options(RewardCommand, options), model, SHORT, 100)
    program = build(task.stage, make_mesh(MeshConfig()))
    assert (task.stage.config.num_labels, program.args[2].slot_values.shape[-1]) == (5, 5)
    program.jitted.eval_shape(*program.args)  # traces


def test_each_stage_is_said_as_it_is_done(monkeypatch):
    gib, stages = 2**30, [SimpleNamespace(name=name) for name in ("dpo", "decode", "score")]
    plans = iter([
        StagePlan("dpo", {}, True, 16 * gib, True, ("micro_rows 1",), peak=9 * gib, held=gib, hbm_s=0.5,
                  compile_s=61.0),
        StagePlan("decode", {}, False, 16 * gib, True, needed=20 * gib, held=gib, compile_s=2.0),
        StagePlan("score", {}, False, 16 * gib, True, peak=17 * gib, compile_s=3.0)])
    said = []
    monkeypatch.setattr("rlhf_jax.plan.measure.plan_stage", lambda stage, *_: said.append(stage.name) or next(plans))
    plan_all(stages, MeshConfig(), find_accelerator("cpu-8"), 0, said=said.append)
    assert [line for line in said if not line.startswith("compiling")] == [
        "dpo", "  dpo fits, with micro_rows 1: 10.0 of 16.0 GiB, 0.5 s a call at the vendor's peak; compiled in 61 s",
        "decode", "  decode does NOT fit: 21.0 of 16.0 GiB; compiled in 2 s",
        "score", "  score does NOT fit: 17.0 of 16.0 GiB; compiled in 3 s"]
