"""The stages of a config, their models' shapes, and how much of each a whole run asks for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from rlhf_jax.models import DecoderConfig
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.workflow.commands import DpoCommand, GenerateCommand, RewardCommand, ScoreCommand, SftCommand
from rlhf_jax.workflow.experiment_config import ExperimentConfig
from rlhf_jax.workflow.options import (
    DataOptions,
    PreferenceOptions,
    RewardOptions,
    ScorerOptions,
    SftOptions,
    part,
)
from rlhf_jax.workflow.plan.stages import (
    Assumptions,
    PassStage,
    Stage,
    TrainStage,
    reference_stage,
    sample_stages,
    score_stage,
    train_stage,
)
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.reward_model import reward_config

DATA_FACTOR = {"fresh": lambda rounds, window: rounds, "accumulate": lambda rounds, window: rounds * (rounds + 1) / 2,
               "window": lambda rounds, window: sum(min(i, window) for i in range(1, rounds + 1))}
"""Data policy -> rounds' worth of pairs that are trained on in all."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A stage and how many groups (examples, pairs or prompts) the whole run puts through it, epochs included."""

    stage: Stage
    groups: float

    def calls(self, ways: int, hosts: int = 1) -> int:
        """How often its program runs. ways: pieces the mesh cuts a batch into; hosts: meshes that share the work."""
        return math.ceil(self._calls(ways) / hosts)

    def _calls(self, ways: int) -> int:
        stage = self.stage
        if isinstance(stage, TrainStage):
            return math.ceil(self.groups / stage.options.train_batch_size)
        if isinstance(stage, PassStage):
            return math.ceil(self.groups / stage.groups_per_row / (stage.rows * ways))
        if stage.name == "prefill":
            return math.ceil(self.groups / max(1, stage.sampling.slots // 4))
        s = stage.sampling
        tokens = self.groups * s.num_generations * stage.assume.response_tokens
        return math.ceil(tokens / (s.slots * (s.lanes or s.num_generations) * s.block))


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
      command: an `ExperimentConfig` or the command of a verb. model: folder of the policy's shape.
      examples: rows of each data set whose size the config does not say; also prompts of a round.
    """
    config = shape_of(model)
    if isinstance(command, ExperimentConfig):
        return _experiment(command, config, assume, examples)
    data: DataOptions = part(command, DataOptions) if not isinstance(command, ScoreCommand) else DataOptions()
    count = data.max_samples or examples
    match command:
        case SftCommand():
            return [_training("sft", config, part(command, SftOptions), data, assume, count)]
        case RewardCommand():
            return [_reward(config, part(command, RewardOptions), data, assume, count)]
        case DpoCommand():
            train = _training("dpo", config, part(command, PreferenceOptions), data, assume, count)
            return _with_reference(train, count)
        case GenerateCommand():
            return _sampling(config, command, command.dtype, data, assume, count)
        case ScoreCommand():
            return _scoring(config, part(command, ScorerOptions), 8, assume, count)
    raise ValueError(f"a {type(command).__name__} compiles nothing that needs a plan; give the config of iterate, sft, "
                     "reward, dpo, generate or score")


def _training(name: str, config: DecoderConfig, options: Any, data: DataOptions | None, assume: Assumptions,
              count: float) -> Task:
    return Task(train_stage(name, config, options, data, assume), count * options.num_train_epochs)


def _reward(config: DecoderConfig, options: RewardOptions, data: DataOptions, assume: Assumptions, count: float
            ) -> Task:
    if options.kind == "pairwise":  # one row holds the question with both answers
        both = dataclasses.replace(assume, prompt_tokens=assume.prompt_tokens + 2 * assume.response_tokens,
                                   response_tokens=2)
        return _training("pairwise", config, options, data, both, count)
    return _training("reward", config if config.is_classifier else reward_config(config), options, data, assume, count)


def _with_reference(train: Task, pairs: float) -> list[Task]:
    """A preference stage after the pass over its reference, if its loss has one."""
    stage = train.stage
    assert isinstance(stage, TrainStage)
    assert isinstance(stage.options, PreferenceOptions)
    return [*([Task(reference_stage(stage), pairs)] if stage.options.loss.needs_reference else []), train]


def _sampling(config: DecoderConfig, sampling: Any, dtype: str, data: DataOptions, assume: Assumptions,
              prompts: float) -> list[Task]:
    settings = part(sampling, SamplingConfig)
    return [Task(stage, prompts) for stage in sample_stages(config, settings, dtype, data, assume)]


def _scoring(config: DecoderConfig, scorer: ScorerOptions, responses: int, assume: Assumptions, prompts: float
             ) -> list[Task]:
    if scorer.kind == "function":
        return []
    if scorer.kind == "pairwise":  # each game is read in both orders, each a row's question of its own
        games = responses * (responses - 1) / 2 if scorer.method == "round_robin" else 2 * responses
        both = dataclasses.replace(assume, prompt_tokens=assume.prompt_tokens + 2 * assume.response_tokens,
                                   response_tokens=1)
        stage = score_stage(config, "letters", scorer.max_length, 1, both, scorer.dtype)
        return [Task(stage, 2 * games * prompts)]
    stage = score_stage(config if config.is_classifier else reward_config(config), "scores", scorer.max_length,
                        responses, assume, scorer.dtype)
    return [Task(stage, prompts * responses / stage.responses)]


def _experiment(c: ExperimentConfig, config: DecoderConfig, assume: Assumptions, examples: int) -> list[Task]:
    tasks = []
    if c.sft is not None:
        tasks.append(_training("sft", config, c.sft.train, c.sft.data, assume, c.sft.data.max_samples or examples))
    if c.reward is not None:
        tasks.append(_reward(config, c.reward.train, c.reward.data, assume, c.reward.data.max_samples or examples))
    each = c.loop.prompts_per_round or examples
    prompts = each * c.loop.rounds
    tasks += _sampling(config, c.sampling, c.dpo.dtype, c.prompts, assume, prompts)
    scorer = c.scorer or _trained_scorer(c)
    name = scorer.model_name_or_path
    shape = shape_of(name) if name is not None and (Path(name).expanduser() / "config.json").is_file() else config
    tasks += _scoring(shape, scorer, c.sampling.num_generations, assume, prompts)
    limits = dataclasses.replace(c.prompts, max_length=_pair_length(c, config))
    trained = each * DATA_FACTOR[c.loop.data_policy](c.loop.rounds, c.loop.window)
    if c.loop.method == "raft":
        return [*tasks, _training("raft", config, c.raft, limits, assume, trained)]
    return [*tasks, *_with_reference(_training("dpo", config, c.dpo, limits, assume, trained), trained)]


def _trained_scorer(c: ExperimentConfig) -> ScorerOptions:
    assert c.reward is not None
    return ScorerOptions(c.reward.train.kind, "trained in this run", max_length=c.reward.data.max_length)


def _pair_length(c: ExperimentConfig, config: DecoderConfig) -> int:
    """Tokens of the longest prompt with the longest sampled answer."""
    prompt = c.prompts.max_prompt_length or c.sampling.prompt_length or c.sampling.max_new_tokens
    return min(prompt + c.sampling.max_new_tokens, config.max_position)


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
    return min((task.stage.rows() for task in tasks if isinstance(task.stage, TrainStage)), default=None)
