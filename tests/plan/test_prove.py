"""The gate over layouts: the real step passes it, and a step that depends on its layout is caught by name."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax.config.build import build
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.training import SftOptions
from rlhf_jax.parallel import make_mesh
from rlhf_jax.plan import prove as gate
from rlhf_jax.plan.prove import Outcome, case_of, compared, first_step, layouts, prove, small
from rlhf_jax.plan.shapes import Assumptions, TrainShape
from rlhf_jax.training.objectives import Compute

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "remat": "none"}
EVERYWHERE = MeshConfig(data=2, fsdp=2, tensor=2)
SOAK = bool(os.environ.get("RLHF_JAX_SOAK"))


@pytest.fixture
def stage(tiny):
    """stage(settings): DPO of a tiny model."""
    return lambda settings: TrainShape("dpo", tiny(), build(PreferenceOptions, settings), 64, 2, Assumptions())


@pytest.fixture
def these(monkeypatch):
    """these(names): only layouts that are so called."""
    every = gate.layouts

    def keep(*names):
        monkeypatch.setattr(gate, "layouts", lambda chosen, devices: [
            layout for layout in every(chosen, devices) if layout.name in names])

    return keep


def test_every_axis_alone_several_together_and_two_other_orders():
    found = {layout.name: layout.mesh for layout in layouts(EVERYWHERE, jax.devices())}
    assert list(found) == [
        "data 2 x fsdp 2 x tensor 2", "fsdp 8", "data 8", "tensor 8", "context 8", "fsdp 2 x context 2 x tensor 2",
        "data 2 x fsdp 2 x tensor 2, devices reversed", "data 2 x fsdp 2 x tensor 2, devices shuffled"]
    orders = {name: [device.id for device in mesh.devices.flat] for name, mesh in found.items()}
    first = orders.pop("fsdp 8")
    assert orders["data 2 x fsdp 2 x tensor 2, devices reversed"] == first[::-1]
    shuffled = orders["data 2 x fsdp 2 x tensor 2, devices shuffled"]
    assert sorted(shuffled) == first != shuffled
    assert next(iter(layouts(MeshConfig(), jax.devices()[:1]))).name == "one device"


@pytest.mark.longer
def test_a_step_of_an_adapter_is_the_same_in_another_order_of_the_devices(stage, these):
    these("data 2 x fsdp 2 x tensor 2, devices shuffled")
    (found,) = prove([stage(LORA)], EVERYWHERE, jax.devices())
    assert not found.refused
    assert found.gap < 1e-4
    assert found.signs == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "responses"), [
    ("sft", build(SftOptions, {"remat": "full", "mu_dtype": "bfloat16"}), 1),
    ("dpo", build(PreferenceOptions, {"loss_type": "bco_pair"}), 2),
    ("dpo", build(PreferenceOptions, {**LORA, "lora_init": "b"}), 2)], ids=["sft", "whole batch", "B"])
def test_every_layout_is_the_same(name, options, responses, tiny, these):
    """Those that cut most; all of them in the long form, `make soak`."""
    if not SOAK:
        these("fsdp 2 x context 2 x tensor 2", "data 2 x fsdp 2 x tensor 2, devices reversed")
    stage = TrainShape(name, tiny("qwen3", window=16), options, 64, responses, Assumptions())
    found = list(prove([stage], EVERYWHERE, jax.devices()))
    assert len(found) == (len(layouts(EVERYWHERE, jax.devices())) if SOAK else 2)
    assert not [one.words() for one in found if one.refused]


class Forgetful(Compute):
    """Its last product is cut over `tensor`, and the sum over the pieces is forgotten."""

    def hidden(self, params, batch):
        hidden = super().hidden(params, batch)
        rows = ("data", "fsdp")
        return jax.shard_map(jnp.matmul, mesh=self.mesh, in_specs=(P(rows, None, "tensor"), P("tensor")),
                             out_specs=P(rows), check_vma=False)(hidden, jnp.eye(hidden.shape[-1]))


@pytest.mark.longer
def test_a_sum_that_is_forgotten_is_caught_where_it_matters_and_not_where_it_does_not(stage, these, monkeypatch):
    these("fsdp 8", "data 2 x fsdp 2 x tensor 2")
    monkeypatch.setattr(gate, "compute_of", lambda config, train, mesh: Forgetful(config, mesh=mesh))
    wrong, right = prove([stage(LORA)], EVERYWHERE, jax.devices())
    assert right.layout == "fsdp 8"
    assert not right.refused
    assert wrong.refused
    assert "dpo on data 2 x fsdp 2 x tensor 2: the " in wrong.words()
    assert wrong.signs < 0.99


@pytest.mark.longer
def test_rows_that_come_in_another_order_than_their_devices_are_caught(stage, these, monkeypatch):
    """Reference log-probs that are placed by number of the device, where the tokens follow the mesh."""
    these("data 2 x fsdp 2 x tensor 2, devices reversed")

    def place(local, sharding, rows, axis):
        ids = [device.id for device in sharding.mesh.devices.flat]
        order = slice(None) if ids == sorted(ids) else slice(None, None, -1)
        return local.replace(reference_logps=local.reference_logps[:, order])

    monkeypatch.setattr(gate, "place", place)
    (found,) = prove([stage(LORA)], EVERYWHERE, jax.devices())
    assert found.refused
    assert "devices reversed" in found.words()


def outcome(gradient, update, norm=1.0, loss=0.7, next_loss=0.6):
    return Outcome({"w": np.asarray(gradient)}, {"w": np.asarray(update)}, norm, loss, next_loss)


@pytest.mark.parametrize(("found", "gap", "where", "signs"), [
    (outcome([1.0, -2.0], [-1.0, 1.0]), 0.0, "the gradient of w", 1.0),
    (outcome([1.0, -1.0], [-1.0, 1.0]), 0.5, "the gradient of w", 1.0),  # of the largest of a weight
    (outcome([1.0, -2.0], [1.0, 1.0]), 0.0, "the gradient of w", 0.5),
    (outcome([1.0, -2.0], [-1.0, 1.0], norm=8.0), 7.0, "the gradient's norm", 1.0),
    (outcome([1.0, -2.0], [-1.0, 1.0], next_loss=0.95), 0.5, "the loss after the update", 1.0),
])
def test_what_is_compared(found, gap, where, signs):
    one = compared("sft", "fsdp 2", found, outcome([1.0, -2.0], [-1.0, 1.0]))
    assert one[2:] == pytest.approx((gap, one.where, signs))
    assert one.where == where or gap == 0
    assert one.refused == (gap > 1e-3 or signs < 0.99)


def test_a_number_that_is_none_is_refused():
    one = compared("sft", "fsdp 2", outcome([np.nan, -2.0], [np.nan, 1.0]), outcome([1.0, -2.0], [-1.0, 1.0]))
    assert one.refused
    assert "the gradient of w differs by nan" in one.words()


def test_the_small_model_keeps_what_makes_a_family(tiny):
    config = tiny("qwen3", heads=32, kv_heads=8, head_dim=128, embed=4096, layers=36, window=4096,
                  full_layers=(1, 35), attn_softcap=50.0)
    stage = small(TrainShape("dpo", config, build(PreferenceOptions, {"dtype": "bfloat16", "remat": "full"}), 4096, 2,
                             Assumptions()), 32)
    kept = ("family", "head_dim", "qk_norm", "attn_softcap", "tie_embeddings", "norms")
    assert all(getattr(stage.config, name) == getattr(config, name) for name in kept)
    assert (stage.config.heads, stage.config.kv_heads, stage.config.window, stage.config.full_layers) == (
        16, 8, 32, (1,))
    train = stage.options.train
    assert (train.remat, train.dtype, train.warmup_steps, train.row_length) == ("full", "float32", 0, 128)


def test_a_step_that_moves_nothing_proves_nothing(stage, monkeypatch):
    nothing = Outcome({"w": np.zeros(2)}, {"w": np.zeros(2)}, 0.0, 0.7, 0.7)
    monkeypatch.setattr(gate, "first_step", lambda case, mesh: nothing)
    with pytest.raises(ValueError, match="dpo: the first step on one device has no gradient"):
        next(prove([stage(LORA)], MeshConfig(), jax.devices()))


@pytest.mark.longer
def test_the_loss_moves_and_gradients_are_those_that_the_optimizer_had(stage):
    case = case_of(stage(LORA), 8)
    one = first_step(case, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert one.loss == pytest.approx(np.log(2), abs=1.0)
    assert one.next_loss < one.loss
    clipped = np.sqrt(sum(np.sum(x**2) for x in one.gradient.values()))
    assert clipped == pytest.approx(min(one.norm, 1.0), rel=1e-4)
    assert all(np.all(x == 0) for name, x in one.gradient.items() if name.endswith("/a"))  # B is zero
    moved = np.concatenate([x.ravel() for name, x in one.update.items() if name.endswith("/b")])
    np.testing.assert_allclose(np.abs(moved), 1e-2, rtol=0.05)  # Adam's first step is the learning rate
