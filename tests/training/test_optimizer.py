import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.training import Schedule, TrainConfig
from rlhf_jax.models import init_lora, init_params, param_specs
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.training.optimizer import make_optimizer, make_schedule, warmup_steps

STEPS, WARM = 40, 10


def cosine(step, low=0.0):
    return low + (1 - low) * (1 + math.cos(math.pi * (step - WARM) / (STEPS - WARM))) / 2


FORMS = {
    "cosine": cosine,
    "cosine_with_min_lr": lambda step: cosine(step, 0.25),
    "linear": lambda step: 1 - (step - WARM) / (STEPS - WARM),
    "constant_with_warmup": lambda step: 1.0,
    "inverse_sqrt": lambda step: math.sqrt(WARM / step),
}


def schedule_of(kind, steps=STEPS, **changes):
    low = {"min_lr_rate": 0.25} if kind == "cosine_with_min_lr" else {}
    return make_schedule(TrainConfig(learning_rate=0.3, lr_scheduler_type=kind, **low | changes), steps)


def rates(schedule, steps=STEPS):
    return np.array([schedule(step) for step in range(steps)])


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("warmup", [WARM, WARM / STEPS])
def test_the_rate_rises_from_zero_to_the_peak_and_then_follows_the_closed_form(kind, warmup):
    expected = [step / WARM if step < WARM else FORMS[kind](step) for step in range(STEPS)]
    np.testing.assert_allclose(rates(schedule_of(kind, warmup_steps=warmup)), 0.3 * np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("kind", FORMS)
def test_the_peak_is_taken_once(kind):
    found = rates(schedule_of(kind, warmup_steps=WARM))
    if kind != "constant_with_warmup":
        assert [step for step, rate in enumerate(found) if rate >= 0.3 * (1 - 1e-6)] == [WARM]


@pytest.mark.parametrize("kind", [*FORMS, "constant"])
def test_without_warmup_the_first_step_is_at_the_peak(kind):
    assert float(schedule_of(kind, warmup_steps=0)(0)) == pytest.approx(0.3)


def test_without_warmup_the_inverse_root_is_nearly_flat():
    np.testing.assert_allclose(rates(schedule_of("inverse_sqrt", warmup_steps=0)),
                               [0.3 * math.sqrt(10_000 / (step + 10_000)) for step in range(STEPS)], rtol=1e-6)


@pytest.mark.parametrize("warmup", [1, 3.5, WARM])
def test_constant_knows_no_warmup(warmup):
    with pytest.raises(ValueError, match=rf"warmup_steps = {warmup:g} has no effect .*constant_with_warmup"):
        schedule_of("constant", warmup_steps=warmup)


def test_one_warmup_step_and_warmup_longer_than_the_run():
    one = schedule_of("linear", warmup_steps=1)
    np.testing.assert_allclose([one(0), one(1), one(STEPS - 1)], [0, 0.3, 0.3 / 39], rtol=1e-5)
    long = schedule_of("linear", warmup_steps=100)
    np.testing.assert_allclose([long(0), long(1), long(STEPS - 1)], [0, 0.003, 0.117], rtol=1e-5)


@pytest.mark.parametrize(("warmup", "steps", "count"), [
    (0.03, 16, 1), (0.1, 11, 2), (0.5, 3, 2), (0.0, 16, 0), (0.25, 40, 10), (1, 16, 1), (7.9, 16, 7),
    (0.03, 1, 0), (0.5, 1, 0), (0.999, 10, 9), (0.6, 2, 1),
])
def test_a_share_of_the_steps_is_rounded_up_but_for_the_last_and_a_number_of_steps_down(warmup, steps, count):
    assert warmup_steps(TrainConfig(warmup_steps=warmup), steps) == count


@pytest.mark.torch
@pytest.mark.parametrize("kind", get_args(Schedule))
@pytest.mark.parametrize("steps", [1, 16, 40, 1000])
@pytest.mark.parametrize("warmup", [0, 1, 3, 0.03, 0.1, 0.5, 40, 100])
def test_every_step_has_the_rate_of_transformers(kind, steps, warmup):
    torch = pytest.importorskip("torch")
    from transformers import TrainingArguments, get_scheduler

    arguments = TrainingArguments(output_dir="unused", warmup_steps=warmup, use_cpu=True, report_to=[])
    if kind == "constant":
        warmup = 0  # it knows none, and we refuse one
    if steps == 1 and 0 < warmup < 1:
        pytest.skip("their lone step has a rate of 0, ours does not")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = get_scheduler(kind, optimizer, arguments.get_warmup_steps(steps), steps, scheduler_specific_kwargs=(
        {"min_lr_rate": 0.25} if kind == "cosine_with_min_lr" else None))
    expected = []
    for _ in range(steps):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    ours = schedule_of(kind, steps, warmup_steps=warmup)
    np.testing.assert_allclose(rates(ours, steps), expected, rtol=1e-5, atol=1e-7)


def decay_of(specs, params):
    """Share of each weight that one step without gradient takes away."""
    config = TrainConfig(weight_decay=0.5, learning_rate=0.1)
    optimizer = make_optimizer(config, specs)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    return {jax.tree_util.keystr(path): config.learning_rate * float(x.ravel()[0])
            for path, x in jax.tree_util.tree_leaves_with_path(updates)}


@pytest.mark.longer
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weight_decay_skips_norms_and_biases_and_nothing_else(family, tiny):
    config = tiny(family)
    found = decay_of(param_specs(config), init_params(jax.random.key(0), config))
    for name, taken in found.items():
        assert taken == pytest.approx(0.0 if "norm" in name or "bias" in name else 0.05), name
    assert sum("norm" in name for name in found) == (5 if family == "qwen3" else 3)


@pytest.mark.slow
def test_weight_decay_reaches_heads_and_both_halves_of_an_adapter(tiny):
    config, lora = tiny(num_labels=1), LoraConfig(use_peft=True, lora_r=2)
    specs = {"lora": lora_specs(config, lora), "score": param_specs(config)["score"]}
    params = {"lora": init_lora(jax.random.key(0), config, lora), "score": jnp.zeros(specs["score"].shape)}
    found = decay_of(specs, params)
    assert len(found) == 15
    np.testing.assert_allclose(list(found.values()), 0.05, rtol=1e-6)


def adamw_by_hand(config, grads, p):
    mean = square = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        norm = np.sqrt((g * g).sum())
        g = g if not config.max_grad_norm or norm < config.max_grad_norm else g * config.max_grad_norm / norm
        mean = config.adam_beta1 * mean + (1 - config.adam_beta1) * g
        square = config.adam_beta2 * square + (1 - config.adam_beta2) * g * g
        fix = 1 - config.adam_beta1**t, 1 - config.adam_beta2**t
        step = mean / fix[0] / (np.sqrt(square / fix[1]) + config.adam_epsilon)
        p = p - config.learning_rate * (step + config.weight_decay * p)
    return p


@pytest.mark.parametrize("changes", [{}, {"adam_beta1": 0.5}, {"adam_beta2": 0.9}, {"adam_epsilon": 0.1},
                                     {"weight_decay": 0.3}, {"max_grad_norm": 0.0}, {"max_grad_norm": 3.0}])
def test_updates_are_clipped_adamw_by_hand(changes):
    config = dataclasses.replace(TrainConfig(learning_rate=0.1), **changes)
    specs = {"w": param_specs_of_a_matrix()}
    rng = np.random.default_rng(0)
    grads, p = rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 2))
    optimizer = make_optimizer(config, specs)
    params = {"w": jnp.asarray(p, jnp.float32)}
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = {"w": params["w"] - config.learning_rate * updates["w"]}
    np.testing.assert_allclose(params["w"], adamw_by_hand(config, grads, p), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_moment_alone_is_kept_in_its_dtype(dtype):
    specs, params = {"w": param_specs_of_a_matrix()}, {"w": jnp.ones((3, 2))}
    optimizer = make_optimizer(TrainConfig(mu_dtype=dtype), specs)
    updates, state = optimizer.update({"w": jnp.ones((3, 2))}, optimizer.init(params), params)
    moments = [leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.shape == (3, 2)]
    assert moments == [dtype, "float32"]
    assert updates["w"].dtype == jnp.float32


def param_specs_of_a_matrix():
    from rlhf_jax.models.params import ParamSpec

    return ParamSpec((3, 2), ("embed", "mlp"), "normal", "w")


@pytest.mark.parametrize("bad", [
    {"train_batch_size": 0}, {"micro_rows": 0}, {"logits_chunk": -1}, {"logging_steps": 0}, {"save_total_limit": 0},
    {"learning_rate": 0.0}, {"num_train_epochs": -1.0}, {"max_steps": 0}, {"eval_steps": 0}, {"save_steps": -5},
    {"row_length": 0}, {"warmup_steps": -0.1}, {"weight_decay": -1.0}, {"max_grad_norm": -1.0}, {"min_lr_rate": 0.2},
])
def test_values_that_cannot_work_are_refused_by_name(bad):
    name, = bad
    with pytest.raises(ValueError, match=f"{name} = {bad[name]}"):
        TrainConfig(**bad)
