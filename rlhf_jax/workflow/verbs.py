"""The single verbs: from a command's options to the stage it asks for."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.config.commands import (
    ExportCommand,
    GenerateCommand,
    PairsCommand,
    RewardCommand,
    ScoreCommand,
    SftCommand,
)
from rlhf_jax.config.data import PreferenceData, RowOptions, Sources, as_sources
from rlhf_jax.config.evaluation import AgreementCommand, EvaluateCommand
from rlhf_jax.config.harness import PolicyOptions
from rlhf_jax.config.mixes import DataCommand
from rlhf_jax.config.pairs import ENHANCER
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.config.probe import FeaturesCommand, ProbeCommand
from rlhf_jax.config.steps import StepsCommand
from rlhf_jax.data.answers import find_rule
from rlhf_jax.data.rows import Kind
from rlhf_jax.evaluation.harness import check_installed
from rlhf_jax.fields import flattened
from rlhf_jax.workflow.benchmarking import find_benchmark
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import FittingRows, GroupSource, PairFile, RenderedRows
from rlhf_jax.workflow.enhancer import EarlierPairs, StoredStates
from rlhf_jax.workflow.features import Features
from rlhf_jax.workflow.kinds import open_scorer, trainable_kind
from rlhf_jax.workflow.products import FEATURES
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.agreement import AgreementStage, JudgeVerdicts
from rlhf_jax.workflow.stages.data import DataStage
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.evaluate import EvaluateStage, PreferenceRows, TrainingRows
from rlhf_jax.workflow.stages.export import ExportStage, find_source
from rlhf_jax.workflow.stages.features import FeaturesStage
from rlhf_jax.workflow.stages.harness import HarnessStage, TaskRows
from rlhf_jax.workflow.stages.length_bias import LengthBiasStage
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.probe import ProbeStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.score import ScoreStage
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.stages.shards import JoinedShards, RowShards, ShardFolder, Shards
from rlhf_jax.workflow.stages.solutions import StepAccuracyStage, VotingStage
from rlhf_jax.workflow.stages.steps import StepsStage


class _Rows:
    """The rows of a command in its model's ids, for training and for evaluation."""

    def __init__(self, command: SftCommand | RewardCommand | DpoCommand | GenerateCommand | FeaturesCommand
                 | StepsCommand, context: Context, kind: Kind, reader: type[RenderedRows] = RenderedRows, **more: Any):
        self._command, self._context, self._kind, self._reader, self._more = command, context, kind, reader, more
        data = command.data
        self.model = Checkpoint.find(command.model_name_or_path, data.render.chat_template_path)
        if isinstance(data, PreferenceData):
            self._more["graded"] = data.graded

    def _rendered(self, rows: RowOptions, name: str) -> RenderedRows:
        return self._reader(checkpoint=self.model, kind=self._kind, rows=rows, render=self._command.data.render,
                            benchmarks=self._command.data.benchmarks,
                            quarantine=self._context.quarantine(name), announce=self._context.run.announce,
                            **self._more)

    @property
    def train(self) -> RenderedRows:
        return self._rendered(self._command.data.rows, "train")

    def held_out(self, dataset_name: Sources, split: str | None, **more: Any) -> RenderedRows | None:
        if not dataset_name:
            return None
        rows = self._command.data.rows.held_out(dataset_name, split)
        return dataclasses.replace(self._rendered(rows, "eval"), **more)


def sft(command: SftCommand, context: Context) -> SftStage:
    """`rlhf-jax sft`."""
    rows = _Rows(command, context, "sft")
    return SftStage(start=rows.model.as_policy(), data=(rows.train,), options=command.options,
                    evaluation=rows.held_out(command.eval_dataset_name, command.eval_split))


def reward(command: RewardCommand, context: Context) -> RewardStage:
    """`rlhf-jax reward`."""
    kind = trainable_kind(command.options)
    rows = _Rows(command, context, kind.rows, kind.reader, prepare=partial(kind.examples, command.options),
                 scores=kind.reads_head)
    held_out = rows.held_out(command.eval_dataset_name, command.eval_split,
                             prepare=partial(kind.examples, kind.held_out(command.options)))
    return RewardStage(start=rows.model, data=(rows.train,), options=command.options, evaluation=held_out)


def dpo(command: DpoCommand, context: Context) -> DpoStage:
    """`rlhf-jax dpo`."""
    unpaired = command.options.loss.of_responses and not command.options.split_pairs
    rows = _Rows(command, context, "unpaired" if unpaired else "preference")
    start = rows.model.as_policy()
    reference = start if command.reference_model is None else Checkpoint.find(command.reference_model).as_policy()
    if reference is not start:
        check_vocabularies(start, reference, "The reference is asked for the probability of the policy's tokens; give "
                           "a reference_model with the policy's tokenizer")
    data: GroupSource = rows.train
    if command.pairs:
        data = PairFile(Path(command.pairs).expanduser(), vocab_size=start.config.vocab_size)
    return DpoStage(start=start, reference=reference if command.options.loss.needs_reference else None, data=(data,),
                    options=command.options,
                    evaluation=rows.held_out(command.eval_dataset_name, command.eval_split))


def generate(command: GenerateCommand, context: Context) -> SampleStage:
    """`rlhf-jax generate`."""
    rows = _Rows(command, context, "prompt")
    return SampleStage(policy=rows.model.as_policy(), prompts=rows.train, sampling=command.sampling,
                       dtype=command.dtype, shard_size=command.shard_size)


def score(command: ScoreCommand, context: Context) -> ScoreStage:
    """`rlhf-jax score`."""
    source: Shards = RowShards(command.rows, command.shard_size, context.quarantine("rows"))
    if command.input is not None:
        source = ShardFolder(Path(command.input))
    return ScoreStage(scorer=open_scorer(command.scorer, context.local_mesh, command.name, context.run.folder),
                      source=source, layout=command.layout, features=command.features)


def pairs(command: PairsCommand, context: Context) -> PairsStage:
    """`rlhf-jax pairs`."""
    del context
    folder = Path(command.input)
    source: ShardFolder | JoinedShards = ShardFolder(folder)
    if command.against is not None:
        source = JoinedShards(ShardFolder(folder), ShardFolder(Path(command.against)))
    return PairsStage(source=source, options=command.pairs, layout=command.layout,
                      states=StoredStates(folder / FEATURES) if command.pairs.rule == ENHANCER else None,
                      earlier=None if command.earlier is None else EarlierPairs(Path(command.earlier)))


def evaluate(command: EvaluateCommand, context: Context) -> Stage:
    """`rlhf-jax evaluate`."""
    if command.policy is not None:
        return _on_tasks(command, command.policy)
    if command.scorer is None:
        return _of_samples(command, ShardFolder(Path(str(command.input))))
    rows = PreferenceRows(command.rows, command.graded, context.quarantine("eval"), command.benchmark)
    find_benchmark(command.benchmark)
    scorer = flattened(command.scorer)
    names = [scorer[name] for name in ("model_name_or_path", "function", "model", "kind") if name in scorer]
    return EvaluateStage(scorer=open_scorer(command.scorer, context.local_mesh, "proxy", context.run.folder), data=rows,
                         seed=command.seed, tie_rule=command.tie_rule, model=str(names[0]),
                         trained_on=None if command.trained_on is None else TrainingRows(command.trained_on))


def agreement(command: AgreementCommand, context: Context) -> AgreementStage:
    """`rlhf-jax agreement`."""
    del context
    return AgreementStage(judges=tuple(JudgeVerdicts(Path(path).expanduser()) for path in as_sources(command.verdicts)),
                          seed=command.seed)


def _of_samples(command: EvaluateCommand, source: ShardFolder) -> Stage:
    """What is measured of scored samples."""
    if command.measure == "voting":
        find_rule(command.answers)  # what is missing is said before anything is read
        return VotingStage(source=source, score=command.score, answers=command.answers, max_n=command.max_n,
                           answer_column=command.answer_column, seed=command.seed)
    assert command.score is not None
    if command.measure == "steps":
        return StepAccuracyStage(source=source, score=command.score, seed=command.seed)
    return LengthBiasStage(source=source, score=command.score, unit=command.length_unit, seed=command.seed)


def _on_tasks(command: EvaluateCommand, policy: PolicyOptions) -> HarnessStage:
    """A policy's academic tasks; missing rows and unknown names are said before anything is loaded."""
    version = check_installed()
    model = Checkpoint.find(policy.model_name_or_path, policy.chat_template_path).as_policy()
    return HarnessStage(policy=model, tasks=TaskRows(command.task_names, command.data_dir), version=version,
                        num_fewshot=command.num_fewshot, max_samples=command.rows.max_samples, seed=command.seed,
                        apply_chat_template=policy.apply_chat_template, max_new_tokens=policy.max_new_tokens,
                        dtype=policy.dtype, allow_code=command.allow_code_execution, slots=policy.slots,
                        label=policy.label or Path(policy.model_name_or_path).name)


def features(command: FeaturesCommand, context: Context) -> FeaturesStage:
    """`rlhf-jax features`."""
    rows = _Rows(command, context, command.kind, FittingRows, scores=True)
    return FeaturesStage(model=rows.model, data=rows.train, pool=command.pool, dtype=command.dtype,
                         shard_size=command.shard_size)


def probe(command: ProbeCommand, context: Context) -> ProbeStage:
    """`rlhf-jax probe`."""
    del context

    def found(folders: Sources) -> Features | None:
        return Features(tuple(Path(folder).expanduser() for folder in as_sources(folders))) if folders else None

    ratings = found(command.ratings)
    assert ratings is not None
    return ProbeStage(model=Checkpoint.find(command.model_name_or_path, command.chat_template_path), ratings=ratings,
                      options=command.options, pairs=found(command.pairs), reference=found(command.reference))


def steps(command: StepsCommand, context: Context) -> StepsStage:
    """`rlhf-jax steps`."""
    rows = _Rows(command, context, "prompt")
    find_rule(command.answers)  # what is missing is said before anything is read
    return StepsStage(policy=rows.model.as_policy(), prompts=rows.train, sampling=command.sampling,
                      rollouts=command.rollouts, labels=command.labels, step_separator=command.step_separator,
                      answers=command.answers, answer_column=command.answer_column, dtype=command.dtype,
                      shard_size=command.shard_size)


def export(command: ExportCommand, context: Context) -> ExportStage:
    """`rlhf-jax export`."""
    del context
    return find_source(command)


def data(command: DataCommand, context: Context) -> DataStage:
    """`rlhf-jax data`."""
    del context
    return DataStage(options=command)


STAGES: dict[str, Any] = {"data": data, "sft": sft, "reward": reward, "dpo": dpo, "generate": generate, "score": score,
                          "steps": steps,
                          "pairs": pairs, "evaluate": evaluate, "agreement": agreement, "features": features,
                          "probe": probe, "export": export}
"""Verb -> (its options, the context) -> the stage."""
