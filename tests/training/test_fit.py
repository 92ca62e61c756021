import dataclasses
import importlib
import itertools
import json
import logging
import math
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import Preempted, make_mesh, param_shardings, spec_shardings
from rlhf_jax.training.evaluate import make_evaluator
from rlhf_jax.training.fit import Model, NonFiniteLoss, fit, make_plan, write_trainer_state
from rlhf_jax.training.objectives import BradleyTerry, Compute, Preference, Sft
from rlhf_jax.training.step import _train_program
from rlhf_jax.workflow.reference import reference_logps
from rlhf_jax.workflow.stages.train import compute_of

BASE = TrainConfig(train_batch_size=3, micro_rows=1, row_length=24, learning_rate=0.05, warmup_steps=2, logging_steps=4,
                   num_train_epochs=2.0, weight_decay=0.01)


@pytest.fixture(scope="module")
def groups(make_groups):
    return make_groups(16, 1)  # 6 steps per epoch, 12 in all


@pytest.fixture
def train(bigram, lone_mesh, groups):
    """train(config, folder, ...) -> FitResult of the bigram model."""

    def run(config=BASE, folder=None, objective=Sft, classifier=False, mesh=lone_mesh, data=groups, **options):
        compute, model = bigram(classifier)
        plan = make_plan(data, config, mesh, reference=options.pop("reference", None))
        return fit(model, objective(compute), plan, config, mesh, folder=folder, **options)

    return run


class Killed(Exception):
    pass


def dies_at(step):
    def report(at, steps, metrics):
        if at == step:
            raise Killed

    return report


def timeless(log):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in log]


@pytest.mark.longer
@pytest.mark.parametrize(("save_steps", "deaths"), [(3, [5, 8, 8]), (1, [1, 2, 12]), (7, [4])])
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(save_steps, deaths, train, groups, tmp_path, equal):
    config = dataclasses.replace(BASE, save_steps=save_steps, eval_steps=3)
    whole = train(config, eval_groups=groups[:5])
    for step in deaths:
        with pytest.raises(Killed):
            train(config, tmp_path, eval_groups=groups[:5], report=dies_at(step))
    resumed = train(config, tmp_path, eval_groups=groups[:5])
    equal(resumed.params, whole.params)
    assert timeless(resumed.log_history) == timeless(whole.log_history)
    assert [row["step"] for row in whole.log_history] == [3, 4, 6, 8, 9, 12, 12]


@contextmanager
def evaluation_failing(call):
    """From its `call`-th call on (0 is the first), a fit's evaluation kills the run."""
    calls = itertools.count()

    def make(*args, **options):
        evaluate = make_evaluator(*args, **options)

        def or_die(*weights):
            if next(calls) >= call:
                raise Killed
            return evaluate(*weights)

        return or_die

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_jax.training.fit.make_evaluator", make)
        yield


@pytest.mark.longer
@pytest.mark.parametrize(("save_steps", "call", "saved"), [(None, 3, 12), (3, 0, 3), (3, 2, 9), (3, 3, 12), (2, 1, 6)])
def test_a_run_that_dies_in_its_evaluation_has_its_weights_and_evaluates_when_it_resumes(
        save_steps, call, saved, train, groups, tmp_path, equal):
    config = dataclasses.replace(BASE, save_steps=save_steps, eval_steps=3)
    whole = train(config, eval_groups=groups[:5])
    with evaluation_failing(call), pytest.raises(Killed):
        train(config, tmp_path, eval_groups=groups[:5])
    assert max(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == saved
    resumed = train(config, tmp_path, eval_groups=groups[:5])
    equal(resumed.params, whole.params)
    assert timeless(resumed.log_history) == timeless(whole.log_history)


@pytest.mark.longer
def test_a_run_asked_to_leave_where_it_would_evaluate_saves_and_evaluates_when_it_resumes(
        train, groups, tmp_path, equal):
    config = dataclasses.replace(BASE, eval_steps=3)
    whole = train(config, eval_groups=groups[:5])
    with pytest.MonkeyPatch.context() as patch:
        votes = iter([False, True, True])
        patch.setattr("rlhf_jax.training.fit.vote", lambda: next(votes))
        with evaluation_failing(0), pytest.raises(Preempted, match="step 3 of 12 is saved"):
            train(config, tmp_path, eval_groups=groups[:5])
    resumed = train(config, tmp_path, eval_groups=groups[:5])
    equal(resumed.params, whole.params)
    assert timeless(resumed.log_history) == timeless(whole.log_history)


def test_a_finished_run_resumes_to_itself(train, tmp_path, equal):
    first, steps, went_on = train(folder=tmp_path), [], []
    again = train(folder=tmp_path, report=lambda step, *_: steps.append(step),
                  on_resume=lambda *told: went_on.append(told))
    equal(again.params, first.params)
    assert again.log_history == first.log_history
    assert steps == []
    assert went_on == [(12, 12)]


@pytest.mark.slow
def test_resumes_on_another_mesh(train, tmp_path, tiny):
    config = dataclasses.replace(BASE, train_batch_size=8, save_steps=2)
    whole = train(config)
    with pytest.raises(Killed):
        train(config, tmp_path, report=dies_at(3))
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    resumed = train(config, tmp_path, mesh=mesh)
    assert resumed.params["embed"].sharding == param_shardings(tiny(), mesh)["embed"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), resumed.params, whole.params)


def test_non_finite_loss_stops_the_run_and_leaves_the_last_checkpoint(train, groups, tmp_path):
    config = dataclasses.replace(BASE, save_steps=1)
    members = make_plan(groups, config, make_mesh(MeshConfig(), jax.devices()[:1])).members(4)
    broken = [dataclasses.replace(g, margins=(math.nan,)) if i == members[0] else g for i, g in enumerate(groups)]

    def objective(compute):
        return BradleyTerry(compute, use_margin=True)

    with pytest.raises(NonFiniteLoss, match=r"step 5: loss = nan.*learning_rate"):
        train(config, tmp_path, objective=objective, classifier=True, data=broken)
    assert max(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == 4


@pytest.mark.longer
def test_the_callers_weights_survive_the_fit(bigram, groups, lone_mesh, equal):
    """The step donates its state; a float32 tree already in place must not be donated with it."""
    compute, model = bigram()
    placed = jax.device_put(model.trained, spec_shardings(model.specs, lone_mesh))
    before = jax.device_get(placed)
    plan = make_plan(groups, BASE, lone_mesh)
    runs = [fit(dataclasses.replace(model, trained=placed), Sft(compute), plan, BASE, lone_mesh) for _ in range(2)]
    equal(placed, before)
    equal(runs[0].params, runs[1].params)


@pytest.mark.longer
@pytest.mark.parametrize("consume", [False, True])
def test_a_fit_that_may_consume_its_start_holds_no_copy_of_it(consume, bigram, groups, lone_mesh, tmp_path, equal,
                                                              watch_arrays):
    compute, model = bigram()
    config = dataclasses.replace(BASE, save_steps=4)
    plan = make_plan(groups, config, lone_mesh)
    start, size = jax.device_get(model.trained), sum(x.nbytes for x in jax.tree.leaves(model.trained))

    def run(folder=None, **options):
        placed = jax.device_put(start, spec_shardings(model.specs, lone_mesh))
        result = fit(dataclasses.replace(model, trained=placed), Sft(compute), plan, config, lone_mesh, folder=folder,
                     **options)
        assert all(x.is_deleted() == options.get("consume", False) for x in jax.tree.leaves(placed))
        return result

    whole, grown = run(), []
    made = watch_arrays()
    run(report=lambda *_: grown.append(sum(x.nbytes for x in made()) / size), consume=consume)
    assert max(grown) == pytest.approx(3 if consume else 4, abs=0.1)  # weights and two moments, or what they were too
    with pytest.raises(Killed):
        run(tmp_path, report=dies_at(5), consume=consume)
    equal(run(tmp_path, consume=consume).params, whole.params)


@pytest.mark.longer
@pytest.mark.parametrize("on_host", [("score",), ("embed", "final_norm", "score"), ()], ids=str)
@pytest.mark.parametrize("consume", [False, True])
def test_a_start_with_weights_on_the_host_resumes_as_it_began(on_host, consume, bigram, groups, lone_mesh, tmp_path,
                                                              equal):
    """A fresh scalar head is a numpy array among device arrays; whoever made it keeps it."""
    compute, model = bigram(classifier=True)
    config = dataclasses.replace(BASE, save_steps=4)
    plan = make_plan(groups, config, lone_mesh)

    def run(folder=None, **options):
        start = {name: jax.device_get(x) if name in on_host else jnp.copy(x) for name, x in model.trained.items()}
        result = fit(dataclasses.replace(model, trained=start), BradleyTerry(compute), plan, config, lone_mesh,
                     folder=folder, consume=consume, **options)
        assert all(x.is_deleted() == consume for x in start.values() if isinstance(x, jax.Array))
        return result

    whole = run()
    with pytest.raises(Killed):
        run(tmp_path, report=dies_at(6))
    equal(run(tmp_path).params, whole.params)


def test_training_fits(train):
    log = train(dataclasses.replace(BASE, num_train_epochs=10.0, warmup_steps=0)).log_history
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]


@pytest.mark.longer
@pytest.mark.parametrize(("objective", "classifier", "own"), [
    (Sft, False, {"entropy", "mean_token_accuracy"}),
    (BradleyTerry, True, {"accuracy", "margin", "mean_reward", "max_reward", "min_reward"}),
    (lambda c: Preference(c, PreferenceLoss()), False,
     {"entropy", "mean_token_accuracy", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
      "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected"}),
])
def test_metrics_carry_trls_names_and_eval_metrics_the_prefix(objective, classifier, own, train, groups):
    config = dataclasses.replace(BASE, max_steps=2, logging_steps=2, num_train_epochs=1.0)
    log = train(config, objective=objective, classifier=classifier, eval_groups=groups[:4]).log_history
    ours = {"step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens", "tokens_per_second"}
    assert set(log[0]) == own | ours
    assert set(log[1]) == {"step", "epoch", "eval_loss"} | {f"eval_{name}" for name in own}


def test_a_log_line_averages_the_steps_since_the_last_one(train):
    each = train(dataclasses.replace(BASE, logging_steps=1)).log_history
    some = train(dataclasses.replace(BASE, logging_steps=5)).log_history
    assert [row["step"] for row in some] == [5, 10, 12]
    for row, steps in zip(some, (each[:5], each[5:10], each[10:]), strict=True):
        for name in ("loss", "grad_norm", "entropy", "num_tokens"):
            assert row[name] == pytest.approx(np.mean([s[name] for s in steps]), rel=1e-6)
        assert row["learning_rate"] == steps[-1]["learning_rate"]
        assert row["epoch"] == pytest.approx(row["step"] / 6, abs=1e-4)


@pytest.mark.longer
def test_evaluation_equals_the_loss_of_one_batch_of_everything(train, groups):
    """Ragged batches, several rows: eval_loss before training is the training loss of a single whole batch."""
    frozen = dataclasses.replace(BASE, learning_rate=1e-30, warmup_steps=0, max_steps=1, logging_steps=1)
    at_once = train(dataclasses.replace(frozen, train_batch_size=16)).log_history[0]
    evaluated = train(frozen, eval_groups=groups).log_history[1]
    for name in ("loss", "entropy", "mean_token_accuracy"):
        assert evaluated[f"eval_{name}"] == pytest.approx(at_once[name], rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_evaluation_computes_in_the_dtype_that_training_does(frozen, bigram, groups, lone_mesh):
    seen = {}

    class Watched(Sft):
        def outputs(self, params, batch):
            seen.setdefault(batch.tokens.shape, set()).update(str(x.dtype) for x in jax.tree.leaves(params))
            return super().outputs(params, batch)

    compute, model = bigram()
    if frozen:  # only the embedding is trained
        (trained, rest), (specs, other) = ([{"embed": tree["embed"]}, {n: tree[n] for n in tree if n != "embed"}]
                                           for tree in (model.trained, model.specs))
        model = Model(trained, specs, rest, other, lambda trained, frozen: trained | frozen)
    config = dataclasses.replace(BASE, dtype="bfloat16", max_steps=1, num_train_epochs=1.0)
    log = fit(model, Watched(compute), make_plan(groups, config, lone_mesh), config, lone_mesh,
              eval_groups=groups).log_history
    assert set.union(*seen.values()) == {"bfloat16"}
    assert len(seen) == 2  # rows of training and rows of evaluation
    assert math.isfinite(log[-1]["eval_loss"])


@pytest.mark.longer
def test_dpo_starts_at_ln_2_with_no_reward(tiny, weights, groups, lone_mesh, tmp_path):
    config = tiny("qwen3")
    params, compute = weights(config), Compute(config)
    train = dataclasses.replace(BASE, max_steps=1, logging_steps=1)
    reference = reference_logps(compute, params, groups, lone_mesh, dtype=jnp.float32, cache=tmp_path, rows=2)
    plan = make_plan(groups, train, lone_mesh, reference=reference)
    log = fit(Model(params, param_specs(config)), Preference(compute, PreferenceLoss()), plan, train, lone_mesh,
              eval_groups=groups, eval_reference=reference).log_history
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert log[0][name] == pytest.approx(0.0, abs=1e-6)
    assert log[0]["grad_norm"] > 0.01


@pytest.mark.longer
def test_equal_rewards_are_no_win(groups, lone_mesh, bigram):
    """TRL's strict comparison: a policy that is its own reference has accuracy 0, not 1 and not a half."""
    compute, model = bigram()
    batch = jax.tree.map(lambda x: x[0], make_plan(groups, BASE, lone_mesh).batch(0)[0])
    objective = Preference(compute, PreferenceLoss())
    outputs = objective.outputs(model.trained, batch)
    won, of = objective.terms(outputs, batch.replace(reference_logps=outputs[0]))[1].means["rewards/accuracies"]
    assert (won, of) == (0.0, batch.pair_mask.sum())


KNOBS = {
    "train_batch_size": 4, "num_train_epochs": 1.0, "max_steps": 5, "learning_rate": 0.01, "warmup_steps": 5,
    "lr_scheduler_type": "linear", "weight_decay": 0.5, "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 0.1,
    "max_grad_norm": 0.1, "dtype": "bfloat16", "seed": 1, "mu_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def base_run(bigram, lone_mesh, groups):
    compute, model = bigram()
    return fit(model, Sft(compute), make_plan(groups, BASE, lone_mesh), BASE, lone_mesh)


@pytest.mark.longer
@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_of_optimisation_changes_the_trained_weights(knob, train, base_run):
    changed = train(dataclasses.replace(BASE, **{knob: KNOBS[knob]}))
    assert np.abs(changed.params["embed"] - base_run.params["embed"]).max() > 1e-6


@pytest.mark.parametrize("classifier", [False, True], ids=["sft", "reward"])
def test_a_first_moment_in_bfloat16_learns_as_fast(classifier, train):
    """The loss curves lie within a hundredth of the fall, which is most of the loss."""
    config = dataclasses.replace(BASE, num_train_epochs=8.0, logging_steps=1)
    objective = BradleyTerry if classifier else Sft

    def losses(dtype):
        result = train(dataclasses.replace(config, mu_dtype=dtype), objective=objective, classifier=classifier)
        return [row["loss"] for row in result.log_history if "loss" in row]

    narrow, wide = losses("bfloat16"), losses("float32")
    assert wide[-1] < 0.7 * wide[0]
    assert narrow != wide
    np.testing.assert_allclose(narrow, wide, atol=0.01 * (wide[0] - wide[-1]))


def test_the_floor_of_the_cosine_changes_the_trained_weights(train):
    floors = [train(dataclasses.replace(BASE, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=rate))
              for rate in (0.1, 0.6)]
    assert np.abs(floors[0].params["embed"] - floors[1].params["embed"]).max() > 1e-6


@pytest.mark.parametrize(("knob", "value"), [("micro_rows", 2), ("row_length", 48), ("row_length", None)])
def test_a_knob_of_packing_changes_the_compiled_shapes_and_not_the_result(knob, value, train, groups, lone_mesh,
                                                                         base_run):
    config = dataclasses.replace(BASE, **{knob: value})
    shape, base = (make_plan(groups, c, lone_mesh).batch(0)[0].tokens.shape for c in (config, BASE))
    assert shape != base
    changed = train(config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), changed.params, base_run.params)


@pytest.mark.longer
@pytest.mark.parametrize(("knob", "value"), [("remat", "full"), ("remat", "dots"), ("logits_chunk", 8),
                                              ("attn_implementation", "xla")])
def test_a_knob_of_computation_changes_the_program(knob, value, tiny, groups, lone_mesh):
    long_rows = dataclasses.replace(BASE, row_length=64)
    batch = jax.tree.map(lambda x: x[0], make_plan(groups, long_rows, lone_mesh).batch(0)[0])

    def program(config):
        objective = Sft(compute_of(tiny(), config, lone_mesh))
        params = jax.eval_shape(lambda: init_params(jax.random.key(0), tiny()))
        loss = jax.grad(lambda p: objective.terms(objective.outputs(p, batch), batch)[0][0].values.sum())
        return jax.jit(loss).lower(params).as_text()

    assert program(dataclasses.replace(BASE, **{knob: value})) != program(BASE)


@pytest.mark.longer
def test_save_steps_and_save_total_limit_say_which_checkpoints_are_there(train, tmp_path):
    def kept(name, **changes):
        train(dataclasses.replace(BASE, **changes), tmp_path / name)
        return sorted(int(p.name) for p in (tmp_path / name).iterdir() if p.name.isdigit())

    assert kept("end") == [12]
    assert kept("some", save_steps=5) == [10, 12]
    assert kept("more", save_steps=5, save_total_limit=3) == [5, 10, 12]


def test_eval_steps_and_logging_steps_say_which_lines_are_there(train, groups):
    def lines(**changes):
        log = train(dataclasses.replace(BASE, **changes), eval_groups=groups[:2]).log_history
        return [row["step"] for row in log if "loss" in row], [row["step"] for row in log if "eval_loss" in row]

    assert lines() == ([4, 8, 12], [12])
    assert lines(eval_steps=5, logging_steps=7) == ([7, 12], [5, 10, 12])


def test_every_knob_is_tested():
    tested = set(KNOBS) | {"min_lr_rate", "micro_rows", "row_length", "remat", "logits_chunk", "save_steps",
                           "attn_implementation", "save_total_limit", "eval_steps", "logging_steps"}
    assert {f.name for f in dataclasses.fields(TrainConfig)} == tested


@pytest.mark.slow
def test_the_number_of_programs_depends_neither_on_the_data_nor_on_how_often_is_evaluated(train, make_groups, tmp_path):
    def programs(name, count, **changes):
        jax.clear_caches()
        data = make_groups(count, 2, k=(2, 2), prompt=(3, 3), response=(4, 4), holes=False)
        config = dataclasses.replace(BASE, num_train_epochs=1.0, **changes)
        return train(config, tmp_path / name, data=data, eval_groups=data[: count // 4]).compiles

    few = programs("few", 20)
    assert programs("often", 200, eval_steps=10, save_steps=10, logging_steps=1) == few
    assert few < 40


SAME = {"learning_rate": 0.01, "max_steps": 7, "warmup_steps": 0, "lr_scheduler_type": "linear", "seed": 3,
        "logging_steps": 1}


def step_compiles(run):
    """(what it returns, how often the training step was compiled)."""
    lines = []
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("jax._src.dispatch"), "handle", lambda line: lines.append(line.getMessage()))
        found = run()
    return found, sum("XLA compilation of jit(step)" in line for line in lines)


@pytest.mark.parametrize(("change", "compiles"), [
    (SAME, 0), ({"weight_decay": 0.1}, 1), ({"max_grad_norm": 0.0}, 1), ({"adam_beta1": 0.5}, 1),
])
def test_trainings_of_one_kind_share_their_step(train, make_groups, change, compiles):
    jax.clear_caches()
    first, second = make_groups(16, 1), make_groups(13, 2)
    changed = dataclasses.replace(BASE, **change)
    alone, count = step_compiles(lambda: train(changed, data=second))
    assert count == 1
    jax.clear_caches()
    assert step_compiles(lambda: train(data=first))[1] == 1
    shared, count = step_compiles(lambda: train(changed, data=second))
    assert count == compiles
    jax.tree.map(np.testing.assert_array_equal, shared.params, alone.params)
    assert timeless(shared.log_history) == timeless(alone.log_history)


def test_another_loss_takes_a_step_of_its_own(train, make_groups, make_reference):
    jax.clear_caches()
    data = make_groups(16, 1)
    reference = make_reference(data)

    def run(beta):
        return step_compiles(lambda: train(data=data, reference=reference, objective=lambda compute: Preference(
            compute, PreferenceLoss(beta=beta))))[1]

    assert [run(0.1), run(0.3), run(0.1)] == [1, 1, 0]


def test_a_loss_of_the_users_that_has_changed_is_compiled_anew(
        train, make_groups, make_reference, tmp_path, monkeypatch):
    jax.clear_caches()
    data = make_groups(16, 1)
    reference = make_reference(data)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both versions are written within a second

    def losses_of(constant):
        (tmp_path / "changing_loss.py").write_text(
            f"def loss(pair, beta):\n    return {constant} + beta * (pair.rejected - pair.chosen)\n")
        sys.modules.pop("changing_loss", None)
        importlib.invalidate_caches()
        found = train(data=data, reference=reference, eval_groups=data[:4], eval_reference=reference[:4],
                      objective=lambda compute: Preference(compute, PreferenceLoss("changing_loss:loss")))
        return [row.get("loss", row.get("eval_loss")) for row in found.log_history]

    before, after = losses_of(0.0), losses_of(100.0)
    np.testing.assert_allclose(np.array(after) - before, 100.0, rtol=1e-4)


def test_each_shape_of_batches_has_a_step_of_its_own_that_is_let_go_by_itself(train, make_groups):
    _train_program.cache_clear()
    for row_length in (24, 32, 24):
        train(dataclasses.replace(BASE, row_length=row_length, max_steps=1), data=make_groups(16, 1))
    assert (_train_program.cache_info().currsize, _train_program.cache_info().hits) == (2, 1)


def test_trainer_state_is_huggingfaces(train, groups, lone_mesh, tmp_path):
    result = train()
    write_trainer_state(tmp_path, result, make_plan(groups, BASE, lone_mesh))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"], state["epoch"]) == (12, 12, 2.0)
    assert state["log_history"] == result.log_history


def test_the_speed_of_training_leaves_out_what_stands_between_steps(train, groups, monkeypatch):
    """By a clock on which a step takes a second and an evaluation takes a hundred."""
    module, now = importlib.import_module("rlhf_jax.training.fit"), [0.0]

    def spend(seconds):
        now[0] += seconds

    def slow(*args, **kwargs):
        evaluate = make_evaluator(*args, **kwargs)
        return lambda *weights: spend(100.0) or evaluate(*weights)

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(module, "make_evaluator", slow)
    config = dataclasses.replace(BASE, max_steps=6, logging_steps=1, eval_steps=2, num_train_epochs=1.0)
    log = train(config, eval_groups=groups[:4], report=lambda *_: spend(1.0)).log_history
    steps = [row for row in log if "loss" in row]
    assert (len(steps), now[0]) == (6, 306.0)
    assert [row["tokens_per_second"] for row in steps] == pytest.approx([row["num_tokens"] for row in steps])
