import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.parallel import PRESETS, AxisRules, batch_sharding, batch_ways, constrainer, make_mesh, param_shardings


@pytest.mark.parametrize(("sizes", "devices", "shape"), [
    ({}, 8, (1, 8, 1, 1)),
    ({}, 1, (1, 1, 1, 1)),
    ({"data": -1, "fsdp": 2}, 8, (4, 2, 1, 1)),
    ({"fsdp": 2, "tensor": -1}, 8, (1, 2, 1, 4)),
    ({"data": 2, "fsdp": 2, "context": 2, "tensor": 1}, 8, (2, 2, 2, 1)),
    ({"fsdp": -1, "tensor": 8}, 8, (1, 1, 1, 8)),
])
def test_sizes_multiply_to_the_devices_and_minus_one_takes_the_rest(sizes, devices, shape):
    assert MeshConfig(**sizes).shape(devices) == shape


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"fsdp": 16}, {"tensor": 3}, {"data": 2, "fsdp": 2, "tensor": 1}])
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(sizes):
    with pytest.raises(ValueError, match=r"asks for \d+ devices.*there are 8.*-1"):
        MeshConfig(**sizes).shape(8)


@pytest.mark.parametrize("sizes", [{"data": -1}, {"fsdp": 0}, {"tensor": -2}])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match=r"-1 for one axis at most|must be at least 1 .*or -1"):
        MeshConfig(**sizes).shape(8)


def test_a_mesh_has_four_auto_axes_over_all_devices():
    mesh = make_mesh(MeshConfig(data=2, tensor=2))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
    assert batch_ways(mesh) == 4


def test_the_first_axis_that_asks_for_a_mesh_axis_gets_it():
    rules = AxisRules()
    assert rules.spec(("embed", "mlp")) == P(("fsdp", "context"), "tensor")
    assert rules.spec(("vocab", "embed")) == P(("tensor", "fsdp", "context"), None)
    assert rules.spec(("embed", "vocab")) == P(("fsdp", "context"), "tensor")
    assert rules.spec(("heads", "kv_heads", "mlp")) == P("tensor", None, None)
    assert rules.spec(("batch", None, "layers", "embed")) == P(("data", "fsdp"), None, None, "context")
    assert rules.spec(("seq", "rank", "labels", "head_dim")) == P("context", None, None, None)
    assert rules.spec(()) == P()
    assert PRESETS["sampling"].spec(("vocab", "embed")) == P("tensor", None)


def test_devices_that_share_a_row_share_the_weights_too(tiny):
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    gate = param_shardings(tiny(), mesh)["layers"]["mlp"]["gate"]
    assert gate.spec == P(None, ("fsdp", "context"), "tensor")


def test_replicas_of_whole_weights_are_a_mesh_of_data_alone(tiny):
    shardings = jax.tree.leaves(param_shardings(tiny(), make_mesh(MeshConfig(data=-1, fsdp=1))))
    assert all(place is None for sharding in shardings for place in sharding.spec)


def test_an_unknown_logical_axis_is_an_error():
    with pytest.raises(AttributeError, match="depth"):
        AxisRules().spec(("depth",))


def test_every_rule_moves_some_array():
    for field in dataclasses.fields(AxisRules):
        place = "data" if getattr(AxisRules(), field.name) != "data" else "fsdp"
        changed = dataclasses.replace(AxisRules(), **{field.name: place})
        assert changed.spec((field.name,)) == P(place) != AxisRules().spec((field.name,))


def test_the_embedding_is_cut_over_both_axes_on_the_vocabulary(tiny):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    shardings = param_shardings(tiny(vocab_size=64), mesh)
    for name in ("embed", "head"):
        assert shardings[name] == NamedSharding(mesh, P(("tensor", "fsdp"), None))
        table = jax.device_put(jnp.zeros((64, 16)), shardings[name])
        assert [s.data.shape for s in table.addressable_shards] == [(8, 16)] * 8
    assert shardings["layers"]["attention"]["q"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["layers"]["attention"]["o"].spec == P(None, "tensor", None, "fsdp")
    assert shardings["layers"]["mlp"]["down"].spec == P(None, "tensor", "fsdp")


def test_a_dimension_the_mesh_does_not_divide_stays_whole(tiny):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shardings = param_shardings(tiny(vocab_size=50, num_labels=1), mesh)  # 2 key heads, 4 ways
    assert shardings["embed"].spec == P(None, None)
    assert shardings["layers"]["attention"]["k"].spec == P(None, "fsdp", None, None)
    assert shardings["layers"]["attention"]["q"].spec == P(None, "fsdp", "tensor", None)
    assert shardings["score"].spec == P(None, "fsdp")


def test_batches_are_cut_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(jnp.zeros((8, 3)), batch_sharding(mesh))
    assert {s.data.shape for s in rows.addressable_shards} == {(2, 3)}
    micro = jax.device_put(jnp.zeros((5, 4, 3)), batch_sharding(mesh, axis=1))
    assert {s.data.shape for s in micro.addressable_shards} == {(5, 1, 3)}


def test_activations_are_cut_by_rows_and_never_along_embed():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    constrain = constrainer(mesh)
    x = jax.jit(lambda x: constrain(x + 1, ("batch", "seq", "embed")))(jnp.zeros((8, 4, 16)))
    assert {s.data.shape for s in x.addressable_shards} == {(1, 4, 16)}
    odd = jax.jit(lambda x: constrain(x + 1, ("batch", "seq", "embed")))(jnp.zeros((3, 4, 16)))
    assert odd.shape == (3, 4, 16)
