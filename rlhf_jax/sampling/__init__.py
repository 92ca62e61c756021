"""Sampling: prefill and decode over the trainer's own tree, and the batch engine that feeds them."""

from rlhf_jax.sampling.cache import LogpTolerance, logp_tolerance
from rlhf_jax.sampling.engine import Sampler, check_slots, prefill_rows, prompt_hash, rounded_up, shape_settings
from rlhf_jax.sampling.rules import Rules, drawn, sample_token

__all__ = ["LogpTolerance", "Rules", "Sampler", "check_slots", "drawn", "logp_tolerance", "prefill_rows", "prompt_hash",
           "rounded_up", "sample_token", "shape_settings"]
