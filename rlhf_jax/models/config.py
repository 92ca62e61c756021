"""The shape of a decoder: one frozen dataclass for every family. `families` maps it from and to config.json."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlhf_jax.config.scorer import ScoreAt


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and how the frequencies are stretched for long contexts.

    Attributes:
      theta: base. kind: "default"; "linear" (all frequencies divided by `factor`); "llama3" (low ones divided, high
        ones kept, a ramp over wavelengths between, as Llama 3.1 does); "yarn" (the same with a ramp over dimensions,
        queries and keys scaled: Peng et al., arXiv 2309.00071).
      low_freq_factor, high_freq_factor: of "llama3" alone: the ramp's ends, in turns over `original_max_position`.
      beta_fast, beta_slow: of "yarn" alone: the same, the fast end first.
      attention_factor: of "yarn" alone: what cos and sin are multiplied by.
      original_max_position: of "llama3" and "yarn": the context before it was stretched.
      fraction: of each head's dimensions that is rotated; the first ones.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position: int = 0
    fraction: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """ArmoRM's gating network: `layers` hidden layers of `hidden` units, softmax of the outputs over `temperature`."""

    hidden: int = 1024
    layers: int = 3
    temperature: float = 10.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder-only transformer. Hashable, so it can be a static argument of `jax.jit`.

    Attributes carry the letters of the shape code: D `embed`, H `heads`, K `kv_heads`, F `mlp`, V `vocab_size`,
    L `layers`, X `experts`. The others:

      norms: where the root-mean-square norms of a sublayer stand: before it, after it, or both.
      norm_offset: what is added to a norm's stored scale (Gemma stores scale - 1).
      embed_scale: token embeddings are multiplied by sqrt(D) (Gemma).
      qk_norm: queries and keys are normed, each head alone or the whole projection at once.
      query_scalar: attention scores are divided by its square root; None for `head_dim`.
      attn_softcap, logit_softcap: c in c * tanh(x / c) on attention scores and on vocabulary logits.
      window: how many positions a token sees, itself included, in all layers but `full_layers`; None for all.
      local_rope: rotation in the layers with a window, where it is another.
      experts, experts_per_token, normalize_experts: mixture of experts in place of the one MLP; 0 for none.
        `normalize_experts` makes the chosen experts' weights sum to one.
      num_labels: 0 for a language model, 1 or more for a sequence classifier (reward model).
      labels: names of a classifier's outputs, where config.json has any.
      score_at: where a classifier's head is read. "last_token": the last token of the rendered conversation that is
        not `pad_token_id`, as transformers and TRL do; "end_of_turn": the stop token, as models that were trained here
        before config.json had a key for it.
      gate: of a classifier whose outputs are objectives that a gate over the prompt weighs (ArmoRM).
      vocab_multiple: the vocabulary's rows are padded to a multiple of it, so that a mesh can divide them.
    """

    family: str
    vocab_size: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    max_position: int = 2048
    tie_embeddings: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norms: Literal["pre", "post", "both"] = "pre"
    norm_offset: float = 0.0
    embed_scale: bool = False
    qkv_bias: bool = False
    qk_norm: Literal["none", "head", "projection"] = "none"
    query_scalar: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    local_rope: Rope | None = None
    experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True
    num_labels: int = 0
    labels: tuple[str, ...] = ()
    score_at: ScoreAt = "last_token"
    gate: Gate | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    vocab_multiple: int = 1

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}; "
                             "grouped-query attention shares each key head among heads / kv_heads query heads")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token = {self.experts_per_token} of experts = {self.experts}; "
                             "a token cannot go to more experts than there are")

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for each output of a classifier: its label, else its number."""
        return self.labels or tuple(map(str, range(self.num_labels)))

    @property
    def is_classifier(self) -> bool:
        return self.num_labels > 0

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding tables: the vocabulary, padded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it attends through the window."""
        return tuple(self.window is not None and i not in self.full_layers for i in range(self.layers))
