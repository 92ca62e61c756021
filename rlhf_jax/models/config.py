"""The shape of a decoder: one frozen dataclass for every family, from and to Hugging Face's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder-only transformer. Hashable, so it can be a static argument of `jax.jit`.

    Attributes carry the letters of the shape code: D `embed`, H `heads`, K `kv_heads`, F `mlp`, V `vocab_size`,
    L `layers`. `num_labels` is 0 for a language model, 1 or more for a sequence classifier (reward model).
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
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position: int = 2048
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    num_labels: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}; "
                             "grouped-query attention shares each key head among heads / kv_heads query heads")

    @property
    def is_classifier(self) -> bool:
        return self.num_labels > 0


_FAMILIES = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2", {"qkv_bias": True}),
    "qwen3": ("Qwen3", {"qk_norm": True}),
}
"""model_type -> (prefix of the Hugging Face class names, the switches that make the family)."""


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from either layout: `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`."""
    parameters = raw.get("rope_parameters") or {**(raw.get("rope_scaling") or {}), "rope_theta": raw.get("rope_theta")}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    if kind == "default":
        return theta, None
    if kind == "llama3":
        return theta, RopeScaling(float(parameters["factor"]), float(parameters["low_freq_factor"]),
                                  float(parameters["high_freq_factor"]),
                                  int(parameters["original_max_position_embeddings"]))
    raise ValueError(f"config.json asks for rope type {kind!r}; supported are 'default' and 'llama3'")


def _window(raw: Mapping[str, Any], family: str) -> int | None:
    """The sliding window of all layers, or None; qwen slides from layer `max_window_layers` on."""
    if family == "llama" or not raw.get("use_sliding_window", family == "mistral"):
        return None
    window = raw.get("sliding_window", 4096)  # absent: transformers' default
    layers, first = raw["num_hidden_layers"], 0 if family == "mistral" else raw.get("max_window_layers", 28)
    kinds = raw.get("layer_types") or ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    if window is None or "sliding_attention" not in kinds:
        return None
    if "full_attention" in kinds:
        raise ValueError(f"config.json gives sliding_window = {window} to some layers and full attention to others "
                         f"(layer_types or max_window_layers = {first}); the {family} decoder here knows one kind for "
                         "all layers")
    return int(window)


def config_from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
    """Reads a Hugging Face config.json, old or new layout.

    Raises:
      ValueError: for an architecture or a switch that this decoder does not implement, naming both.
    """
    family = raw.get("model_type")
    if family not in _FAMILIES:
        raise ValueError(f"model_type {family!r} is not supported; supported are {sorted(_FAMILIES)}")
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(key, only) != only:
            raise ValueError(f"config.json has {key} = {raw[key]!r}; the {family} decoder here knows {only!r} only")
    architecture = (raw.get("architectures") or [""])[0]
    labels = 0
    if architecture.endswith("ForSequenceClassification"):
        labels = int(raw.get("num_labels") or len(raw.get("id2label") or "01"))  # absent: transformers' default of 2
    theta, scaling = _rope(raw)
    eos = raw.get("eos_token_id")
    return DecoderConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        embed=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        mlp=raw["intermediate_size"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position=raw.get("max_position_embeddings", 2048),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        window=_window(raw, family),
        num_labels=labels,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        pad_token_id=raw.get("pad_token_id"),
        initializer_range=raw.get("initializer_range", 0.02),
        **_FAMILIES[family][1],
    )


def config_to_hf(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json that `transformers` loads as the same model, causal or classifier."""
    kind = "ForSequenceClassification" if config.is_classifier else "ForCausalLM"
    eos = config.eos_token_ids
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
                 "high_freq_factor": s.high_freq_factor,
                 "original_max_position_embeddings": s.original_max_position}
    raw: dict[str, Any] = {
        "architectures": [_FAMILIES[config.family][0] + kind],
        "model_type": config.family,
        "hidden_size": config.embed,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": config.pad_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if config.family == "llama":
        raw["mlp_bias"] = False
    if config.family in ("mistral", "qwen2", "qwen3"):
        raw["sliding_window"] = config.window
    if config.family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = config.window is not None
        raw["max_window_layers"] = 0 if config.window is not None else config.layers
    if config.is_classifier:
        raw["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        raw["label2id"] = {f"LABEL_{i}": i for i in range(config.num_labels)}
        raw["num_labels"] = config.num_labels
    return raw
