"""The embedded world's data sets and tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.world import write_world
from rlhf_jax.parallel import is_main_process
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.stage import Stage


@dataclasses.dataclass(frozen=True)
class WorldStage(Stage):
    """Writes the world."""

    world: WorldConfig

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        del context
        if is_main_process():
            write_world(folder, self.world)
        return {}
