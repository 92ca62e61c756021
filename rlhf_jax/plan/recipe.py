"""The stages of a config, their models' shapes, and how much of each a whole run asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.config.commands import GenerateCommand, RewardCommand, ScoreCommand, SftCommand
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.plan import Assumptions
from rlhf_jax.config.preference import DpoCommand, PreferenceOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.scorer import (
    CombineScoring,
    FunctionScoring,
    JudgeScoring,
    LocalJudgeScoring,
    RewardServerScoring,
    ScorerModel,
    ScorerOptions,
)
from rlhf_jax.config.training import RewardOptions
from rlhf_jax.models import DecoderConfig
from rlhf_jax.plan.shapes import (
    PassShape,
    Shape,
    TrainShape,
    reference_shape,
    sample_shapes,
    score_shape,
    train_shape,
)
from rlhf_jax.sampling import prefill_rows
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds import kind_of, trainable_kind
from rlhf_jax.workflow.meshes import Trains, quoting, trainings


class Shards(NamedTuple):
    """How prompts are handed to hosts: in shards of `size` of the `prompts` of a round."""

    prompts: float
    size: int

    def largest_share(self, hosts: int) -> float:
        """Share of the work that the host with most shards does; the others wait for it."""
        each = math.ceil(math.ceil(self.prompts / self.size) / hosts)
        return min(1.0, each * self.size / self.prompts)


@dataclasses.dataclass(frozen=True)
class Task:
    """A stage and how many groups (examples, pairs or prompts) the whole run puts through it, epochs included.

    shards: how hosts share them where each works by itself; None for evenly.
    """

    stage: Shape
    groups: float
    shards: Shards | None = None

    def calls(self, ways: int, hosts: int = 1) -> int:
        """How often its program runs. ways: pieces the mesh cuts a batch into; hosts: meshes that share the work."""
        share = 1 / hosts if self.shards is None else self.shards.largest_share(hosts)
        return math.ceil(self._calls(ways) * share)

    def _calls(self, ways: int) -> int:
        stage = self.stage
        if isinstance(stage, TrainShape):
            return math.ceil(self.groups / stage.options.train.train_batch_size)
        if isinstance(stage, PassShape):
            return math.ceil(self.groups / stage.groups_per_row / (stage.rows * ways))
        if stage.name == "prefill":
            return math.ceil(self.groups / prefill_rows(stage.sampling.slots, ways))
        s = stage.sampling
        tokens = self.groups * s.num_generations * stage.assume.response_tokens
        return math.ceil(tokens / (s.in_flight * s.block))


def shape_of(name: str) -> DecoderConfig:
    """The shape of a model from its config.json alone, a folder's or a hub name's; weights are never fetched."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(name, "config.json")).parent
        except (OSError, ValueError) as error:
            raise ValueError(f"{name!r} is no folder on this machine, and the hub did not give its config.json: "
                             f"{error}. A folder that holds nothing but config.json is enough for a plan") from error
    return Checkpoint(folder).config


def tasks_of(command: Any, model: str, assume: Assumptions, examples: int) -> list[Task]:
    """What a parsed config computes, in the order of a run.

    Args:
      command: an `ExperimentConfig` or the options of a verb. model: folder of the policy's shape.
      examples: rows of each data set whose size the config does not say; also prompts of a round.
    """
    config = shape_of(model)

    def count(data: Any) -> int:
        return data.rows.max_samples or examples

    match command:
        case ExperimentConfig():
            return _experiment(command, config, assume, examples)
        case SftCommand(data=data) | RewardCommand(data=data):
            return [_training(one, config, assume, [count(data)]) for one in trainings(command, config.max_position)]
        case DpoCommand(data=data):
            (one,) = trainings(command, config.max_position)
            return _with_reference(_training(one, config, assume, [count(data)]), count(data))
        case GenerateCommand(data=data) if command.sampling.engine is None:
            return _sampling(config, command.sampling, command.dtype, data.render, assume, count(data),
                             Shards(count(data), command.shard_size))
        case ScoreCommand():
            shards = Shards(examples, command.shard_size) if command.input is None else None
            return _scoring(config, command.scorer, 8, assume, examples, shards)
    raise ValueError(f"a {type(command).__name__} compiles nothing that needs a plan; give the config of iterate, sft, "
                     "reward, dpo, generate or score")


def _training(training: Trains, config: DecoderConfig, assume: Assumptions, fits: Sequence[float]) -> Task:
    """fits: examples of each time that it is done."""
    options = training.options
    if isinstance(options, RewardOptions):
        kind = trainable_kind(options)
        config, fits = kind.shape(options, config), [examples * kind.examples_per_pair(options) for examples in fits]
    train = options.train
    groups = sum(fits) * train.num_train_epochs if train.max_steps is None else (
        len(fits) * train.max_steps * train.train_batch_size)
    return Task(train_shape(training, config, assume), groups)


def _with_reference(train: Task, pairs: float) -> list[Task]:
    """A preference stage after the pass over its reference, if its loss has one."""
    shape = train.stage
    assert isinstance(shape, TrainShape)
    assert isinstance(shape.options, PreferenceOptions)
    return [*([Task(reference_shape(shape), pairs)] if shape.options.loss.needs_reference else []), train]


def _sampling(config: DecoderConfig, sampling: SamplingConfig, dtype: str, render: RenderOptions, assume: Assumptions,
              prompts: float, shards: Shards) -> list[Task]:
    if sampling.engine is not None:
        return []  # not by our programs
    return [Task(shape, prompts, shards) for shape in sample_shapes(config, sampling, dtype, render, assume)]


def _scoring(config: DecoderConfig, scorer: ScorerOptions, responses: int, assume: Assumptions, prompts: float,
             shards: Shards | None) -> list[Task]:
    if isinstance(scorer, CombineScoring):
        return [] if scorer.scorer is None else _scoring(config, scorer.scorer, responses, assume, prompts, shards)
    kind = kind_of(scorer)
    if kind.passes is None or isinstance(
            scorer, FunctionScoring | JudgeScoring | LocalJudgeScoring | RewardServerScoring):
        return []
    passes = kind.passes(scorer, responses)
    lengths = quoting(assume, passes.quoted, passes.response_tokens)
    shape = score_shape(kind.shape(config), scorer.kind, scorer.model.max_length, passes.answers, lengths,
                        scorer.model.dtype)
    return [Task(shape, prompts * passes.questions * passes.answers / shape.responses, shards)]


def _experiment(c: ExperimentConfig, config: DecoderConfig, assume: Assumptions, examples: int) -> list[Task]:
    found = {one.name: one for one in trainings(c, config.max_position)}
    tasks = []
    if c.sft is not None:
        tasks.append(_training(found["sft"], config, assume, [c.sft.data.rows.max_samples or examples]))
    labelled = 0 if c.reward is None else c.reward.data.rows.max_samples or examples
    if c.reward is not None:
        (reward,) = (one for one in found.values() if one.options is c.reward.train)
        tasks.append(_training(reward, config, assume, [labelled]))
    each = c.loop.prompts_per_round or examples
    prompts = each * c.loop.rounds * (1 + ("matched_dpo" in c.baselines) + ("raft" in c.baselines))
    shards = Shards(each, c.loop.shard_size)
    for sampling in c.loop.divided(c.sampling):
        if sampling is not None:
            tasks += _sampling(config, sampling, c.dpo.train.dtype, c.prompts.render, assume, prompts, shards)
    scorer = c.scorer or _trained_scorer(c)
    name = getattr(getattr(getattr(scorer, "scorer", scorer), "model", None), "model_name_or_path", None)
    shape = shape_of(name) if name is not None and (Path(name).expanduser() / "config.json").is_file() else config
    tasks += _scoring(shape, scorer, c.sampling.num_generations, assume, prompts, shards)
    fits = _fits(c, each, labelled)
    if "dpo" in found:
        tasks += _with_reference(_training(found["dpo"], config, assume, fits["dpo"]), sum(fits["dpo"]))
    if "raft" in found:
        tasks.append(_training(found["raft"], config, assume, fits["raft"]))
    return tasks


def _fits(c: ExperimentConfig, each: int, labelled: int) -> dict[str, list[float]]:
    """Method -> groups of each training by it, those of baselines behind those of the rounds."""
    kept = {"fresh": 1, "accumulate": c.loop.rounds, "window": c.loop.window}[c.loop.data_policy]
    rounds = [float(each * min(number, kept)) for number in range(1, c.loop.rounds + 1)]
    fits: dict[str, list[float]] = {"dpo": [], "raft": []}
    fits[c.loop.method] += rounds
    if "matched_dpo" in c.baselines:
        fits[c.loop.method].append(float(each * c.loop.rounds))
    if "offline_dpo" in c.baselines:
        fits["dpo"].append(float(labelled))
    if "raft" in c.baselines:
        fits["raft"] += rounds
    return fits


def scope_of(command: Any) -> list[str]:
    """What of a run the tasks leave out, and what they hold beside its rounds, in sentences."""
    if not isinstance(command, ExperimentConfig):
        return []
    names = [name for name in ("evaluation", "selection") if getattr(command, name) is not None]
    told = [f"not counted: what {' and '.join(names)} sample and score"] if names else []
    return [*told, *([f"the baselines {', '.join(command.baselines)} are counted with the rounds"]
                     if command.baselines else [])]


def _trained_scorer(c: ExperimentConfig) -> ScorerOptions:
    assert c.reward is not None
    return trainable_kind(c.reward.train).served(c.reward.train, ScorerModel.trained(
        "trained in this run", c.reward.data.render))


def stages_named(tasks: list[Task], names: tuple[str, ...]) -> list[Task]:
    """The tasks whose stage is named; all where `names` is empty.

    Raises:
      ValueError: for a name that the config has no stage of.
    """
    known = [task.stage.name for task in tasks]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"this config has no stage {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return [task for task in tasks if not names or task.stage.name in names]


def smallest_batch(tasks: list[Task]) -> int | None:
    """Packed rows of the smallest batch that is trained on, None if nothing is."""
    return min((task.stage.rows() for task in tasks if isinstance(task.stage, TrainShape)), default=None)
