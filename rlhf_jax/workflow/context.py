"""State shared by the stages of a run: meshes, progress, compiled samplers, the latest weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models import Params
from rlhf_jax.parallel import HandOver, SamplingLayout, local_mesh, reshard_for_sampling, sampling_layout
from rlhf_jax.sampling import Sampler, shape_settings
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.products import MODEL
from rlhf_jax.workflow.stage import Finished, Run, Stage, stage_key

Tick = Callable[[str, int, int, str], None]
"""(stage name, done, total, a few words) -> None: shows where a stage stands."""


def no_tick(name: str, done: int, total: int, words: str) -> None:
    """Shows nothing."""
    del name, done, total, words


@dataclasses.dataclass
class LatestWeights:
    """The policy that was trained last, still on the devices, and the key of the stage that trained it."""

    key: str | None = None
    params: Params | None = None

    def keep(self, key: str, params: Params) -> None:
        self.key, self.params = key, params

    def release(self) -> None:
        """Frees their memory, which a training that begins needs; they are read from their files after that."""
        self.key = self.params = None


@dataclasses.dataclass
class LatestSampled:
    """The policy that was sampled from last, whose weights an engine outside of this program still has."""

    policy: Checkpoint | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """A run under way.

    Attributes:
      run: its folder. mesh: of all devices of all processes, for training.
      tick: shows progress. trackers: get the metric rows of trainings.
      name, key: of the stage at work.
      dry: for a dry run: nothing is kept in the folder, unusable rows neither.
    """

    run: Run
    mesh: Mesh
    tick: Tick = no_tick
    trackers: tuple[str, ...] = ()
    name: str = ""
    key: str = ""
    dry: bool = False
    latest: LatestWeights = dataclasses.field(default_factory=LatestWeights)
    sampled: LatestSampled = dataclasses.field(default_factory=LatestSampled)
    samplers: dict[Any, Sampler] = dataclasses.field(default_factory=dict)

    def do(self, name: str, stage: Stage) -> Finished:
        """The stage, done now or before; the same stage under the same name is done once in a run."""
        inputs = stage.inputs()
        at_work = dataclasses.replace(self, name=name, key=stage_key(name, inputs))
        return self.run.stage(name, inputs, lambda folder: stage.run(folder, at_work))

    def train(self, name: str, stage: Stage) -> Checkpoint:
        """The model that a training stage makes."""
        finished = self.do(name, stage)
        return Checkpoint(finished.folder / MODEL, stage_key=finished.key)

    def quarantine(self, name: str) -> Path | None:
        """The file for unusable rows of a data set; None in a dry run."""
        if self.dry:
            return None
        folder = self.run.folder
        return folder / f"quarantine-{name}.jsonl" if self.run.single else (
            folder / "quarantine" / f"{name.replace('/', '-')}.jsonl")

    def params(self, checkpoint: Checkpoint) -> Params:
        """Float32 weights on the training mesh: as training left them, else from their files."""
        if self.latest.params is not None and self.latest.key == checkpoint.key:
            return self.latest.params
        return checkpoint.params(self.mesh)

    def layout(self, checkpoint: Checkpoint, sampling: SamplingConfig, dtype: str) -> SamplingLayout:
        """Where a sampler with these settings has this model's weights."""
        return sampling_layout(checkpoint.config, dtype, self.mesh, sampling)

    def handed_over(self, checkpoint: Checkpoint, sampling: SamplingConfig, dtype: str) -> HandOver:
        """The weights where and as that sampler wants them."""
        mesh = self.layout(checkpoint, sampling, dtype).mesh
        return reshard_for_sampling(self.params(checkpoint), checkpoint.config, jnp.dtype(dtype), mesh)

    @property
    def local_mesh(self) -> Mesh:
        """For what each process does by itself."""
        return local_mesh(self.mesh)

    def progress(self, done: int, total: int) -> None:
        """Shows how many prompts or shards of the stage at work are done."""
        self.tick(self.name, done, total, "")

    def report(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Shows where the training at work stands."""
        self.tick(self.name, step, steps, f"loss {metrics['loss']:.4f}")

    def resumed(self, step: int, steps: int) -> None:
        """Says from where the training at work goes on."""
        self.run.announce(f"{self.name}: continues after step {step:,} of {steps:,}")

    def sampler(self, checkpoint: Checkpoint, sampling: SamplingConfig, dtype: str) -> Sampler:
        """A sampler for this model and these settings; programs are shared by all settings and policies of one shape,
        whose tokenizers may differ."""
        config = checkpoint.config
        key = (config, shape_settings(sampling), checkpoint.stop_ids, dtype)
        if key not in self.samplers:
            mesh = self.layout(checkpoint, sampling, dtype).mesh
            self.samplers[key] = Sampler(config, sampling, checkpoint.stop_ids, mesh, checkpoint.decode_text,
                                         jnp.dtype(dtype))
        return self.samplers[key].with_settings(sampling, checkpoint.decode_text)
