"""Academic tasks put to a policy, through lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.evaluation.harness.kept import Kept
from rlhf_jax.evaluation.harness.programs import can_cut_network
from rlhf_jax.models import cast
from rlhf_jax.parallel import is_main_process
from rlhf_jax.training.compiles import count_compiles
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import METRICS
from rlhf_jax.workflow.stage import Stage, fingerprint, hash_path, write_json_atomic

if TYPE_CHECKING:  # it imports the harness
    from rlhf_jax.evaluation.harness.choice import Choice


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Tasks by name, and the folder of their rows; None for the hub's."""

    names: tuple[str, ...]
    data_dir: str | None

    @cached_property
    def choice(self) -> Choice:
        """Raises ValueError or SourceError: see `choose`."""
        from rlhf_jax.evaluation.harness.choice import choose

        return choose(self.names, self.data_dir)

    @cached_property
    def key(self) -> str:
        """The tasks, and the contents of their files."""
        files = {benchmark: {split: hash_path(path) for split, path in some.items()}
                 for benchmark, some in self.choice.files.items()}
        return fingerprint({"names": self.names, "files": files})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessStage(Stage):
    """A policy's answers to academic tasks, scored by the harness: `metrics.json`, and its own files in `lm_eval`.

    What was answered is kept until the stage is done, so that a killed command continues.

    Attributes:
      version: of the harness.
      max_samples: rows of each task, from the start; None for all.
      max_new_tokens: of each answer; None for what its task says.
      allow_code: programs that the policy wrote may be run.
      label, slots: what official files call the policy, and answers in flight; no inputs.
    """

    policy: Checkpoint
    tasks: TaskRows
    version: str
    num_fewshot: int | None
    max_samples: int | None
    seed: int
    apply_chat_template: bool
    max_new_tokens: int | None
    dtype: str
    allow_code: bool
    label: str
    slots: int

    def inputs(self) -> dict[str, Any]:
        return {name: value for name, value in super().inputs().items() if name not in ("label", "slots")}

    def preview(self, context: Context) -> Preview:
        del context
        self._check()
        return Preview(self.policy)

    def _check(self) -> None:
        """Raises ValueError for what cannot be run, before any weights are read."""
        self.tasks.choice.check(self.num_fewshot, self.allow_code)
        if self.apply_chat_template and not self.policy.tokenizer.chat_template:
            raise ValueError(f"apply_chat_template is set and the tokenizer of {self.policy.folder} has no chat "
                             "template; set policy.chat_template_path, or leave apply_chat_template out")

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        from rlhf_jax.evaluation.harness.model import HarnessModel, Subject
        from rlhf_jax.evaluation.harness.run import estimates, run_tasks

        self._check()
        self._announce_limits(context)
        dtype, kept = jnp.dtype(self.dtype), Kept(folder, context.progress)
        one_each = SamplingConfig(num_generations=1, slots=self.slots)
        params = cast(context.handed_over(self.policy, one_each, self.dtype).params, dtype)
        subject = Subject(self.label, self.policy.config, self.policy.tokenizer, params,
                          context.layout(self.policy, one_each, self.dtype).mesh, dtype, self.policy.stop_ids,
                          self.policy.decode_text, self.max_new_tokens, self.slots, self.seed)
        model = HarnessModel(subject, kept)
        with count_compiles() as compiles:
            results = run_tasks(model, self.tasks.choice, folder, label=self.label, num_fewshot=self.num_fewshot,
                                limit=self.max_samples, apply_chat_template=self.apply_chat_template,
                                allow_code=self.allow_code)
        numbers = {name: estimate.to_json() for name, estimate in estimates(results).items()}
        kept.drop()
        if is_main_process():
            write_json_atomic(folder / METRICS, {"benchmark": f"lm_eval {self.version}", "numbers": numbers,
                                                 "num_fewshot": results["n-shot"], "versions": results["versions"]})
        if model.truncated:
            context.run.announce(f"{model.truncated:,} prompts are longer than the model's "
                                 f"{self.policy.config.max_position:,} positions allow and lost their beginning")
        return {"numbers": numbers, "num_fewshot": results["n-shot"], "truncated": model.truncated,
                "compiled_programs": compiles.programs}

    def _announce_limits(self, context: Context) -> None:
        """Says what programs may do here, if there are any to run."""
        if any(leaf.runs_code for leaf in self.tasks.choice.leaves):
            context.run.announce("programs that the model wrote are run within limits of time and memory, "
                                 + ("without a network" if can_cut_network() else "and WITH the network of this "
                                    "machine: the system does not let them be cut off from it"))
