"""Reading compiled programs: a hand-made one with all three notations, and real ones with known collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.parallel import make_mesh
from rlhf_jax.plan.hlo import Module, replica_groups

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_gather (p: bf16[16,8]) -> bf16[64,8] {
  %p = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.2 = bf16[64,8]{1,0:T(8,128)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%all-reduce-scatter.1 (input: bf16[8,32]) -> bf16[2,32] {
  %input = bf16[8,32]{1,0} parameter(0)
  %all = bf16[8,32]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %cut = bf16[2,32]{1,0} dynamic-slice(%all), dynamic_slice_sizes={2,32}
}

%layer_cond (state: (s32[], bf16[16,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(32)
  %state = (s32[]{:T(128)}, bf16[16,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%layer (state.1: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %state.1 = (s32[]{:T(128)}, bf16[16,8]{1,0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %x = bf16[16,8]{1,0} get-tuple-element(%state.1), index=1
  %kernel = (bf16[4]{0}, f32[8]{0}) custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"c": {
}}, metadata={op_name="attention"}
  %start = bf16[64,8]{1,0} fusion(%x), kind=kCustom, calls=%fused_gather
  %done = bf16[64,8]{1,0} fusion(%start), kind=kCustom, calls=%fused_gather
  %next = s32[]{:T(128)} add(%i.1, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[16,8]{1,0}) tuple(%next, %x)
}

%ring_cond (ring: (u32[], bf16[16,8])) -> pred[] {
  %eight = u32[] constant(8)
  %ring = (u32[], bf16[16,8]{1,0}) parameter(0)
  %hop = u32[] get-tuple-element(%ring), index=0
  ROOT %less = pred[] compare(%hop, %eight), direction=LT
}

%ring_body (ring.1: (u32[], bf16[16,8])) -> (u32[], bf16[16,8]) {
  %ring.1 = (u32[], bf16[16,8]{1,0}) parameter(0)
  %two = u32[] constant(2)
  %hop.1 = u32[] get-tuple-element(%ring.1), index=0
  %part = bf16[16,8]{1,0} get-tuple-element(%ring.1), index=1
  %send = (bf16[16,8], bf16[16,8], u32[]) collective-permute-start(%part), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %sent = bf16[16,8]{1,0} collective-permute-done(%send)
  %hop.2 = u32[] add(%hop.1, %two)
  ROOT %ringed = (u32[], bf16[16,8]{1,0}) tuple(%hop.2, %sent)
}

%micro_cond (m: (s32[], s32[])) -> pred[] {
  %m = (s32[], s32[]) parameter(0)
  %done.1 = s32[] get-tuple-element(%m), index=0
  %asked = s32[] get-tuple-element(%m), index=1
  ROOT %going = pred[] compare(%done.1, %asked), direction=LT
}

%micro (m.1: (s32[], s32[])) -> (s32[], s32[]) {
  %m.1 = (s32[], s32[]) parameter(0)
  %layers = (s32[], bf16[16,8]{1,0}) while(%init), condition=%layer_cond, body=%layer
  %scattered = bf16[2,32]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %again = (s32[], s32[]) tuple(%m.1)
}

ENTRY %main (p0: f32[128]) -> f32[128] {
  %p0 = f32[128]{0} parameter(0)
  %steps = (s32[], s32[]) while(%start.1), condition=%micro_cond, body=%micro
  %ring.2 = (u32[], bf16[16,8]{1,0}) while(%r), condition=%ring_cond, body=%ring_body
  %token = token[] after-all()
  %from_afar = (f32[32,8]{1,0}, u32[], token[]) recv(%token), channel_id=5, is_host_transfer=true, SLICES
  ROOT %norm = f32[128]{0} all-reduce(%p0), channel_id=11, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
""".replace("SLICES", 'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
                      '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}')


def test_counts_and_bytes_of_a_hand_made_program():
    module = Module(TEXT, trips=3, layers=32, groups=[0, 0, 0, 0, 1, 1, 1, 1])
    (afar,) = [c for c in module.collectives if c.dtype == "f32" and c.result_bytes == 32 * 8 * 4]
    assert (afar.kind, afar.group, afar.across, afar.received) == ("all-reduce", 2, True, 32 * 8 * 4)
    found = {c.kind: c for c in module.collectives if c is not afar}
    gather, scatter, permute, reduce = (found[kind] for kind in (
        "all-gather", "reduce-scatter", "collective-permute", "all-reduce"))
    assert (gather.count, gather.group, gather.in_layers, gather.across) == (3 * 32, 4, True, False)
    assert gather.received == 96 * 64 * 8 * 2 * 3 / 4  # spread over two fusions, counted once
    assert (scatter.count, scatter.in_layers, scatter.result_bytes) == (3, False, 8 * 32 * 2)
    assert scatter.received == 3 * 512 * 3 / 4
    assert (permute.count, permute.received) == (4, 4 * 16 * 8 * 2)  # to 8 in steps of 2
    assert (reduce.count, reduce.group, reduce.across) == (1, 2, True)  # {0, 4}, {1, 5}, ...
    assert reduce.received == 2 * 128 * 4 / 2
    assert module.kernels == 1
    assert module.summary()["all-gather"] == (96, gather.received)


STARTED = """ENTRY %main (p0: bf16[64,8], p1: s32[3], p2: f32[64]) -> bf16[512,8] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = s32[3]{0} parameter(1)
  %p2 = f32[64]{0} parameter(2)
  %gather = ((s32[3]{0}, bf16[64,8]{1,0}), (s32[24]{0}, /*index=3*/bf16[512,8]{1,0})) all-gather-start(%p1, %p0), ALL
  %scatter = ((f32[64]{0}), f32[8]{0}) reduce-scatter-start(%p2), ALL, to_apply=%add
  %kernel = bf16[64,8]{1,0} custom-call(%p0), custom_call_target="__gpu$xla.gpu.triton"
  %product = bf16[64,8]{1,0} fusion(%p0), kind=kCustom, backend_config={"fusion_backend_config":{"kind":"__triton"}}
}
""".replace("ALL", "replica_groups=[1,8]<=[8]")


def test_several_arrays_that_are_sent_as_one_count_together():
    """As XLA for GPUs writes them: all operands, then all results."""
    module = Module(STARTED, groups=[0] * 8)
    gather, scatter = module.collectives
    assert (gather.dtype, gather.count, gather.result_bytes) == ("bf16", 1, 24 * 4 + 512 * 8 * 2)
    assert (scatter.kind, scatter.dtype, scatter.result_bytes) == ("reduce-scatter", "f32", 64 * 4)
    assert scatter.received == 7 / 8 * 64 * 4
    assert module.kernels == 1  # XLA's own Triton fusions are not written by hand


@pytest.mark.parametrize(("text", "groups"), [
    ("replica_groups={{0,2},{1,3}}, use", [[0, 2], [1, 3]]),
    ("replica_groups=[2,2]<=[4], use", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), use", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'x'}, use", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2] {'y'}, use", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}, use", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['x'=4,'y'=1], device_ids=([2,2]T(1,0)) {'x'}, use", [[0, 2, 1, 3]]),
    ("channel_id=3", [[0, 1, 2, 3]]),
])
def test_groups_in_every_notation(text, groups):
    assert replica_groups(text, 4) == groups


def lowered(fn, *args, out=None):
    return jax.jit(fn, out_shardings=out).lower(*args).compile().as_text()


def test_an_all_gather_in_a_real_loop_counts_as_often_as_the_loop_runs():
    mesh = make_mesh(MeshConfig())
    rows, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    w = jax.ShapeDtypeStruct((5, 64, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows)

    def fn(w, x):
        def layer(x, w):
            y = jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole))
            return jnp.concatenate([y, y], -1), None

        return jax.lax.scan(layer, x, w)[0]

    module = Module(lowered(fn, w, x, out=rows), layers=5, groups=[0] * 8)
    (gather,) = [c for c in module.collectives if c.kind == "all-gather"]
    assert (gather.count, gather.in_layers, gather.dtype, gather.group) == (5, True, "f32", 8)
    assert gather.received == 5 * 64 * 32 * 4 * 7 / 8


def test_a_sum_over_devices_is_an_all_reduce_and_knows_who_takes_part():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    x = jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    text = lowered(lambda x: jnp.sum(x, 0), x, out=NamedSharding(mesh, P()))
    apart, together = (Module(text, groups=groups).collectives for groups in ([0] * 4 + [1] * 4, [0, 1] * 4))
    assert [(c.kind, c.group, c.received) for c in apart] == [("all-reduce", 2, 2 * 400 / 2)]
    assert [c.across for c in apart] == [True]
    assert [c.across for c in together] == [False]  # i and i + 4 lie in one slice here


@pytest.mark.parametrize(("inside", "told"), [(True, False), (False, True)])
def test_weights_of_all_layers_gathered_at_once_are_told(inside, told):
    mesh = make_mesh(MeshConfig())
    whole = NamedSharding(mesh, P())
    w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def fn(w, x):
        w = w if inside else jax.lax.with_sharding_constraint(w, whole)
        made = jax.lax.with_sharding_constraint if inside else lambda w, _: w
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ made(w, whole)), None), x, w)[0]

    gathers = [c for c in Module(lowered(fn, w, x), layers=5, groups=[0] * 8, weights={5 * 64 * 64}).collectives
               if c.kind == "all-gather"]
    assert [c.weights and not c.in_layers for c in gathers] == [told]
