"""The single verbs: from a command's options to the stage it asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rlhf_jax.config.commands import (
    EvaluateCommand,
    ExportCommand,
    GenerateCommand,
    PairsCommand,
    RewardCommand,
    ScoreCommand,
    SftCommand,
)
from rlhf_jax.config.data import PreferenceData, RowOptions, Sources
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.data.rows import Kind
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupFile, GroupSource, RenderedRows
from rlhf_jax.workflow.kinds import open_scorer, trainable_kind
from rlhf_jax.workflow.stage import Stage
from rlhf_jax.workflow.stages.dpo import DpoStage
from rlhf_jax.workflow.stages.evaluate import EvaluateStage, PreferenceRows
from rlhf_jax.workflow.stages.export import ExportStage, find_source
from rlhf_jax.workflow.stages.pairs import PairsStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.sample import SampleStage
from rlhf_jax.workflow.stages.score import ScoreStage
from rlhf_jax.workflow.stages.sft import SftStage
from rlhf_jax.workflow.stages.shards import ShardFolder


class _Rows:
    """The rows of a command in its model's ids, for training and for evaluation."""

    def __init__(self, command: SftCommand | RewardCommand | DpoCommand | GenerateCommand, kind: Kind, **more: Any):
        self._command, self._kind, self._more = command, kind, more
        data = command.data
        self.model = Checkpoint.find(command.model_name_or_path, data.render.chat_template_path)
        if isinstance(data, PreferenceData):
            self._more["graded"] = data.graded

    def _rendered(self, rows: RowOptions, name: str) -> RenderedRows:
        return RenderedRows(checkpoint=self.model, kind=self._kind, rows=rows, render=self._command.data.render,
                            quarantine=Path(self._command.output_dir) / f"quarantine-{name}.jsonl", **self._more)

    @property
    def train(self) -> RenderedRows:
        return self._rendered(self._command.data.rows, "train")

    def held_out(self, dataset_name: Sources) -> RenderedRows | None:
        if not dataset_name:
            return None
        rows = dataclasses.replace(self._command.data.rows, dataset_name=dataset_name, max_samples=None)
        return self._rendered(rows, "eval")


def sft(command: SftCommand, context: Context) -> SftStage:
    """`rlhf-jax sft`."""
    del context
    rows = _Rows(command, "sft")
    return SftStage(start=rows.model.as_policy(), data=(rows.train,), options=command.options,
                    evaluation=rows.held_out(command.eval_dataset_name))


def reward(command: RewardCommand, context: Context) -> RewardStage:
    """`rlhf-jax reward`."""
    del context
    kind, seed = trainable_kind(command.options), command.options.train.seed
    rows = _Rows(command, "preference", prepare=lambda examples, funnel: kind.examples(examples, seed, funnel))
    return RewardStage(start=rows.model, data=(rows.train,), options=command.options,
                       evaluation=rows.held_out(command.eval_dataset_name))


def dpo(command: DpoCommand, context: Context) -> DpoStage:
    """`rlhf-jax dpo`."""
    del context
    rows = _Rows(command, "preference")
    start = rows.model.as_policy()
    reference = start if command.reference_model is None else Checkpoint.find(command.reference_model).as_policy()
    if reference is not start:
        check_vocabularies(start, reference, "The reference is asked for the probability of the policy's tokens; give "
                           "a reference_model with the policy's tokenizer")
    data: GroupSource = GroupFile(Path(command.pairs)) if command.pairs else rows.train
    return DpoStage(start=start, reference=reference if command.options.loss.needs_reference else None, data=(data,),
                    options=command.options, evaluation=rows.held_out(command.eval_dataset_name))


def generate(command: GenerateCommand, context: Context) -> SampleStage:
    """`rlhf-jax generate`."""
    del context
    rows = _Rows(command, "prompt")
    return SampleStage(policy=rows.model.as_policy(), prompts=rows.train, sampling=command.sampling,
                       dtype=command.dtype, shard_size=command.shard_size)


def score(command: ScoreCommand, context: Context) -> ScoreStage:
    """`rlhf-jax score`."""
    return ScoreStage(scorer=open_scorer(command.scorer, context.local_mesh, command.name),
                      source=ShardFolder(Path(command.input)))


def pairs(command: PairsCommand, context: Context) -> PairsStage:
    """`rlhf-jax pairs`."""
    del context
    return PairsStage(source=ShardFolder(Path(command.input)), scorer=command.scorer, options=command.pairs)


def evaluate(command: EvaluateCommand, context: Context) -> EvaluateStage:
    """`rlhf-jax evaluate`."""
    rows = PreferenceRows(command.rows, command.graded, Path(command.output_dir) / "quarantine.jsonl")
    return EvaluateStage(scorer=open_scorer(command.scorer, context.local_mesh, "proxy"), data=rows,
                         seed=command.seed)


def export(command: ExportCommand, context: Context) -> ExportStage:
    """`rlhf-jax export`."""
    del context
    return find_source(command)


def rows_of(stage: Stage) -> RenderedRows | None:
    """The rows that a stage renders, if it does, for a dry run to show."""
    fields = [getattr(stage, field.name) for field in dataclasses.fields(stage)]
    values = [value for field in fields for value in (field if isinstance(field, tuple) else (field,))]
    return next((value for value in values if isinstance(value, RenderedRows)), None)


STAGES: dict[str, Any] = {"sft": sft, "reward": reward, "dpo": dpo, "generate": generate, "score": score,
                          "pairs": pairs, "evaluate": evaluate, "export": export}
"""Verb -> (its options, the context) -> the stage."""
