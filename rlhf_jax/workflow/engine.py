"""An engine outside of this program as what samples a stage's shards."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import read_groups
from rlhf_jax.models import Params
from rlhf_jax.parallel import Notice, on_main
from rlhf_jax.remote import Client
from rlhf_jax.sampling import LogpTolerance
from rlhf_jax.sampling.ending import Ending
from rlhf_jax.sampling.external import EngineMismatch, ExternalSampler, shares
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.engine_gate import EngineGate, drawn_map
from rlhf_jax.workflow.hand_over import LOG, Probe, hand_over
from rlhf_jax.workflow.products import ANSWERS


def check_whole(policy: Checkpoint, sampling: SamplingConfig) -> None:
    """Raises ValueError for an adapter, of which an engine cannot be given a folder."""
    if sampling.engine is not None and policy.adapter is not None:
        raise ValueError(f"{policy.adapter} is an adapter, and an engine is given one folder of whole weights. "
                         f"Merge it first: rlhf-jax export {policy.adapter} --output_dir MERGED")


class _Leaving(Exception):
    """This process was asked to leave while an engine was being asked."""


class EngineSource:
    """Shards by an engine that is given the weights first. What it answers is kept until its shard is written, so that
    a run that is killed asks for none of it again; what does not pass the gate is not kept.

    Args:
      policy: who answers. sampling: settings, with an engine. params: the policy's weights in the sampler's layout, in
        `dtype`. folder: of the stage.
    """

    def __init__(self, policy: Checkpoint, sampling: SamplingConfig, dtype: str, params: Params, folder: Path,
                 context: Context):
        assert sampling.engine is not None
        self.mesh, self._sampling = context.layout(policy, sampling, dtype).mesh, sampling
        self._policy, self._engine, self._params, self._dtype = policy, sampling.engine, params, dtype
        self._ending = Ending.by(policy.stop_ids, sampling.stop_strings, policy.decode_text)
        check = drawn_map(Compute(policy.config, mesh=self.mesh), self.mesh, sampling.filters)
        self._gate = EngineGate(check, sampling, dtype, policy)
        self._sampler = ExternalSampler(sampling, policy.config.vocab_size, self._ending)
        self._folder, self._context = folder, context
        self._seen: dict[int, LogpTolerance] = {}

    def hand_over(self, prompts: Sequence[PromptGroup], needed: bool) -> None:
        """Gives the engine the weights, unless all shards are there already; all processes call it.

        Raises:
          HandOverFailed, StaleWeights, EngineMismatch: as `hand_over.hand_over`.
        """
        earlier, folder = self._context.sampled.policy, self._policy.folder.resolve()
        if not on_main(lambda: needed):
            return
        previous = None
        if earlier is not None and earlier.key != self._policy.key:
            previous = self._context.handed_over(earlier, self._sampling, self._dtype).params
        probe = Probe(self._gate, self._params, previous, prompts, self._ending)
        say = self._context.run.announce
        seconds = on_main(lambda: hand_over(self._engine, folder, self._folder / LOG, probe, say))
        say(f"{self._context.name}: {', '.join(self._engine.addresses)} answers for {folder} after {seconds:.1f} s")

    def sample(self, number: int, prompts: Sequence[PromptGroup], notice: Notice, progress: Callable[[int], None]
               ) -> list[PromptGroup] | None:
        """See `Source`.

        Raises:
          EngineMismatch: what the engine gives is not the policy's; none of the shard's answers is kept.
          RemoteError: as `ExternalSampler.generate`.
        """
        client = Client(self._engine.server, self._kept(number), jax.process_index(), jax.process_count(),
                        replicas=self._engine.addresses[1:], name=self._engine.name)
        per_prompt, answered = len(shares(self._sampler.sampling)), 0

        def count(more: int) -> None:
            nonlocal answered
            answered += more
            progress(answered // per_prompt)
            if notice.noted():
                raise _Leaving

        try:
            with contextlib.closing(client):
                groups = self._sampler.generate(client, prompts, count)
            origins = [[client.origin(question) for question in self._sampler.questions(prompt)] for prompt in prompts]
            self._seen[number] = self._gate.check(self._params, groups, origins)
        except _Leaving:
            return None
        except EngineMismatch:
            shutil.rmtree(self._kept(number), ignore_errors=True)
            raise
        return groups

    def check(self, number: int, path: Path) -> LogpTolerance:
        """See `Source`; a shard of an earlier command is looked at again."""
        shutil.rmtree(self._kept(number), ignore_errors=True)
        return self._seen.get(number) or self._gate.check(self._params, read_groups(path))

    def report(self) -> Mapping[str, Any]:
        """See `Source`."""
        with contextlib.suppress(OSError):  # other processes still have theirs there
            (self._folder / ANSWERS).rmdir()
        return {"engine": dict(self._engine.sampled_by)}

    def _kept(self, number: int) -> Path:
        return self._folder / ANSWERS / f"{number:05d}"
