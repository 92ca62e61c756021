"""Model FLOPs utilisation (Chowdhery et al., PaLM, arXiv 2204.02311, appendix B): useful work against the peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import DecoderConfig
from rlhf_jax.models.flops import forward_flops
from rlhf_jax.parallel.accelerators import peak_flops_of

FlopsOf = Callable[[Sequence[PromptGroup]], float]
"""Groups of some steps -> floating-point operations that training on them needs, recomputation not counted."""


def seen_keys(group: PromptGroup) -> int:
    """Keys that a group's tokens attend to, themselves included, summed over its tokens."""
    prompt = len(group.prompt_ids)
    sizes = [len(response.ids) for response in group.responses]
    return prompt * (prompt + 1) // 2 + sum(size * prompt + size * (size + 1) // 2 for size in sizes)


def needed_flops(config: DecoderConfig, frozen: bool, groups: Sequence[PromptGroup]) -> float:
    """Forward and backward of a packed step: each prompt once, each response once.

    Args:
      frozen: the weights are not trained themselves (an adapter is), so they need no gradient of their own.
    """
    tokens = sum(len(g.prompt_ids) + sum(len(r.ids) for r in g.responses) for g in groups)
    responses = sum(len(g.responses) for g in groups)
    targets = sum(int(r.loss_mask.sum()) for g in groups for r in g.responses)
    head = {"scored": responses} if config.is_classifier else {"targets": targets}
    forward = forward_flops(config, tokens, context=sum(map(seen_keys, groups)) / max(tokens, 1), **head)
    return (2.0 if frozen else 3.0) * forward.total


def flops_counter(config: DecoderConfig, *, frozen: bool) -> FlopsOf:
    """`needed_flops` of this model."""
    return partial(needed_flops, config, frozen)


def utilisation(flops: float, seconds: float, mesh: Mesh) -> dict[str, float]:
    """`tflops_per_device`, and `mfu` where the device's peak is known (bfloat16, dense)."""
    rate = flops / max(seconds, 1e-9) / mesh.size
    peak = peak_flops_of(mesh.devices.flat[0])
    return {"tflops_per_device": rate / 1e12} | ({} if peak is None else {"mfu": rate / peak})
