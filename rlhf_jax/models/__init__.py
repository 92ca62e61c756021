"""Models: one decoder for all families, described by a table of `ParamSpec`s; weights are a plain tree."""

from rlhf_jax.models.config import DecoderConfig, RopeScaling, config_from_hf, config_to_hf
from rlhf_jax.models.decoder import REMAT_POLICIES, forward, packed_forward, score_heads
from rlhf_jax.models.hf import CheckpointError, load_params, read_config, save_adapter, save_hf
from rlhf_jax.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from rlhf_jax.models.params import Params, as_classifier, cast, count_params, init_params, output_head, param_specs

__all__ = [
    "REMAT_POLICIES",
    "CheckpointError",
    "DecoderConfig",
    "LoraConfig",
    "Params",
    "RopeScaling",
    "as_classifier",
    "cast",
    "config_from_hf",
    "config_to_hf",
    "count_params",
    "forward",
    "init_lora",
    "init_params",
    "load_params",
    "merge_lora",
    "output_head",
    "packed_forward",
    "param_specs",
    "read_config",
    "save_adapter",
    "save_hf",
    "score_heads",
    "with_lora",
]
