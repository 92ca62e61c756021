"""Single responses on outputs written by hand, at the reference, and on eight devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.mismatch import with_mismatched
from rlhf_jax.data.packing import RowShape, pack
from rlhf_jax.losses import PreferenceLoss, TokenStats
from rlhf_jax.models import init_params, param_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.fit import make_plan
from rlhf_jax.training.objectives import Compute
from rlhf_jax.training.optimizer import make_optimizer
from rlhf_jax.training.step import init_state, make_train_step, state_shardings
from rlhf_jax.training.unpaired import Unpaired


def sigma(x):
    return 1.0 / (1.0 + np.exp(-x))


def of(*lengths_and_scores):
    return PromptGroup("p", np.ones(2, np.int32), tuple(
        Response(np.ones(n, np.int32), np.ones(n, bool), scores=scores) for n, scores in lengths_and_scores))


GROUPS = [of((2, {"label": 1.0}), (1, {"mismatched": 1.0})), of((1, {"label": 0.0}), (3, {"mismatched": 1.0}))]
LOGPS = [[[-1.0, -2.0], [-1.0]], [[-4.0], [-1.0, -1.0, -1.0]]]
REFERENCE = [[[-2.0, -2.0], [-3.0]], [[-1.0], [-1.0, -2.0, -2.0]]]


def found(loss, groups=GROUPS, logps=LOGPS, reference=REFERENCE):
    objective = Unpaired(None, loss)
    shape = RowShape(tokens=16, targets=16, slots=4, pairs=1, values=objective.reads)
    batch, policy = (pack(groups, [[0], [1], []], shape, 3, [[np.float32(x) for x in g] for g in values])
                     for values in (reference, logps))
    logps = jnp.asarray(policy.reference_logps)
    return objective.terms((logps, TokenStats(*(jnp.ones_like(logps) for _ in TokenStats._fields))), batch)


@pytest.mark.longer
def test_kto_and_its_metrics_by_hand():
    (term,), metrics = found(PreferenceLoss("kto", beta=0.5, desirable_weight=2.0))
    baseline = (2.0 + 2.0) / 2  # of the mismatched answers: -1 + 3 and -3 + 5
    values = np.asarray(term.values)[np.asarray(term.weights) == 1]
    np.testing.assert_allclose(values, [2 * sigma(-0.5 * (1 - baseline)), sigma(0.5 * (-3 - baseline))], rtol=1e-6)
    means = {name: float(total / weight) for name, (total, weight) in metrics.means.items()}
    assert means == pytest.approx({"rewards/chosen": 0.5, "rewards/rejected": -1.5, "logps/chosen": -3.0,
                                   "logps/rejected": -4.0, "kl": 2.0, "entropy": 1.0, "mean_token_accuracy": 1.0})
    assert metrics.means["entropy"][1] == 3  # tokens of answers with a label


def test_bco_and_apo_read_no_other_answers():
    plain = [of((2, {"label": 1.0})), of((1, {"label": 0.0}))]
    for name, expected in (("bco", [-np.log(sigma(0.1 + 0.1)), -np.log(sigma(-(-0.3 + 0.1)))]),
                           ("apo_zero_unpaired", [sigma(-0.1), sigma(-0.3)])):
        loss = PreferenceLoss(name)
        (term,), metrics = found(loss, plain, [x[:1] for x in LOGPS], [x[:1] for x in REFERENCE])
        np.testing.assert_allclose(np.asarray(term.values)[np.asarray(term.weights) == 1], expected, rtol=1e-5)
        assert "kl" not in metrics.means
        assert Unpaired(None, loss).reads == ("label",)
        assert Unpaired(None, loss).whole_batch == (name == "bco")


@pytest.mark.parametrize(("name", "value"), [("kto", 0.5), ("bco", np.log(2)), ("apo_zero_unpaired", 0.5)])
def test_at_the_reference(name, value):
    (term,), _ = found(PreferenceLoss(name), logps=REFERENCE)
    np.testing.assert_allclose(np.asarray(term.values)[np.asarray(term.weights) == 1], value, rtol=1e-7)


def one_step(config, mesh, groups, reference, name):
    """Metrics and Adam's first moments after a step of 8 groups."""
    objective = Unpaired(Compute(config, mesh=mesh), PreferenceLoss(name, beta=0.3))
    options = TrainConfig(train_batch_size=8, micro_rows=8 // mesh.size, row_length=32, learning_rate=1e-2,
                          warmup_steps=0, max_steps=2, num_train_epochs=2, max_grad_norm=0)
    plan = make_plan(groups, options, mesh, reference=reference, objective=objective)
    params, optimizer = init_params(jax.random.key(0), config), make_optimizer(options, param_specs(config))
    shardings = state_shardings(optimizer, params, param_shardings(config, mesh), mesh)
    step = make_train_step(objective, optimizer, mesh, shardings)
    batch, micro = plan.batch(0)
    assert micro == 1
    with jax.default_matmul_precision("highest"):
        state, metrics = step(init_state(optimizer, params, shardings), {}, batch, np.int32(micro),
                              np.float32(options.learning_rate))
    found = [s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    return {name: float(value) for name, value in metrics.items()}, jax.tree.map(np.asarray, found[0].mu)


@pytest.mark.slow
def test_eight_devices_equal_one(tiny, make_groups, make_reference, lone_mesh):
    plain = make_groups(8, 3, k=(1, 1), prompt=(5, 6), response=(4, 6), pairs="none")
    labelled = [dataclasses.replace(g, responses=tuple(dataclasses.replace(r, scores={"label": float(i % 2)})
                                                       for r in g.responses)) for i, g in enumerate(plain)]
    groups = with_mismatched(labelled, seed=0)
    reference = make_reference(groups)
    (metrics, moments), (alone, alone_moments) = (
        one_step(tiny(), mesh, groups, reference, "kto") for mesh in (make_mesh(MeshConfig()), lone_mesh))
    assert metrics.keys() == alone.keys()
    assert alone["grad_norm"] > 0.01
    for key in alone:
        np.testing.assert_allclose(metrics[key], alone[key], rtol=1e-5, atol=1e-5, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), moments, alone_moments)
