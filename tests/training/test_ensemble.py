"""The objective of an ensemble: every member's own Bradley-Terry loss, weighted by its draws; any batch, any device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import losses
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.ensemble import Ensemble, draw_name
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import BradleyTerry, Compute
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.step import init_state, make_train_step, state_shardings

DRAWS = np.random.default_rng(3).poisson(1.0, (8, 2)).astype(float)


@pytest.fixture(scope="module")
def groups(make_groups):
    made = make_groups(8, 2, prompt=(4, 6), response=(3, 6))
    return [dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={draw_name(k): some[k] for k in range(2)}) for r in group.responses))
        for group, some in zip(made, DRAWS, strict=True)]


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(num_labels=2, layers=1)


def terms_of(objective, config, groups, mesh):
    plan = make_plan(groups, TrainConfig(train_batch_size=8, micro_rows=8, row_length=24), mesh, objective=objective)
    (batch, *_), params = plan.batch(0), init_params(jax.random.key(0), config)
    batch = jax.tree.map(lambda x: jnp.asarray(x)[0], batch)
    outputs = objective.outputs(params, batch)
    return objective.terms(outputs, batch)


@pytest.mark.longer
def test_each_member_weighs_its_own_draws(config, groups, lone_mesh):
    compute = Compute(config, mesh=lone_mesh)
    (ranking, centering), _ = terms_of(Ensemble(compute, 2), config, groups, lone_mesh)
    sums = np.sort(np.asarray(ranking.weights[np.asarray(ranking.weights).any(axis=1)]), axis=0)
    np.testing.assert_array_equal(np.asarray(ranking.weights).sum(axis=0), DRAWS.sum(axis=0))
    assert centering.coefficient == 0.01
    assert sums.shape[1] == 2


@pytest.mark.longer
def test_one_member_without_draws_is_a_bradley_terry_model(tiny, groups, lone_mesh):
    """The same terms, and the same gradient, as the objective of kind bradley_terry."""
    config = tiny(num_labels=1, layers=1)
    compute = Compute(config, mesh=lone_mesh)
    ours, _ = terms_of(Ensemble(compute, 1, bootstrap=False), config, groups, lone_mesh)
    theirs, _ = terms_of(BradleyTerry(compute, center_rewards_coefficient=0.01), config, groups, lone_mesh)
    assert [t.name for t in ours] == [t.name for t in theirs]
    np.testing.assert_allclose(losses.weighted_total(ours), losses.weighted_total(theirs), rtol=1e-6)


@pytest.mark.longer
def test_draws_of_one_change_nothing(config, groups, lone_mesh):
    ones = [dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={draw_name(k): 1.0 for k in range(2)}) for r in group.responses))
        for group in groups]
    compute = Compute(config, mesh=lone_mesh)
    drawn, plain, weighed = (
        losses.weighted_total(terms_of(Ensemble(compute, 2, bootstrap), config, some, lone_mesh)[0])
        for some, bootstrap in ((ones, True), (groups, False), (groups, True)))
    np.testing.assert_allclose(drawn, plain, rtol=1e-6)
    assert abs(float(weighed) - float(plain)) > 1e-4


def one_step(config, groups, mesh, micro_rows):
    train = TrainConfig(train_batch_size=8, micro_rows=micro_rows, row_length=24, learning_rate=1e-2, warmup_steps=0,
                        max_steps=1, max_grad_norm=0)
    objective = Ensemble(Compute(config, mesh=mesh), 2)
    plan = make_plan(groups, train, mesh, objective=objective)
    optimizer = make_optimizer(train, param_specs(config))
    params = init_params(jax.random.key(0), config)
    shardings = state_shardings(optimizer, params, param_shardings(config, mesh), mesh)
    step = make_train_step(objective, optimizer, mesh, shardings)
    with jax.default_matmul_precision("highest"):
        batch, count = plan.batch(0)
        state = init_state(optimizer, params, shardings)
        return jax.device_get(step(state, {}, batch, np.int32(count), np.float32(train.learning_rate))[1])


@pytest.mark.longer
def test_eight_devices_and_any_micro_batches_are_one(config, groups, lone_mesh):
    one = one_step(config, groups, lone_mesh, 8)
    for other in (one_step(config, groups, lone_mesh, 1), one_step(config, groups, make_mesh(MeshConfig(fsdp=8)), 1)):
        assert {"disagreement", "accuracy", "accuracy_of_a_member"} <= one.keys() == other.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=2e-5, abs=1e-6), name
