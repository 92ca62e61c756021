"""Models: one decoder for all families, described by a table of `ParamSpec`s; weights are a plain tree."""

from rlhf_jax.models.attention import RowAttention
from rlhf_jax.models.config import DecoderConfig, Gate, Rope
from rlhf_jax.models.decoder import REMAT_POLICIES, forward, packed_forward
from rlhf_jax.models.families import FAMILIES, config_from_hf, config_to_hf
from rlhf_jax.models.folder import CheckpointError, find_model
from rlhf_jax.models.heads import GatedScores, gate_logits, gate_weights, gated_scores, score_heads, vocab_logits
from rlhf_jax.models.hf import read_config
from rlhf_jax.models.load import load_params
from rlhf_jax.models.lora import init_lora, merge_lora, with_dropout, with_lora
from rlhf_jax.models.params import (
    Params,
    as_classifier,
    cast,
    count_params,
    init_params,
    output_head,
    param_specs,
    with_score,
)
from rlhf_jax.models.peft import adapter_base, adapter_outputs, fused_modules, load_adapter, save_adapter
from rlhf_jax.models.save import save_hf, written_config

__all__ = [
    "FAMILIES",
    "REMAT_POLICIES",
    "CheckpointError",
    "DecoderConfig",
    "Gate",
    "GatedScores",
    "Params",
    "Rope",
    "RowAttention",
    "adapter_base",
    "adapter_outputs",
    "as_classifier",
    "cast",
    "config_from_hf",
    "config_to_hf",
    "count_params",
    "find_model",
    "forward",
    "fused_modules",
    "gate_logits",
    "gate_weights",
    "gated_scores",
    "init_lora",
    "init_params",
    "load_adapter",
    "load_params",
    "merge_lora",
    "output_head",
    "packed_forward",
    "param_specs",
    "read_config",
    "save_adapter",
    "save_hf",
    "score_heads",
    "vocab_logits",
    "with_dropout",
    "with_lora",
    "with_score",
    "written_config",
]
