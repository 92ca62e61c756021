"""Options of labelling the steps of solutions by rollouts."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.config.data import DataOptions
from rlhf_jax.config.mesh import MeshChoice, MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.fields import COUNT, Flat, Options, at_least

Answers = Literal["gsm8k", "gsm8k_flexible", "math"]
StepLabels = Literal["hard", "soft"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsCommand(Options):
    """Labelling the steps of sampled solutions by rollouts, as rows for a process model: OUTPUT_DIR/steps-*.jsonl.

    Attributes:
      model_name_or_path: folder of the model that solves the problems and completes the steps.
      output_dir: where the rows go, and the solutions, shard-*.jsonl, as `generate` writes them.
      completions: sampled from each step of a solution but the last, which is worth what the solution is.
      labels: what column `labels` holds, "hard": + where a completion is right, else -; or "soft": the share of right
        ones, which column `values` holds in any case.
      step_separator: where the text of a solution is cut into steps.
      answers: how answers are found and compared: gsm8k (a number behind ####), gsm8k_flexible (the last number), or
        math (LaTeX in a box; needs the extra `math`).
      answer_column: of the problems' rows, which holds the reference.
      dtype: of weights, caches and computation.
      shard_size: problems in one shard; what a killed run loses at most.
      mesh: of devices; "auto" chooses by their number and memory, the model and the batch.
      data: the problems.
      sampling: of solutions, num_generations of each problem; completions are sampled alike.
    """

    model_name_or_path: str
    output_dir: str
    completions: Annotated[int, at_least(1, 65_536)] = 16
    labels: StepLabels = "hard"
    step_separator: str = "\n\n"
    answers: Answers = "gsm8k"
    answer_column: str = "answer"
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_size: Annotated[int, COUNT] = 128
    mesh: MeshChoice = MeshConfig()
    data: Flat[DataOptions] = DataOptions()
    sampling: Flat[SamplingConfig] = SamplingConfig(num_generations=15, temperature=0.7, max_new_tokens=2048)

    def conflicts(self) -> None:
        if not self.step_separator:
            raise ValueError("step_separator is empty; give what stands between two steps, such as a line end")
        if isinstance(self.sampling.temperature, tuple):
            raise ValueError(f"temperature = {self.sampling.temperature}; solutions and completions are sampled at one "
                             "temperature, give that")
        if self.sampling.prompt_length is not None:
            raise ValueError(f"prompt_length = {self.sampling.prompt_length} has no effect: completions go on from "
                             "solutions, and their prompts are as long as those may become; leave it out")

    @property
    def rollouts(self) -> SamplingConfig:
        """How completions are sampled."""
        lanes = None if self.sampling.lanes is None else min(self.sampling.lanes, self.completions)
        return dataclasses.replace(self.sampling, num_generations=self.completions, lanes=lanes)
