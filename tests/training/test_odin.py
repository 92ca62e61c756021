"""ODIN: the loss of a pair does not depend on its batch, correlations are the global batch's, quality loses length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import losses
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.evaluate import make_evaluator
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import Compute
from rlhf_jax.training.odin import LENGTH, Collected, Odin
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.step import init_state, make_train_step, state_shardings


@pytest.fixture(scope="module")
def groups(make_groups):
    """Pairs whose responses carry a length."""
    rng = np.random.default_rng(1)
    return [dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={LENGTH: float(rng.integers(5, 60))}) for r in group.responses))
        for group in make_groups(16, 3, prompt=(4, 6), response=(3, 6))]


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(num_labels=2, layers=1)


def collected(chosen, rejected, outputs, lengths, overlap=0.25):
    return Collected(*(jnp.asarray(x, jnp.float32) for x in (chosen, rejected)), jnp.ones(len(chosen), bool),
                     jnp.asarray(outputs, jnp.float32), jnp.asarray(lengths, jnp.float32),
                     jnp.ones(len(lengths), bool), jnp.asarray([overlap], jnp.float32))


def total(objective, c):
    return float(losses.weighted_total(objective.collected_terms(c)))


def test_a_batch_by_hand():
    c = collected([[1.0, 0.5]], [[0.25, 0.25]], [[2.0, 1.0], [4.0, -2.0], [6.0, 1.0]], [1, 2, 3])
    ranking = np.log1p(np.exp(-1.0))
    assert total(Odin(None), c) == pytest.approx(ranking + 0.25, rel=1e-6)  # r0 follows the length, r1 does not
    swapped = c._replace(outputs=c.outputs[:, ::-1])
    assert total(Odin(None), swapped) == pytest.approx(ranking + 2.0 + 0.25, rel=1e-6)
    assert total(Odin(None, 0.5, 0.0), swapped) == pytest.approx(ranking + 1.0, rel=1e-6)


@pytest.mark.parametrize("copies", [16, 256])
def test_copies_of_a_pair_have_the_loss_of_one(copies):
    one = collected([[1.0, 0.5]], [[0.25, 0.25]], [[1.0, 0.5], [0.25, 0.25]], [7, 4])
    many = collected([[1.0, 0.5]] * copies, [[0.25, 0.25]] * copies, [[1.0, 0.5], [0.25, 0.25]] * copies,
                     [7, 4] * copies)
    assert total(Odin(None), many) == pytest.approx(total(Odin(None), one), rel=1e-5)


def one_step(config, groups, mesh, micro_rows):
    train = TrainConfig(train_batch_size=16, micro_rows=micro_rows, row_length=24, learning_rate=1e-2, warmup_steps=0,
                        max_steps=1, max_grad_norm=0)
    objective = Odin(Compute(config, mesh=mesh))
    plan = make_plan(groups, train, mesh, objective=objective)
    assert plan.accumulation == 1
    optimizer = make_optimizer(train, param_specs(config))
    params = init_params(jax.random.key(0), config)
    shardings = state_shardings(optimizer, params, param_shardings(config, mesh), mesh)
    step = make_train_step(objective, optimizer, mesh, shardings)
    with jax.default_matmul_precision("highest"):
        state = init_state(optimizer, params, shardings)
        return jax.device_get(step(state, {}, plan.batch(0)[0], np.int32(1), np.float32(train.learning_rate))[1])


@pytest.mark.longer
def test_eight_devices_are_one(config, groups, lone_mesh):
    one = one_step(config, groups, lone_mesh, 16)
    eight = one_step(config, groups, make_mesh(MeshConfig(data=2, fsdp=4)), 2)
    assert one.keys() == eight.keys()
    assert {"correlation/length_head", "correlation/quality_head", "orthogonality", "accuracy"} <= one.keys()
    for name in one:
        assert eight[name] == pytest.approx(one[name], rel=2e-5, abs=1e-6), name


def test_evaluation_is_over_all_rows_at_once(config, groups, lone_mesh):
    """In batches of two rows and in one: the same loss, and the correlations of all responses."""
    objective = Odin(Compute(config, mesh=lone_mesh))
    params = init_params(jax.random.key(0), config)
    found = []
    for micro_rows in (2, 16):
        train = TrainConfig(train_batch_size=16, micro_rows=micro_rows, row_length=24)
        plan = make_plan(groups, train, lone_mesh, objective=objective)
        found.append(make_evaluator(objective, groups, plan, lone_mesh)(params, {}))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


@pytest.mark.longer
def test_the_quality_head_loses_the_length_that_labels_have_a_taste_for():
    """Linear rewards; raters like length. A prototype: 0.570 -> -0.025 with the length, 0.808 -> 0.992 with quality."""
    rng = np.random.default_rng(0)
    width, pairs = 32, 4000
    x = rng.normal(size=(2 * pairs, width)).astype(np.float32)
    quality, length = x @ np.eye(width)[0], x @ np.eye(width)[1]
    liked = 2.0 * quality + 1.4 * length
    first = rng.random(pairs) < 1 / (1 + np.exp(-(liked[::2] - liked[1::2])))
    chosen = np.where(first, 0, 1) + 2 * np.arange(pairs)
    rejected = 2 * np.arange(pairs) + 1 - np.where(first, 0, 1)
    words = (20 * length + 100).astype(np.float32)

    def fitted(loss, heads):
        weights, optimizer = jnp.asarray(rng.normal(size=(heads, width)) * 0.01, jnp.float32), optax.adam(0.05)

        @jax.jit
        def step(weights, state):
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return optax.apply_updates(weights, updates), state

        state = optimizer.init(weights)
        for _ in range(150):
            weights, state = step(weights, state)
        return np.asarray(weights) @ x.T

    def plain(w):
        r = w @ x.T
        return jnp.mean(losses.bradley_terry(r[0, chosen], r[0, rejected]))

    def odin(w):
        r = (w @ x.T).T
        c = Collected(r[chosen], r[rejected], jnp.ones(pairs, bool), r, jnp.asarray(words),
                      jnp.ones(2 * pairs, bool), losses.odin_orthogonality(w)[None])
        return losses.weighted_total(Odin(None).collected_terms(c))

    before, (length_head, after) = fitted(plain, 1)[0], fitted(odin, 2)
    assert 0.5 < correlation(before, words) < 0.65
    assert abs(correlation(after, words)) < 0.05
    assert correlation(length_head, words) > 0.98
    assert correlation(before, quality) < 0.9
    assert correlation(after, quality) > 0.98
