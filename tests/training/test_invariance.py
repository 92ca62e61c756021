"""The number of devices, the mesh, and gradient accumulation change nothing but speed."""

import re
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import init_lora, init_params, param_specs, with_dropout, with_lora
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.fit import Model, make_plan, step_program
from rlhf_jax.training.objectives import Compute, Preference
from rlhf_jax.training.step import init_state

LOSS = PreferenceLoss(("sigmoid", "sft"), beta=0.3)
MESHES = {"fsdp=8": MeshConfig(), "data=2 fsdp=4": MeshConfig(data=2, fsdp=4),
          "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2), "data=2 context=2 tensor=2": MeshConfig(2, 1, 2, 2),
          "data=2 fsdp=2 tensor=2 explicit": MeshConfig(2, 2, 1, 2, "explicit")}


class Case:
    """One optimizer step of 8 groups, one group per row; with `dropout`, of an adapter."""

    def __init__(self, config, groups, reference, mesh, micro_rows, dropout):
        train = TrainConfig(train_batch_size=8, micro_rows=micro_rows, row_length=24, learning_rate=1e-2,
                            warmup_steps=0, max_steps=2, num_train_epochs=2, max_grad_norm=0)
        self.mesh, self.shardings = mesh, param_shardings(config, mesh)
        self.plan = make_plan(groups, train, mesh, reference=reference)
        self.objective = Preference(Compute(config, mesh=mesh), LOSS)
        params, self.frozen = init_params(jax.random.key(0), config), {}
        model = Model(params, param_specs(config))
        if dropout is not None:
            lora, self.frozen = LoraConfig(use_peft=True, lora_r=2), params
            adapter = jax.tree.map(lambda x: x + 0.2, init_lora(jax.random.key(1), config, lora))
            model = Model(adapter, lora_specs(config, lora), params, param_specs(config),
                          lambda adapter, frozen: with_lora(frozen, adapter, lora.scale),
                          partial(with_dropout, rate=dropout) if dropout else None)
        program = step_program(model, self.objective, train, mesh)
        self.state_shardings, self.step = program.shardings, program.run
        self.state = init_state(program.optimizer, model.trained, program.shardings)
        self.batch, micro = self.plan.batch(0)
        self.rest = np.int32(micro), np.float32(train.learning_rate)

    def compiled(self):
        with jax.default_matmul_precision("highest"):
            return self.step.lower(self.state, self.frozen, self.batch, *self.rest).compile()

    def run(self, compiled=None):
        """(state, metrics) after one step."""
        return (compiled or self.compiled())(self.state, self.frozen, self.batch, *self.rest)


@pytest.fixture(scope="module")
def make_case(tiny, make_groups, make_reference):
    groups = make_groups(8, 3, k=(2, 3), prompt=(5, 6), response=(4, 6))
    reference = make_reference(groups)

    def build(mesh, micro_rows=1, dropout=None, **changes):
        return Case(tiny(**changes), groups, reference, mesh, micro_rows, dropout)

    return build


@pytest.fixture(scope="module")
def at_once(make_case, lone_mesh):
    """One device, one micro-batch."""
    case = make_case(lone_mesh, micro_rows=8)
    assert case.plan.accumulation == 1
    return case.run()


def moments(state):
    """Adam's (mu, nu): after the first step mu is 0.1 times the gradient."""
    found = [s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
    assert len(found) == 1
    return found[0].mu, found[0].nu


def check_same(found, expected):
    (state, metrics), (state_at_once, metrics_at_once) = found, expected
    assert set(metrics) == set(metrics_at_once)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics_at_once[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert metrics["grad_norm"] > 0.1
    grads, grads_at_once = (jax.tree.map(lambda x: 10 * np.asarray(x), moments(s)[0]) for s in (state, state_at_once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, grads_at_once)


@pytest.mark.longer
def test_accumulation_equals_one_micro_batch(make_case, lone_mesh, at_once):
    case = make_case(lone_mesh, micro_rows=1)
    assert case.plan.accumulation == 8
    check_same(case.run(), at_once)


@pytest.mark.longer
def test_what_dropout_draws_depends_on_rows_and_step_alone(make_case, lone_mesh):
    case = make_case(lone_mesh, micro_rows=8, dropout=0.5)
    compiled = case.compiled()
    expected = case.run(compiled)
    for mesh in (lone_mesh, make_mesh(MESHES["data=2 fsdp=2 tensor=2 explicit"])):
        check_same(make_case(mesh, dropout=0.5).run(), expected)
    plain = make_case(lone_mesh, micro_rows=8, dropout=0.0).run()[1]["loss"]
    again = make_case(lone_mesh, micro_rows=8, dropout=0.5)
    again.state = again.state.replace(step=again.state.step + 1)
    losses = [plain, expected[1]["loss"], again.run(compiled)[1]["loss"]]
    assert min(abs(a - b) for a, b in combinations(map(float, losses), 2)) > 1e-3


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_eight_devices_equal_one_and_keep_every_sharding(mesh, make_case, at_once, capfd):
    case = make_case(make_mesh(MESHES[mesh]))
    capfd.readouterr()
    compiled = case.compiled()
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    state, metrics = case.run(compiled)
    check_same((state, metrics), at_once)

    def of(tree):
        return jax.tree.map(lambda x: x.sharding, tree)

    if "explicit" in mesh:  # shardings are types: a step that lost one would not have traced
        assert "@" in str(jax.typeof(state.params["layers"]["mlp"]["gate"]))
    assert of(state.params) == of(moments(state)[0]) == of(moments(state)[1]) == case.shardings
    gate = state.params["layers"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.size == gate.size // (4 if "data=2" in mesh else 8)


@pytest.mark.slow
def test_gradients_stay_sharded_while_they_are_accumulated(make_case):
    """The accumulation loop carries each device's share of a gradient, never the whole of it."""
    case = make_case(make_mesh(MeshConfig()), embed=32, mlp=80, vocab_size=56)
    groups = case.plan.groups
    twice = make_plan(list(groups) * 2, TrainConfig(train_batch_size=16, micro_rows=1, row_length=24), case.mesh,
                      reference=list(case.plan.reference) * 2)
    case.batch, case.micro = twice.batch(0)
    assert case.micro == 2
    text = case.compiled().as_text()
    loop, = (line for line in text.splitlines() if " while(" in line and 'op_name="jit(step)/while"' in line)
    carried = re.findall(r"[a-z0-9]+\[[\d,]*\]", loop.split(" while(")[0])
    shards = [x.addressable_shards[0].data.shape for x in jax.tree.leaves(case.state.params)]
    assert sorted(carried[1 : 1 + len(shards)]) == sorted(f"f32[{','.join(map(str, shape))}]" for shape in shards)


def test_the_capture_sees_what_the_partitioner_prints(capfd):
    """Control of the test above: a reshard that XLA cannot do piecewise does print the warning."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def awkward(x):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("tensor", ("data", "fsdp"), None)))
        last = NamedSharding(mesh, P(None, None, ("tensor", "data", "fsdp")))
        return jax.lax.with_sharding_constraint(jnp.sin(x), last)

    jax.jit(awkward).lower(jnp.ones((8, 8, 8))).compile()
    assert "Involuntary full rematerialization" in capfd.readouterr().err
