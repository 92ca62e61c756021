"""What every stage needs and none owns: the run, the mesh, progress on the terminal, compiled samplers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models import DecoderConfig
from rlhf_jax.sampling import Sampler, SamplingConfig, shape_settings
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.stage import Run
from rlhf_jax.workflow.train import Setting

Tick = Callable[[str, int, int, str], None]
"""(stage name, done, total, a few words) -> None: shows where a stage stands."""


def no_tick(name: str, done: int, total: int, words: str) -> None:
    """Shows nothing."""
    del name, done, total, words


@dataclasses.dataclass
class Context:
    """A run under way."""

    run: Run
    mesh: Mesh
    tick: Tick = no_tick
    _samplers: dict[Any, Sampler] = dataclasses.field(default_factory=dict)
    _logps_maps: dict[DecoderConfig, PackedMap] = dataclasses.field(default_factory=dict)

    def setting(self, name: str) -> Setting:
        """Where a training stage happens, with its progress shown under `name`."""

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            self.tick(name, step, steps, f"loss {metrics['loss']:.4f}")

        return Setting(self.mesh, report)

    def progress(self, name: str) -> Callable[[int, int], None]:
        """Progress of a stage that counts prompts or shards."""
        return lambda done, total: self.tick(name, done, total, "")

    def logps_map(self, config: DecoderConfig) -> PackedMap:
        """Log-probs of groups under a model of this shape."""
        if config not in self._logps_maps:
            self._logps_maps[config] = logps_map(Compute(config, mesh=self.mesh), self.mesh)
        return self._logps_maps[config]

    def sampler(self, config: DecoderConfig, sampling: SamplingConfig, checkpoint: Checkpoint, dtype: str) -> Sampler:
        """A sampler for this model and these settings; programs are shared by all settings of one shape."""
        key = (config, shape_settings(sampling), checkpoint.stop_ids, dtype)
        if key not in self._samplers:
            self._samplers[key] = Sampler(config, sampling, checkpoint.stop_ids, self.mesh, checkpoint.decode_text,
                                          jnp.dtype(dtype))
        return self._samplers[key].with_settings(sampling)
