"""`rlhf-jax selftrain`: a preference model that labels the pairs it learns from next, as rounds of stages."""

from __future__ import annotations

import dataclasses
from typing import Any

from rlhf_jax.config.data import GradedOptions, RowOptions
from rlhf_jax.config.scorer import ScorerModel
from rlhf_jax.config.self_training import SelfTrainingCommand
from rlhf_jax.parallel import is_main_process
from rlhf_jax.scoring import PairwiseScorer
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview, RenderedRows, check_sources
from rlhf_jax.workflow.kinds import pairwise
from rlhf_jax.workflow.products import MODEL, PAIRS, point_at
from rlhf_jax.workflow.stage import Finished, write_json_atomic
from rlhf_jax.workflow.stages.evaluate import EvaluateStage, PreferenceRows
from rlhf_jax.workflow.stages.pseudo_label import PseudoLabelStage
from rlhf_jax.workflow.stages.reward import RewardStage
from rlhf_jax.workflow.stages.shards import RowShards
from rlhf_jax.workflow.verbs import reward

ROUNDS = "rounds.json"
"""What each round came to."""
_TOLD = ("compared", "kept_pairs", "kept_share", "flip_rate", "failed")


def self_train(command: SelfTrainingCommand, context: Context) -> list[dict[str, Any]]:
    """What each round came to, the training on labelled rows alone as round 0; the last model is at DIR/model."""
    first = checked(command, context)
    start, model = first.start, context.train("round-0/reward", first)
    rounds: list[dict[str, Any]] = [{"round": 0, **_accuracy(command, context, model, 0)}]
    for number in range(1, command.rounds + 1):
        scorer = _scorer(command, context, model)
        labelled = context.do(f"round-{number}/label", PseudoLabelStage(
            scorer=scorer, confidence=command.confidence,
            source=RowShards(command.unlabelled, command.shard_size,
                             context.quarantine(f"round-{number}"))))
        told = {"round": number, **{name: labelled.report[name] for name in _TOLD}}
        if not labelled.report["kept_pairs"]:
            context.run.announce(f"round {number} ends the run: of {labelled.report['compared']:,} pairs none has more "
                                 f"than {command.confidence} for one side; lower confidence, or label more pairs")
            rounds.append(told)
            break
        origin = model if command.init_from == "previous" else start
        model = context.train(f"round-{number}/reward", dataclasses.replace(
            first, start=origin, data=(*first.data, pseudo_rows(first.data[0], labelled, context, number))))
        rounds.append({**told, **_accuracy(command, context, model, number)})
    if is_main_process():
        write_json_atomic(context.run.folder / ROUNDS, rounds)
        point_at(context.run.folder / MODEL, model.folder)
    return rounds


def checked(command: SelfTrainingCommand, context: Context) -> RewardStage:
    """The first training; that the rows of later stages are not there is found now."""
    for rows in (command.unlabelled, command.held_out):
        if rows.sources:
            check_sources(rows)
    return reward(command.first, context)


def preview_self_training(command: SelfTrainingCommand, context: Context) -> Preview:
    """What a dry run shows: the first training's."""
    return checked(command, context).preview(context)


def pseudo_rows(labelled_rows: Any, found: Finished, context: Context, number: int) -> RenderedRows:
    """The pairs that were kept, as rows that are rendered as the labelled ones."""
    assert isinstance(labelled_rows, RenderedRows)
    return dataclasses.replace(labelled_rows, rows=RowOptions(dataset_name=str(found.folder / PAIRS)),
                               graded=GradedOptions(), quarantine=context.quarantine(f"round-{number}/pairs"))


def _scorer(command: SelfTrainingCommand, context: Context, model: Checkpoint) -> PairwiseScorer:
    served = pairwise.served(command.options, ScorerModel.trained(str(model.folder), command.data.render))
    return pairwise.open_scorer(served, context.local_mesh, "proxy")


def _accuracy(command: SelfTrainingCommand, context: Context, model: Checkpoint, number: int) -> dict[str, Any]:
    """Accuracy on the held-out rows, with its interval over prompts; nothing where there are none."""
    if not command.eval_dataset_name:
        return {}
    rows = PreferenceRows(command.held_out, command.data.graded,
                          context.quarantine(f"round-{number}/eval"))
    done = context.do(f"round-{number}/evaluate", EvaluateStage(scorer=_scorer(command, context, model), data=rows))
    return {"accuracy": done.report["accuracy"]}
