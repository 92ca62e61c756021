"""A moving reference: weights mixed with those of the policy just trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.models import Params, save_hf
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixStage(Stage):
    """alpha x policy + (1 - alpha) x reference, weight by weight (TR-DPO, arXiv 2404.09656)."""

    reference: Checkpoint
    policy: Checkpoint
    alpha: float

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        old, new = context.params(self.reference), context.params(self.policy)
        mixed: Params = jax.tree.map(lambda a, b: self.alpha * b + (1 - self.alpha) * a, old, new)
        save_hf(folder / MODEL, mixed, self.policy.config, tokenizer_from=self.policy.tokenizer_folder,
                chat_template=self.policy.chat_template)
        return {}
