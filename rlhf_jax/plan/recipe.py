"""The stages of a config, their models' shapes, and how much of each a whole run asks for."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

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
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds import kind_of, trainable_kind

DATA_FACTOR = {"fresh": lambda rounds, window: rounds, "accumulate": lambda rounds, window: rounds * (rounds + 1) / 2,
               "window": lambda rounds, window: sum(min(i, window) for i in range(1, rounds + 1))}
"""Data policy -> rounds' worth of pairs that are trained on in all."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A stage and how many groups (examples, pairs or prompts) the whole run puts through it, epochs included."""

    stage: Shape
    groups: float

    def calls(self, ways: int, hosts: int = 1) -> int:
        """How often its program runs. ways: pieces the mesh cuts a batch into; hosts: meshes that share the work."""
        return math.ceil(self._calls(ways) / hosts)

    def _calls(self, ways: int) -> int:
        stage = self.stage
        if isinstance(stage, TrainShape):
            return math.ceil(self.groups / stage.options.train.train_batch_size)
        if isinstance(stage, PassShape):
            return math.ceil(self.groups / stage.groups_per_row / (stage.rows * ways))
        if stage.name == "prefill":
            return math.ceil(self.groups / max(1, stage.sampling.slots // 4))
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
        case SftCommand(data=data):
            return [_training("sft", config, command.options, data.render, assume, count(data))]
        case RewardCommand(data=data):
            return [_reward(config, command.options, data.render, assume, count(data))]
        case DpoCommand(data=data):
            train = _training("dpo", config, command.options, data.render, assume, count(data),
                              responses=command.options.responses)
            return _with_reference(train, count(data))
        case GenerateCommand(data=data) if command.sampling.engine is None:
            return _sampling(config, command.sampling, command.dtype, data.render, assume, count(data))
        case ScoreCommand():
            return _scoring(config, command.scorer, 8, assume, examples)
    raise ValueError(f"a {type(command).__name__} compiles nothing that needs a plan; give the config of iterate, sft, "
                     "reward, dpo, generate or score")


def _training(name: str, config: DecoderConfig, options: Any, render: RenderOptions, assume: Assumptions,
              count: float, responses: int = 1, fits: int = 1) -> Task:
    shape, train = train_shape(name, config, options, render, assume, responses), options.train
    groups = count * train.num_train_epochs if train.max_steps is None else (
        fits * train.max_steps * train.train_batch_size)
    return Task(shape, groups)


def _reward(config: DecoderConfig, options: RewardOptions, render: RenderOptions, assume: Assumptions, count: float
            ) -> Task:
    kind = trainable_kind(options)
    name = "reward" if kind.responses > 1 else options.kind
    return _training(name, kind.shape(options, config), options, render, _quoting(assume, kind.quoted, None),
                     count * kind.examples_per_pair(options), kind.responses)


def _quoting(assume: Assumptions, quoted: int, response_tokens: int | None) -> Assumptions:
    """The lengths of rows whose prompt holds so many answers; what is answered then takes a letter and a stop token."""
    if not quoted:
        return assume
    return dataclasses.replace(assume, prompt_tokens=assume.prompt_tokens + quoted * assume.response_tokens,
                               response_tokens=response_tokens or 2)


def _with_reference(train: Task, pairs: float) -> list[Task]:
    """A preference stage after the pass over its reference, if its loss has one."""
    shape = train.stage
    assert isinstance(shape, TrainShape)
    assert isinstance(shape.options, PreferenceOptions)
    return [*([Task(reference_shape(shape), pairs)] if shape.options.loss.needs_reference else []), train]


def _sampling(config: DecoderConfig, sampling: SamplingConfig, dtype: str, render: RenderOptions, assume: Assumptions,
              prompts: float) -> list[Task]:
    if sampling.engine is not None:
        return []  # not by our programs
    return [Task(shape, prompts) for shape in sample_shapes(config, sampling, dtype, render, assume)]


def _scoring(config: DecoderConfig, scorer: ScorerOptions, responses: int, assume: Assumptions, prompts: float
             ) -> list[Task]:
    if isinstance(scorer, CombineScoring):
        return [] if scorer.scorer is None else _scoring(config, scorer.scorer, responses, assume, prompts)
    kind = kind_of(scorer)
    if kind.passes is None or isinstance(
            scorer, FunctionScoring | JudgeScoring | LocalJudgeScoring | RewardServerScoring):
        return []
    passes = kind.passes(scorer, responses)
    lengths = _quoting(assume, passes.quoted, passes.response_tokens)
    shape = score_shape(kind.shape(config), scorer.kind, scorer.model.max_length, passes.answers, lengths,
                        scorer.model.dtype)
    return [Task(shape, prompts * passes.questions * passes.answers / shape.responses)]


def _experiment(c: ExperimentConfig, config: DecoderConfig, assume: Assumptions, examples: int) -> list[Task]:
    tasks = []
    if c.sft is not None:
        tasks.append(_training("sft", config, c.sft.train, c.sft.data.render, assume,
                               c.sft.data.rows.max_samples or examples))
    if c.reward is not None:
        tasks.append(_reward(config, c.reward.train, c.reward.data.render, assume,
                             c.reward.data.rows.max_samples or examples))
    each = c.loop.prompts_per_round or examples
    prompts = each * c.loop.rounds
    for sampling in c.loop.divided(c.sampling):
        if sampling is not None:
            tasks += _sampling(config, sampling, c.dpo.train.dtype, c.prompts.render, assume, prompts)
    scorer = c.scorer or _trained_scorer(c)
    name = getattr(getattr(getattr(scorer, "scorer", scorer), "model", None), "model_name_or_path", None)
    shape = shape_of(name) if name is not None and (Path(name).expanduser() / "config.json").is_file() else config
    tasks += _scoring(shape, scorer, c.sampling.num_generations, assume, prompts)
    limits = dataclasses.replace(c.prompts.render, max_length=_pair_length(c, config))
    trained = each * DATA_FACTOR[c.loop.data_policy](c.loop.rounds, c.loop.window)
    if c.loop.method == "raft":
        return [*tasks, _training("raft", config, c.raft, limits, assume, trained, fits=c.loop.rounds)]
    train = _training("dpo", config, c.dpo, limits, assume, trained, responses=c.dpo.responses,
                      fits=c.loop.rounds)
    return [*tasks, *_with_reference(train, trained)]


def _trained_scorer(c: ExperimentConfig) -> ScorerOptions:
    assert c.reward is not None
    return trainable_kind(c.reward.train).served(c.reward.train, ScorerModel(
        "trained in this run", max_length=c.reward.data.render.max_length))


def _pair_length(c: ExperimentConfig, config: DecoderConfig) -> int:
    """Tokens of the longest prompt with the longest sampled answer."""
    prompt = c.prompts.render.max_prompt_length or c.sampling.prompt_length or c.sampling.max_new_tokens
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
    return min((task.stage.rows() for task in tasks if isinstance(task.stage, TrainShape)), default=None)
