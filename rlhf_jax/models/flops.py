"""Floating-point operations by formula: what a pass needs, and what a program with recomputation executes.

A product of [m, k] and [k, n] counts 2 m k n. Norms, activations and softmax are left out: they are less than a
percent of a wide model and bound by memory. XLA's own count visits a loop's body once, so it cannot serve here.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.params import is_spec, param_specs


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one kind of pass. layers: the projections. attention: scores and mixing. head: output head."""

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.layers + self.attention + self.head

    def scaled(self, layers: float, attention: float, head: float) -> float:
        """The sum with each part counted so many times."""
        return self.layers * layers + self.attention * attention + self.head * head


def projection_params(config: DecoderConfig) -> int:
    """Weights of one layer that a token is multiplied with: of experts, only those it goes to."""
    layers = param_specs(config)["layers"]
    count = 0
    for spec in jax.tree.leaves(layers, is_leaf=is_spec):
        size = math.prod(spec.shape[1:])
        if "experts" in spec.axes:
            size = size // config.experts * config.experts_per_token
        count += size if spec.init in ("normal", "output") else 0  # norms and biases multiply nothing
    return count


def mean_context(config: DecoderConfig, context: float) -> float:
    """Keys a query attends to, averaged over the layers; windows cut it."""
    window = context if config.window is None else min(context, config.window)
    local = config.local_layers
    return (sum(local) * window + (len(local) - sum(local)) * context) / len(local)


def forward_flops(config: DecoderConfig, tokens: float, *, context: float, targets: float = 0.0,
                  scored: float = 0.0) -> Flops:
    """One forward pass.

    Args:
      tokens: that go through the layers. context: keys each of them attends to, on average.
      targets: positions whose vocabulary logits are computed. scored: positions a score head reads.
    """
    heads = config.heads * config.head_dim
    attention = 2 * 2 * tokens * mean_context(config, context) * heads * config.layers  # q k and probabilities v
    head = 2 * config.embed * (targets * config.vocab_rows + scored * config.num_labels)
    return Flops(2.0 * tokens * projection_params(config) * config.layers, attention, head)


def useful_train_flops(forward: Flops, *, frozen: bool = False) -> float:
    """Forward and backward: a backward pass has two products for each of the forward's; one where the weights are
    frozen (an adapter is trained) and only activations get gradients, attention excepted."""
    weights = 2.0 if frozen else 3.0
    return forward.scaled(weights, 3.0, weights)


def executed_train_flops(forward: Flops, remat: str, *, frozen: bool = False) -> float:
    """With what is recomputed: logits always (they are never kept), layers under `remat`.

    remat "full" runs every layer's forward again, "dots" only attention, "none" nothing.
    """
    again = {"none": (0.0, 0.0), "dots": (0.0, 1.0), "full": (1.0, 1.0)}[remat]
    weights = 2.0 if frozen else 3.0
    return forward.scaled(weights + again[0], 3.0 + again[1], weights + 1.0)


def causal_context(prompt: float, response: float, responses: float) -> float:
    """Keys a token of a packed group attends to, itself included, on average: its prompt and what came before it.

    Args:
      prompt, response: tokens. responses: branches that share the prompt.
    """
    tokens = prompt + responses * response
    pairs = prompt * (prompt + 1) / 2 + responses * (response * prompt + response * (response + 1) / 2)
    return pairs / tokens if tokens else 0.0
