"""A tiny Llama with fresh weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config.run import ScratchOptions
from rlhf_jax.models import DecoderConfig, init_params, save_hf
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScratchStage(Stage):
    """Writes the model. tokenizer: the folder it lies in; the path in the options is no input of its own."""

    options: ScratchOptions
    tokenizer: Checkpoint
    seed: int

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "options": dataclasses.replace(self.options, tokenizer="")}

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        scratch, t = self.options, self.tokenizer.tokenizer
        config = DecoderConfig(
            family="llama", vocab_size=len(t), embed=scratch.embed, layers=scratch.layers, heads=scratch.heads,
            kv_heads=scratch.kv_heads, head_dim=scratch.embed // scratch.heads, mlp=scratch.mlp,
            max_position=scratch.max_position, tie_embeddings=True, bos_token_id=t.bos_token_id,
            eos_token_ids=(t.eos_token_id,), pad_token_id=t.pad_token_id,
            initializer_range=scratch.initializer_range)
        params = jax.device_get(init_params(jax.random.key(self.seed), config))
        save_hf(folder / MODEL, params, config, tokenizer_from=self.tokenizer.folder)
        return {}
