"""What every stage needs and none owns: the run, meshes, progress, compiled samplers, the weights just trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models import DecoderConfig, Params
from rlhf_jax.parallel import HandOver, hand_over, local_mesh, sampling_mesh
from rlhf_jax.sampling import Sampler, SamplingConfig, shape_settings
from rlhf_jax.training.evaluate import PackedMap, logps_map
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.stage import Run, Stage
from rlhf_jax.workflow.train import Setting

Tick = Callable[[str, int, int, str], None]
"""(stage name, done, total, a few words) -> None: shows where a stage stands."""


def no_tick(name: str, done: int, total: int, words: str) -> None:
    """Shows nothing."""
    del name, done, total, words


@dataclasses.dataclass
class Context:
    """A run under way. mesh: of all devices of all processes, for training. trackers: get its training's metric rows.

    Training consumes the weights it starts from, so it has the context let go of them first (`Setting.let_go`).
    """

    run: Run
    mesh: Mesh
    tick: Tick = no_tick
    trackers: tuple[str, ...] = ()
    _samplers: dict[Any, Sampler] = dataclasses.field(default_factory=dict)
    _logps_maps: dict[DecoderConfig, PackedMap] = dataclasses.field(default_factory=dict)
    _trained: Params | None = None
    _latest: tuple[str, Params] | None = None

    def setting(self, name: str, *, of_policy: bool = False) -> Setting:
        """Where a training stage happens, its progress shown under `name`; a policy's weights are kept (`adopt`)."""

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            self.tick(name, step, steps, f"loss {metrics['loss']:.4f}")

        def keep(params: Params) -> None:
            self._trained = params

        def let_go() -> None:
            self._latest = None

        setting = Setting(self.mesh, report, let_go=let_go, trackers=self.trackers, config=self.run.config)
        return dataclasses.replace(setting, keep=keep) if of_policy else setting

    def adopt(self, stage: Stage) -> None:
        """If `stage` has just trained a policy, the stages after it need not read its weights from their files."""
        if not stage.reused and self._trained is not None:
            self._latest = (stage.key, self._trained)
        self._trained = None

    def params(self, checkpoint: Checkpoint, key: str) -> Params:
        """Float32 weights of the policy `key` on the training mesh: as training left them, else from its files."""
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        return checkpoint.params(self.mesh)

    def handed_over(self, checkpoint: Checkpoint, key: str, dtype: str) -> HandOver:
        """The same weights where and as the sampler wants them."""
        mesh = sampling_mesh(checkpoint.config, dtype, self.mesh)
        return hand_over(self.params(checkpoint, key), checkpoint.config, jnp.dtype(dtype), mesh)

    @property
    def local_mesh(self) -> Mesh:
        """For what each process does by itself."""
        return local_mesh(self.mesh)

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
            mesh = sampling_mesh(config, dtype, self.mesh)
            self._samplers[key] = Sampler(config, sampling, checkpoint.stop_ids, mesh, checkpoint.decode_text,
                                          jnp.dtype(dtype))
        return self._samplers[key].with_settings(sampling)
