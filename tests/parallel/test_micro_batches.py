"""What a step keeps on a device, against sums worked by hand, and the micro-batches and recomputation that follow."""

import dataclasses

import jax
import pytest

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.parallel import make_mesh
from rlhf_jax.parallel.accelerators import CHIPS
from rlhf_jax.parallel.micro_batches import (
    SHARE,
    StepNeed,
    candidates,
    divide_step,
    layer_outputs,
    micro_batches,
    step_bytes,
    step_seconds,
)
from rlhf_jax.plan.recipe import shape_of

GIB = 2**30
OPEN = TrainConfig(train_batch_size=128, row_length=5120, dtype="bfloat16", logits_chunk=1024)
EIGHT = dict(zip(AXES, (1, 8, 1, 1), strict=True))


@pytest.fixture(scope="module")
def llama():
    """The paper's step on Llama-3-8B: 26 rows of 5,120 tokens."""
    return StepNeed(shape_of("configs/llama3_8b/model"), OPEN, False, 5120, 26)


def test_what_a_token_leaves_in_a_layer(llama):
    """Llama-3-8B: 4,096 wide, 32 heads and 8 key heads of 128, inner width 14,336."""
    outputs = layer_outputs(llama.config)
    assert outputs["full"] == 4096
    assert outputs["dots"] == 4096 + (4096 + 2 * 1024 + 4096) + (2 * 14336 + 4096)
    assert outputs["none"] == outputs["dots"] + 12 * 4096 + (2 * 32 + 8) * 128 + 4 * 14336


def test_experts_are_not_kept_by_dots(tiny):
    few, many = (layer_outputs(tiny(family="mixtral", experts=n, experts_per_token=2)) for n in (4, 8))
    assert few["dots"] + 4 == many["dots"]  # the router's output alone grows


def test_bytes_by_hand(llama):
    """18 bytes a weight (masters, two moments, one gradient, the working copy) over eight devices, and 2 more where
    gradients are added up; activations of 4 rows of 5,120 tokens in 32 layers, two bytes each."""
    found = step_bytes(llama, EIGHT, 4, "dots")
    assert found.state == 18 * 8_030_261_248 / 8
    assert found.held == 0
    assert found.kept == 32 * 4 * 5120 * layer_outputs(llama.config)["dots"] * 2
    assert step_bytes(llama, EIGHT, 2, "dots").state == 20 * 8_030_261_248 / 8
    assert step_bytes(llama, EIGHT, 1, "full").kept == 32 * 5120 * 4096 * 2


def test_an_adapter_keeps_frozen_weights_in_the_compute_dtype_and_their_masters(llama):
    found = step_bytes(llama._replace(frozen=True), EIGHT, 4, "dots")
    assert (found.state, found.held) == (2 * 8_030_261_248 / 8, 4 * 8_030_261_248 / 8)


@pytest.mark.parametrize(("field", "change"), [("mu_dtype", -2), ("dtype", -2)])
def test_narrower_numbers_take_less(llama, field, change):
    """A moment in bfloat16 saves two bytes a weight; in float32 there is no working copy."""
    other = {"mu_dtype": "bfloat16", "dtype": "float32"}[field]
    less = llama._replace(train=dataclasses.replace(OPEN, **{field: other}))
    saved = step_bytes(less, EIGHT, 4, "full").state - step_bytes(llama, EIGHT, 4, "full").state
    assert saved == change * 8_030_261_248 / 8


@pytest.mark.parametrize(("chip", "devices", "expected"), [
    ("v5p", 8, (4, "dots")),  # all rows at once: one gather of the weights a pass
    ("v6e", 16, (1, "dots")),
    ("H100", 8, (2, "dots")),
])
def test_the_recipe_on_accelerators(llama, chip, devices, expected):
    mesh = dict(zip(AXES, (1, devices, 1, 1), strict=True))
    found = divide_step(llama, mesh, CHIPS[chip], CHIPS[chip].hbm_bytes)
    assert (found.micro_rows, found.remat) == expected
    assert step_bytes(llama, mesh, *expected).total <= SHARE * CHIPS[chip].hbm_bytes
    assert f"micro_rows {expected[0]}, remat {expected[1]}" in found.why


def test_the_fastest_of_those_that_fit_is_taken(llama):
    chip = CHIPS["v5p"]
    for gib in (30, 40, 60, 95):
        found = divide_step(llama, EIGHT, chip, gib * GIB)
        fitting = [one for one in candidates(llama, EIGHT) if step_bytes(llama, EIGHT, *one).total <= SHARE * gib * GIB]
        best = min(step_seconds(llama, EIGHT, *one, chip) for one in fitting)
        assert step_seconds(llama, EIGHT, found.micro_rows, found.remat, chip) == pytest.approx(best)


def test_where_nothing_fits_the_least_is_taken_and_said(llama):
    found = divide_step(llama, EIGHT, CHIPS["v5e"], 4 * GIB)
    assert (found.micro_rows, found.remat) == (1, "full")
    assert "the least there is" in found.why


def test_more_memory_never_takes_longer(llama):
    seconds = []
    for gib in range(30, 120, 10):
        found = divide_step(llama, EIGHT, CHIPS["v5p"], gib * GIB)
        seconds.append(step_seconds(llama, EIGHT, found.micro_rows, found.remat, CHIPS["v5p"]))
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]


@pytest.mark.parametrize(("given", "row_length", "found"), [
    ({}, 160, (4, "dots")), ({}, 512, (2, "dots")), ({}, 768, (1, "dots")), ({}, 5120, (1, "dots")),
    ({"micro_rows": 3}, 768, (3, "dots")), ({"remat": "full"}, 256, (4, "full"))])
def test_devices_that_tell_no_memory(llama, given, row_length, found):
    need = llama._replace(train=dataclasses.replace(OPEN, **given), row_length=row_length)
    assert divide_step(need, EIGHT, None, None)[:2] == found


def test_no_more_rows_than_there_are(llama):
    assert divide_step(llama._replace(rows=9, row_length=128), EIGHT, None, None).micro_rows == 2
    assert divide_step(llama._replace(rows=3), EIGHT, CHIPS["v5p"], 95 * GIB).micro_rows == 1


@pytest.mark.parametrize("memory", [None, 95 * GIB, 4 * GIB])
def test_a_loss_over_the_batch_is_one_micro_batch(llama, memory):
    need = llama._replace(together=True, rows=70)
    found = divide_step(need, EIGHT, CHIPS["v5p"], memory)
    assert micro_batches(need, EIGHT, found.micro_rows) == 1


def test_a_given_number_of_rows_is_no_more_than_a_batch_over_which_the_loss_looks(llama):
    need = llama._replace(together=True, rows=16, train=dataclasses.replace(OPEN, micro_rows=256))
    found = divide_step(need, EIGHT, CHIPS["H100"], CHIPS["H100"].hbm_bytes)
    assert (found.micro_rows, found.remat) == (2, "dots")


def test_scores_of_whole_rows_are_counted(llama):
    """[32 heads, T, T] float32 of each row, thrice at the layer at work, and twice of each layer if all is kept."""
    one = 5120**2 * 32 * 4
    plain, with_scores = (step_bytes(llama._replace(scores=s), EIGHT, 2, "dots") for s in (False, True))
    assert with_scores.total - plain.total == 3 * 2 * one
    plain, with_scores = (step_bytes(llama._replace(scores=s), EIGHT, 1, "none") for s in (False, True))
    assert with_scores.kept - plain.kept == 2 * 32 * one


def test_what_is_given_is_kept(llama):
    need = llama._replace(train=dataclasses.replace(OPEN, micro_rows=2))
    assert {rows for rows, _ in candidates(need, EIGHT)} == {2}
    need = llama._replace(train=dataclasses.replace(OPEN, remat="none"))
    assert {remat for _, remat in candidates(need, EIGHT)} == {"none"}


def test_inner_widths_are_cut_by_tensor_and_tokens_by_context(llama):
    tensor, context = (dict(zip(AXES, shape, strict=True)) for shape in ((1, 4, 1, 2), (1, 4, 2, 1)))
    whole = step_bytes(llama, dict(zip(AXES, (1, 4, 1, 1), strict=True)), 1, "dots").kept
    assert step_bytes(llama, context, 1, "dots").kept == whole / 2
    assert whole / 2 < step_bytes(llama, tensor, 1, "dots").kept < whole


def test_the_stage_and_the_plan_divide_alike(llama, monkeypatch):
    """The stage asks the devices that are here, the plan the accelerator's table: the same function answers both."""
    from rlhf_jax.config.data import RenderOptions
    from rlhf_jax.config.plan import Assumptions
    from rlhf_jax.config.preference import PreferenceOptions
    from rlhf_jax.data.loader import BatchPlan
    from rlhf_jax.plan.programs import settled as planned
    from rlhf_jax.plan.shapes import train_shape
    from rlhf_jax.training import fit
    from rlhf_jax.workflow.meshes import Trains

    mesh = make_mesh(MeshConfig(), jax.devices()[:8])
    training = Trains("dpo", PreferenceOptions(train=OPEN), RenderOptions(), 2)
    stage = train_shape(training, llama.config, Assumptions())
    in_plan, why = planned(stage, mesh, CHIPS["v5p"])
    monkeypatch.setattr(fit, "memory_of", lambda device: CHIPS["v5p"].hbm_bytes)
    monkeypatch.setattr(fit, "chip_of", lambda device: CHIPS["v5p"])
    monkeypatch.setattr(BatchPlan, "largest_step", property(lambda plan: stage.rows()))
    plan = BatchPlan([object()], 128, 5120, 1)
    divided, train, said = fit.settled(plan, OPEN, llama.config, mesh)
    assert (train.micro_rows, train.remat, said) == (in_plan.micro_rows, in_plan.remat, why)
    assert divided.micro_rows == 8 * train.micro_rows
