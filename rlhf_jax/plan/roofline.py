"""The shortest time a device can take: arithmetic, memory traffic or links, whichever takes longest.

A lower bound (Williams et al., doi 10.1145/1498765.1498785): the three are taken to overlap fully and to run at the
vendor's peak. Decoding has nothing to overlap its links with (see `parallel.decoding`), so their time is added.
Operations and memory traffic come from formulas, link traffic from the compiled program.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models import DecoderConfig, count_params
from rlhf_jax.models.flops import (
    Flops,
    causal_context,
    executed_train_flops,
    forward_flops,
    useful_train_flops,
)
from rlhf_jax.models.triton import block_of
from rlhf_jax.parallel import batch_ways
from rlhf_jax.parallel.accelerators import Accelerator
from rlhf_jax.parallel.decoding import token_bytes
from rlhf_jax.plan.hlo import Collective
from rlhf_jax.plan.shapes import PassShape, SampleShape, Shape, TrainShape
from rlhf_jax.sampling import prefill_rows
from rlhf_jax.sampling.pages import PAGE
from rlhf_jax.training.attention import platform_of

SPLASH_BLOCK = 512
"""Splash attention works, for each query, on about so many keys more than are seen; on GPUs it is a block of rows."""
_STATE_TRAFFIC = 34
"""Bytes a weight that an optimizer step moves: masters and both moments read and written (24), the gradient read
twice (8), the working copy written (2)."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one call, over all devices unless said otherwise. hbm: bytes that one device moves to and from its memory."""

    useful: float
    executed: float
    hbm: float


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one call if nothing but this took time. in_turn: links wait for the rest, and the rest for them."""

    compute: float
    hbm: float
    links: float
    in_turn: bool = False

    @property
    def step(self) -> float:
        here = max(self.compute, self.hbm)
        return here + self.links if self.in_turn else max(here, self.links)

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max((("compute", self.compute), ("HBM", self.hbm), ("links", self.links)), key=lambda x: x[1])[0]


def times(work: Work, collectives: list[Collective], accelerator: Accelerator) -> Times:
    chip = accelerator.chip
    inside = sum(c.received for c in collectives if not c.across)
    across = sum(c.received for c in collectives if c.across)
    waits = sum(c.count * chip.wait(c.group) for c in collectives)
    return Times(work.executed / accelerator.devices / chip.flops, work.hbm / chip.hbm_bandwidth,
                 inside / accelerator.inside + across / chip.across + waits)


def _activation_bytes(config: DecoderConfig, width: int) -> float:
    """Bytes a token moves in one layer's forward pass: what each product reads and writes."""
    c = config
    heads = (2 * c.heads + 2 * c.kv_heads) * c.head_dim
    return width * (8 * c.embed + 2 * heads + 6 * c.mlp * max(1, c.experts_per_token))


def _block_of_keys(mesh: Mesh, tokens: int, kernels: int) -> int | None:
    """Keys at a time in attention that skips blocks of which nothing is seen; None where it looks at whole rows."""
    if not kernels:
        return None
    return block_of(tokens) if platform_of(mesh) == "gpu" else SPLASH_BLOCK


def _contexts(stage: TrainShape | PassShape, tokens: int, block: int | None) -> tuple[float, float]:
    """(keys a query needs, keys it is multiplied with)."""
    a = stage.assume
    needed = min(causal_context(a.prompt_tokens, a.response_tokens, stage.responses), tokens)
    return needed, float(tokens) if block is None else min(tokens, needed + block)


def work_of(stage: Shape, mesh: Mesh, kernels: int) -> Work:
    """What one call of a stage's program does."""
    match stage:
        case TrainShape():
            return _train_work(stage, mesh, kernels)
        case PassShape():
            return _pass_work(stage, mesh, kernels)
    return _decode_work(stage, mesh, kernels) if stage.name == "decode" else _prefill_work(stage, mesh)


def _forward(stage: TrainShape | PassShape, rows: float, real: float, block: int | None) -> tuple[Flops, Flops]:
    """(needed, run) of `rows` rows of which `real` are full."""
    shape = stage.shape()
    needed, run = _contexts(stage, shape.tokens, block)
    targets = getattr(stage, "output", "logps") == "logps"
    classifier = stage.config.is_classifier
    head = {"scored": shape.slots} if classifier else {"targets": shape.targets if targets else shape.slots}
    share = stage.groups_per_row * stage.responses * stage.assume.response_tokens
    real_head = {"scored": head["scored"] * real} if classifier else {"targets": min(share, head["targets"]) * real}
    filled = min(shape.tokens, stage.groups_per_row * stage.assume.group_tokens(stage.responses))
    useful = forward_flops(stage.config, filled * real, context=needed, **real_head)
    executed = forward_flops(stage.config, shape.tokens * rows, context=run, **{k: v * rows for k, v in head.items()})
    return useful, executed


def _train_work(stage: TrainShape, mesh: Mesh, kernels: int) -> Work:
    config, options, ways = stage.config, stage.options.train, batch_ways(mesh)
    micro = stage.micro_batches(ways)
    params, shape = count_params(config), stage.shape()
    useful, executed = _forward(stage, micro * stage.micro_rows * ways, stage.rows(),
                                _block_of_keys(mesh, shape.tokens, kernels))
    width, tensor = jnp.dtype(options.dtype).itemsize, mesh.shape["tensor"]
    passes = 3 if options.remat == "full" else 2  # of reading the weights: forward, backward, recomputed forward
    weights = (2 * passes + 2) * params * width / tensor  # gathered, then read; the gradients written and read
    accumulated = 8 * params / (mesh.size / mesh.shape["data"])
    tokens = stage.micro_rows * shape.tokens
    activations = tokens * config.layers * _activation_bytes(config, width) * (passes + 1) / tensor
    logits = 0.0 if config.is_classifier else stage.micro_rows * shape.targets * config.vocab_rows * 4 * 6 / tensor
    state = _STATE_TRAFFIC * params / (mesh.size / mesh.shape["data"])
    frozen = stage.options.lora.use_peft  # what is trained then is too little to count
    updated = 0.0 if frozen else micro * accumulated + state
    hbm = micro * (weights + activations + logits) + updated
    return Work(useful_train_flops(useful, frozen=frozen),
                executed_train_flops(executed, stage.remat, frozen=frozen), hbm)


def _pass_work(stage: PassShape, mesh: Mesh, kernels: int) -> Work:
    config, shape = stage.config, stage.shape()
    rows = stage.rows * batch_ways(mesh)
    useful, executed = _forward(stage, rows, rows, _block_of_keys(mesh, shape.tokens, kernels))
    width, tensor = jnp.dtype(stage.dtype).itemsize, mesh.shape["tensor"]
    activations = stage.rows * shape.tokens * config.layers * _activation_bytes(config, width) / tensor
    logits = stage.rows * shape.targets * config.vocab_rows * 4 * 2 / tensor if stage.output == "logps" else 0.0
    return Work(useful.total, executed.total, 2 * count_params(config) * width / tensor + activations + logits)


def _prefill_work(stage: SampleShape, mesh: Mesh) -> Work:
    config, rows = stage.config, prefill_rows(stage.sampling.slots, batch_ways(mesh))
    useful = forward_flops(config, rows * stage.assume.prompt_tokens, context=stage.assume.prompt_tokens / 2)
    executed = forward_flops(config, rows * stage.prompt_length, context=stage.prompt_length)
    width = jnp.dtype(stage.dtype).itemsize
    activations = rows * stage.prompt_length * config.layers * _activation_bytes(config, width) / mesh.size
    return Work(useful.total, executed.total, count_params(config) * width / mesh.shape["tensor"] + activations)


def _decode_work(stage: SampleShape, mesh: Mesh, kernels: int) -> Work:
    """A block of decoding with all lanes busy; a prompt is read once for all its lanes. Without kernels the caches are
    looked at to their full depth, in pages or not; GPUs' read what lanes see, that of TPUs whole pages of the
    responses."""
    config, s, a = stage.config, stage.sampling, stage.assume
    useful = forward_flops(config, s.in_flight, context=a.prompt_tokens + a.response_tokens / 2, targets=s.in_flight)
    settings, stored = dataclasses.replace(stage.settings, cache_share=1.0), 0.0
    if kernels and platform_of(mesh) == "tpu":
        seen = (a.response_tokens + PAGE) // 2
        settings = dataclasses.replace(settings, max_new_tokens=seen)
        # two pages are read and written to store a lane's tokens of a block, see `cache.store_pages`
        stored = 4 * PAGE * s.lanes_each / (stage.prompt_length + s.lanes_each * seen)
    elif kernels:
        settings = dataclasses.replace(settings, prompt_length=a.prompt_tokens, max_new_tokens=a.response_tokens // 2)
    depth = (settings.prompt_length or 0) + settings.max_new_tokens
    executed = forward_flops(config, s.in_flight, context=depth, targets=s.in_flight)
    size = token_bytes(config, settings, jnp.dtype(stage.dtype), batch_ways(mesh), mesh.shape["tensor"])
    return Work(useful.total * s.block, executed.total * s.block, s.block * sum(size) + stored * size.caches)
