"""`micro_rows: auto` and `remat: auto`: chosen for the memory there is, by one function for runs and for plans.

With more rows at a time, a step gathers the weights fewer times. With less recomputed, it has less arithmetic to do.
Both keep more activations, so what fits decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

import jax
import numpy as np

from rlhf_jax.config.training import Remat, TrainConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.flops import executed_train_flops, forward_flops
from rlhf_jax.models.params import count_params, is_spec, param_specs
from rlhf_jax.parallel.accelerators import CHIPS, Chip

ROWS, TOKENS = 4, 1024
"""On devices that do not tell their memory (CPUs), a micro-batch has at most so many rows, and so many tokens where
that is a row or more: enough for their products to run at full rate, and the fewer rows it has, the fewer of a step's
last one are empty."""
REMAT: Remat = "dots"
"""On such devices: what was measured to be as fast as any (benchmarks/README.md)."""
SHARE = 0.95
"""Of the memory, what a step may take by the estimate; the compiler's own buffers and fragments need the rest."""
ALONE = 0.25
"""Of what is received, the share that does not run beside the products (docs/scale.md, "From 8 to 256 chips")."""
_NOMINAL = CHIPS["H100"]
"""Stands in for a device that is in no table: only the ratio of arithmetic to bandwidth counts."""


class StepNeed(NamedTuple):
    """A step to be divided. frozen: an adapter is trained. rows: of the largest global batch, of `row_length` tokens.

    together: the loss looks across the batch, which must be one micro-batch.
    scores: attention holds its scores of a row's tokens with each other, [heads, T, T], as no kernel does.
    """

    config: DecoderConfig
    train: TrainConfig
    frozen: bool
    row_length: int
    rows: int
    together: bool = False
    scores: bool = False


class StepBytes(NamedTuple):
    """What a step keeps on one device, estimated. state: weights, moments, gradients and the working copy; held: what
    lies beside them. kept: activations for the backward pass. passing: of the layer at work, the gathered weights and
    the logits."""

    state: float
    held: float
    kept: float
    passing: float

    @property
    def total(self) -> float:
        return sum(self)


class Division(NamedTuple):
    """Rows that each device works on at a time, what is recomputed, and why."""

    micro_rows: int
    remat: Remat
    why: str


def layer_outputs(config: DecoderConfig) -> dict[Remat, int]:
    """Numbers a token leaves behind in one layer for its backward pass, under each policy.

    full: the layer's input. dots: also what its dense products give; those of experts are batched products, which the
    policy does not keep. none: also what lies between the products, norms in float32, rotated heads, attention and the
    gated activations; as much as the TPU's compiler was seen to keep of it.
    """
    products = 0
    for spec in jax.tree.leaves(param_specs(config)["layers"], is_leaf=is_spec):
        if spec.init in ("normal", "output") and "experts" not in spec.axes:
            products += config.embed if spec.axes[-1] == "embed" else math.prod(spec.shape[2:])
    heads = (2 * config.heads + config.kv_heads) * config.head_dim
    active = max(1, config.experts_per_token)
    experts = active * (2 * config.mlp + config.embed) if config.experts else 0
    between = 12 * config.embed + heads + 4 * active * config.mlp + experts
    return {"full": config.embed, "dots": config.embed + products, "none": config.embed + products + between}


def step_bytes(need: StepNeed, mesh: Mapping[str, int], micro_rows: int, remat: Remat) -> StepBytes:
    """Memory of one device while a step runs. Dense models were seen to need from 1 % more to a third less on TPUs,
    and up to 4 % more on an H100."""
    config, train, width = need.config, need.train, np.dtype(need.train.dtype).itemsize
    tensor, shards = mesh["tensor"], math.prod(mesh.values()) // mesh["data"]
    params, micro = count_params(config), micro_batches(need, mesh, micro_rows)
    moments = 8 if train.mu_dtype == "float32" else 6
    gradients = 4 + (width if micro > 1 else 0)  # the sum and the newest
    state = (width if need.frozen else 4 + moments + gradients + (width if width < 4 else 0)) * params / shards
    held = 4 * params / shards if need.frozen else 0.0
    outputs, tokens = layer_outputs(config), micro_rows * need.row_length / mesh["context"]

    def cut(numbers: float) -> float:  # inner widths are cut by `tensor`, the layer's input and results are not
        return config.embed + (numbers - config.embed) / tensor

    kept = config.layers * tokens * cut(outputs[remat]) * width
    scores = micro_rows * config.heads * need.row_length**2 * 4 / mesh["context"] / tensor if need.scores else 0.0
    kept += 2 * config.layers * scores if remat == "none" else 0.0
    layer = params_of_a_layer(config) * width / tensor
    table = config.vocab_rows * config.embed * width / tensor
    logits = micro_rows * min(train.logits_chunk, need.row_length) * config.vocab_rows * 4 * 2 / tensor
    active = max(1, config.experts_per_token) if config.experts else 0  # experts' own results, which dots leaves out
    passing = tokens * cut(outputs["dots"] + active * 3 * config.mlp) * width + 3 * scores
    passing += 0 if shards == 1 else 4 * layer + 2 * table
    return StepBytes(state, held, kept, passing + (0.0 if config.is_classifier else logits))


def params_of_a_layer(config: DecoderConfig) -> int:
    """Weights of one layer."""
    leaves = jax.tree.leaves(param_specs(config)["layers"], is_leaf=is_spec)
    return sum(math.prod(spec.shape[1:]) for spec in leaves)


def micro_batches(need: StepNeed, mesh: Mapping[str, int], micro_rows: int) -> int:
    """How many a step needs of so many rows on each device."""
    return max(1, math.ceil(need.rows / (micro_rows * mesh["data"] * mesh["fsdp"])))


def step_seconds(need: StepNeed, mesh: Mapping[str, int], micro_rows: int, remat: Remat, chip: Chip) -> float:
    """A step at the chip's peak: arithmetic and what of the links does not run beside it, and the traffic of what is
    kept."""
    config, devices, width = need.config, math.prod(mesh.values()), np.dtype(need.train.dtype).itemsize
    micro = micro_batches(need, mesh, micro_rows)
    tokens = micro * micro_rows * mesh["data"] * mesh["fsdp"] * need.row_length
    head = {"scored": need.rows} if config.is_classifier else {"targets": tokens}
    forward = forward_flops(config, tokens, context=need.row_length / 2, **head)
    compute = executed_train_flops(forward, remat, frozen=need.frozen) / devices / chip.flops
    gathered = mesh["fsdp"] * mesh["context"]
    passes = 2 if need.frozen else 3  # gathered for the forward and the backward pass; gradients scattered
    tensor = mesh["tensor"]  # four all-reduces of activations in a layer, there and back
    reduced = tokens / devices * 4 * config.layers * config.embed * width * 2 * (tensor - 1)
    received = reduced + micro * passes * count_params(config) * width / tensor * (1 - 1 / gathered)
    kept = micro * 2 * step_bytes(need, mesh, micro_rows, remat).kept / chip.hbm_bandwidth
    links = received / chip.ring
    return max(compute, links) + ALONE * min(compute, links) + kept


def pass_rows(train: TrainConfig) -> int:
    """Rows at a time of a pass without gradients over what `train` trains on, which keeps next to nothing of them."""
    return ROWS if train.micro_rows == "auto" else train.micro_rows


def cpu_rows(row_length: int) -> int:
    """Rows of a micro-batch on devices that do not tell their memory, of so many tokens each."""
    return min(ROWS, max(1, TOKENS // row_length))


def candidates(need: StepNeed, mesh: Mapping[str, int]) -> Iterator[tuple[int, Remat]]:
    """What the options leave open, fewest micro-batches first."""
    train, most = need.train, math.ceil(need.rows / (mesh["data"] * mesh["fsdp"]))
    every = dict.fromkeys(math.ceil(most / micro) for micro in range(1, most + 1))
    open_rows = [most] if need.together else list(every)
    if train.micro_rows != "auto":
        open_rows = [min(train.micro_rows, most) if need.together else train.micro_rows]
    for rows in open_rows:
        for remat in get_args(Remat) if train.remat == "auto" else [train.remat]:
            yield rows, remat


def divide_step(need: StepNeed, mesh: Mapping[str, int], chip: Chip | None, memory: float | None) -> Division:
    """The division that takes least time of those that fit; the one that needs least memory if none does.

    Args:
      mesh: axis -> size. chip: what is known of a device. memory: bytes of one; None of devices that do not tell.
    """
    possible = list(candidates(need, mesh))
    if memory is None:
        most, train = possible[0][0], need.train
        rows = most if need.together or train.micro_rows != "auto" else min(cpu_rows(need.row_length), most)
        remat = REMAT if train.remat == "auto" else train.remat
        return Division(rows, remat, f"{_words(rows, remat)}: the devices do not report how much memory they have")
    sizes = {one: step_bytes(need, mesh, *one).total for one in possible}
    fitting = [one for one in possible if sizes[one] <= SHARE * memory]
    if not fitting:
        least = min(possible, key=lambda one: sizes[one])
        return Division(*least, f"{_words(*least)}: the least there is, about {_gib(sizes[least])} of {_gib(memory)}")
    seconds = {one: step_seconds(need, mesh, *one, chip or _NOMINAL) for one in fitting}
    best = min(fitting, key=lambda one: (round(seconds[one], 6), sizes[one]))
    count = micro_batches(need, mesh, best[0])
    return Division(*best, f"{_words(*best)}: {count} micro-batch{'es' * (count > 1)}, about {_gib(sizes[best])} of "
                           f"{_gib(memory)}")


def _words(micro_rows: int, remat: Remat) -> str:
    return f"micro_rows {micro_rows}, remat {remat}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
