"""Options of plans."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from rlhf_jax.fields import COUNT, Options, above, at_least, only_with


@dataclasses.dataclass(frozen=True)
class Assumptions(Options):
    """What a plan cannot read from a config: how long real examples are, and how close to its peak a device runs.

    Attributes:
      prompt_tokens: of an average example; UltraFeedback's have 162 (table 5 of arXiv 2405.07863).
      response_tokens: of an average example; UltraFeedback's have 280, chat models' answers more. A conversation for
        fine-tuning has prompt and response together.
      groups_per_row: prompt groups that packing puts in a row; None for what fits by the averages.
      targets_per_row: trained tokens a row has room for; None for all of them, the most a row can ask for.
      efficiency: share of the roofline's speed that a run reaches; hours are given at this.
    """

    prompt_tokens: Annotated[int, COUNT] = 200
    response_tokens: Annotated[int, COUNT] = 350
    groups_per_row: Annotated[float | None, at_least(1)] = None
    targets_per_row: Annotated[int | None, COUNT] = None
    efficiency: Annotated[float, above(0, 1)] = 0.5

    def group_tokens(self, responses: int) -> int:
        return self.prompt_tokens + responses * self.response_tokens


_PLANNED = only_with("accelerator")
PlannedVerb = Literal["iterate", "sft", "reward", "dpo", "generate", "score"]


@dataclasses.dataclass(frozen=True)
class PlanOptions(Options):
    """Compiling the programs of a config for an accelerator that need not be here: memory, traffic, time.

    All other keys are those of the config's own verb; its data are not read, and of its model only config.json, which
    may lie in the folder `model` beside the config. A stage takes seconds to nine minutes on two CPU cores, a recipe of
    configs/ 3 to 16 minutes; what came of each stage is said as it is done.

    Attributes:
      accelerator: as its cloud spells it: v5p-16 (TensorCores, two per chip), v5e-64 and v6e-16 (chips), 2xv5e-256
        (slices), 8xH100, 4x8xH100 (hosts), cpu-8.
      prove_layout: instead of a plan, take the config's first training step on the devices that are here, small, on
        several meshes and orders of them, and fail where it is not the step of one device.
      verb: whose config it is; None to tell by its keys.
      stages: of sft, reward, pairwise, prefill, decode, score, reference, dpo; empty for all that the config has.
      sweep: try the sensible meshes and rank them, instead of the config's.
      optimise: try meshes, rows, recomputation, lengths of rows, slots and shares of caches for each stage; show which
        is best in hours or memory, and choose.
      keys: YAML file for what `optimise` chose, to be given as a second --config.
      tries: compilations spent on finding what makes a stage fit that does not; with `optimise`, on each stage.
      assume: what the data will look like.
      examples: rows of each data set, and prompts of a round, where the config does not say.
      output: JSON file for all numbers.
    """

    accelerator: str | None = None
    prove_layout: bool = False
    verb: PlannedVerb | None = None
    stages: str | tuple[str, ...] = ()
    sweep: Annotated[bool, _PLANNED] = False
    optimise: Annotated[bool, _PLANNED] = False
    keys: Annotated[str | None, only_with("optimise")] = None
    tries: Annotated[int, at_least(0), _PLANNED] = 6
    assume: Assumptions = Assumptions()
    examples: Annotated[int, COUNT] = 20_000
    output: Annotated[str | None, _PLANNED] = None

    def conflicts(self) -> None:
        if (self.accelerator is None) != self.prove_layout:
            raise ValueError("accelerator names what to plan for, prove_layout runs on the devices that are here; give "
                             "one of the two: --accelerator v5p-16, or --prove_layout true")
        if self.optimise and self.sweep:
            raise ValueError("optimise tries the meshes that sweep does, and more; leave sweep out")
        if self.optimise and not self.tries:
            raise ValueError("optimise with tries = 0 would compile nothing; give the compilations for each stage")

    @property
    def stage_names(self) -> tuple[str, ...]:
        given = self.stages.split(",") if isinstance(self.stages, str) else self.stages
        return tuple(name.strip() for name in given if name.strip())
