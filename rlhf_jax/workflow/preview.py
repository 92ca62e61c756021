"""What `--dry-run` shows: the checks a command makes before it works, and the data it would work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_jax.data.funnel import Funnel
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.workflow.commands import (
    DpoCommand,
    EvaluateCommand,
    ExportCommand,
    GenerateCommand,
    PairsCommand,
    ScoreCommand,
)
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.experiment import Experiment
from rlhf_jax.workflow.experiment_config import ExperimentConfig
from rlhf_jax.workflow.export import find_source
from rlhf_jax.workflow.iterate import with_capacity
from rlhf_jax.workflow.options import DataOptions, PairOptions, ScorerOptions, part
from rlhf_jax.workflow.pairs import make_pairs
from rlhf_jax.workflow.policy import Checkpoint, Loaded, read_data
from rlhf_jax.workflow.sample import read_shards
from rlhf_jax.workflow.scorers import open_scorer
from rlhf_jax.workflow.train import check_margins, checked_plan
from rlhf_jax.workflow.verbs import loaded, policies_asked, reference_of


def preview(command: Any, context: Context) -> Loaded | Funnel | Checkpoint:
    """A command's model and rendered data, or what it knows of them before it works.

    Nothing is kept in the command's output folder, unusable rows neither. Raises what the command itself would raise
    before its first step, its first sample or its first score.
    """
    match command:
        case ExperimentConfig():
            return Experiment(command, context, quarantine=False).preview()
        case EvaluateCommand():
            return _evaluated(command, context)
        case ScoreCommand():
            open_scorer(part(command, ScorerOptions), context.local_mesh, "", to_check=True)
            return Funnel(read=len(read_shards(Path(command.input))))
        case PairsCommand():
            return make_pairs(read_shards(Path(command.input)), command.scorer, part(command, PairOptions))[1]
        case ExportCommand():
            return find_source(command.model_name_or_path, command.base_model, command.checkpoint).base
        case DpoCommand():
            reference_of(command)
    return _trained_or_sampled(command, context)


def _trained_or_sampled(command: Any, context: Context) -> Loaded:
    data = loaded(command, quarantine=False)
    if isinstance(command, GenerateCommand):
        with_capacity(part(command, SamplingConfig), data.groups, data.checkpoint.config.max_position)
    else:
        check_margins(command, data.groups, data.eval_groups)
        checked_plan(command, command, data.groups, context.mesh)
    return data


def _evaluated(command: EvaluateCommand, context: Context) -> Loaded | Funnel:
    for options in (command.scorer, command.gold):
        if options is not None:
            open_scorer(options, context.local_mesh, "", to_check=True)
    if command.baseline_model is None:
        return read_data(part(command, DataOptions), "preference")[1]
    return policies_asked(command, None)[1]
