"""The regression: each rating counts the same, holes pull nowhere, and neither rows nor devices change anything."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.data.packing import pack, pack_rows, row_shape
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import Compute
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.regression import Regression
from rlhf_jax.training.step import init_state, make_train_step, state_shardings

NAMES = ("helpful", "long", "kind")


def rated(groups, share=0.6):
    """Answers with a rating of each name at random, often none."""
    rng = np.random.default_rng(1)
    return [dataclasses.replace(group, responses=tuple(
        dataclasses.replace(r, scores={name: float(rng.random()) for name in NAMES if rng.random() < share})
        for r in group.responses)) for group in groups]


@pytest.fixture(scope="module")
def groups(make_groups):
    return rated(make_groups(16, 3, k=(1, 3), prompt=(4, 6), response=(3, 6), pairs="none"))


@pytest.fixture(scope="module")
def config(tiny):
    return tiny(num_labels=3, labels=NAMES, layers=1)


@pytest.mark.longer
def test_the_loss_is_the_mean_over_the_ratings_that_there_are(config, groups, lone_mesh, weights, plain, exact_matmul):
    some = groups[:4]
    params, objective = weights(config), Regression(Compute(config, mesh=lone_mesh), NAMES)
    rows = pack_rows([48] * len(some), 96)
    batch = pack(some, rows, row_shape(some, rows, 96, NAMES), 4)
    (term,), metrics = objective.terms(objective.outputs(params, batch), batch)
    expected = {name: [] for name in NAMES}
    for group in some:
        for response in group.responses:
            state = plain(params, config, np.concatenate([group.prompt_ids, response.ids]))[-1]
            for name, head in zip(NAMES, np.asarray(params["score"]), strict=True):
                if name in response.scores:
                    expected[name].append((float(state @ head) - response.scores[name]) ** 2)
    everything = np.concatenate(list(expected.values()))
    assert len(everything) < 3 * sum(len(group.responses) for group in some)
    found = float((term.values * term.weights).sum() / term.weights.sum())
    assert found == pytest.approx(everything.mean(), rel=1e-5)
    for name, errors in expected.items():
        total, weight = metrics.means[f"mse/{name}"]
        assert (float(weight), float(total)) == (len(errors), pytest.approx(sum(errors), rel=1e-5))


def one_step(config, groups, mesh, micro_rows):
    train = TrainConfig(train_batch_size=16, micro_rows=micro_rows, row_length=48, learning_rate=1e-2, warmup_steps=0,
                        max_steps=1, max_grad_norm=0)
    objective = Regression(Compute(config, mesh=mesh), NAMES)
    plan = make_plan(groups, train, mesh, objective=objective)
    optimizer = make_optimizer(train, param_specs(config))
    params = init_params(jax.random.key(0), config)
    shardings = state_shardings(optimizer, params, param_shardings(config, mesh), mesh)
    step = make_train_step(objective, optimizer, mesh, shardings)
    with jax.default_matmul_precision("highest"):
        state, metrics = step(init_state(optimizer, params, shardings), {}, plan.batch(0)[0],
                              np.int32(plan.accumulation), np.float32(train.learning_rate))
    return jax.device_get(metrics), np.asarray(jax.device_get(state.params["score"]))


@pytest.mark.longer
def test_eight_devices_and_micro_batches_are_one(config, groups, lone_mesh):
    """Though each device, and each micro-batch, has another number of ratings."""
    metrics, heads = one_step(config, groups, lone_mesh, 16)
    assert {"loss", "grad_norm", "mse/helpful", "mse/long", "mse/kind"} <= metrics.keys()
    for mesh, micro_rows in ((lone_mesh, 2), (make_mesh(MeshConfig(data=2, fsdp=4)), 1)):
        other, moved = one_step(config, groups, mesh, micro_rows)
        for name in metrics:
            assert other[name] == pytest.approx(metrics[name], rel=2e-5, abs=1e-6), name
        np.testing.assert_allclose(moved, heads, rtol=1e-4, atol=2e-5)
