"""What all training stages share: groups are packed, an objective is fitted, a model folder comes out."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from jax.sharding import Mesh

from rlhf_jax.config.lora import LoraConfig, adapter_of
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.training import BradleyTerryOptions, RewardOptions, SftOptions, TrainConfig
from rlhf_jax.data.groups import PromptGroup, check_ids
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.packing import pack_rows
from rlhf_jax.models import (
    DecoderConfig,
    Params,
    fused_modules,
    init_lora,
    merge_lora,
    param_specs,
    save_adapter,
    save_hf,
    with_dropout,
    with_lora,
    written_config,
)
from rlhf_jax.models.folder import write_chat_template
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.parallel import bound, gather, on_main
from rlhf_jax.training.fit import Model, fit, make_plan, settled, write_trainer_state
from rlhf_jax.training.mfu import flops_counter
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import GroupSource, Preview, RenderedRows
from rlhf_jax.workflow.products import CHECKPOINTS, MODEL
from rlhf_jax.workflow.reward_model import pad_as_config, reading_note
from rlhf_jax.workflow.stage import to_plain
from rlhf_jax.workflow.trackers import tracking

Trained = SftOptions | RewardOptions | PreferenceOptions


@dataclasses.dataclass(kw_only=True)
class Training:
    """One training.

    Attributes:
      start: the model it starts from, whose tokenizer and template the result has.
      params: the weights, float32. They are consumed: deleted once the state is made of them, unless an adapter is
        trained, which is merged into them at the end. config: their shape, which is not start's where a head is new.
      objective: what is minimised. options: how. groups: on what.
      reference: log-probs of the groups' trained tokens under the reference, where the objective needs them.
      keep: the result is a policy that the next stages sample from, so its weights stay on the devices.
    """

    start: Checkpoint
    params: Params
    config: DecoderConfig
    objective: Callable[[Compute], Objective]
    options: Trained
    groups: Sequence[PromptGroup]
    reference: Sequence[Sequence[np.ndarray]] | None = None
    eval_groups: Sequence[PromptGroup] = ()
    eval_reference: Sequence[Sequence[np.ndarray]] | None = None
    keep: bool = False


def compute_of(config: DecoderConfig, train: TrainConfig, mesh: Mesh) -> Compute:
    """How objectives run this model. With `remat: auto` nothing is recomputed, until `settled` looks at the memory."""
    remat = "none" if train.remat == "auto" else train.remat
    return Compute(config, remat, train.logits_chunk, mesh, train.attn_implementation)


def _adapted(scale: float, trained: Params, frozen: Params) -> Params:
    params = with_lora(frozen, trained["lora"], scale)
    return {**params, "score": trained["score"]} if "score" in trained else params


def _with_dropout(rate: float, params: Params, keys: jax.Array) -> Params:
    return with_dropout(params, keys, rate)


def fresh_adapter(key: jax.Array, config: DecoderConfig, lora: LoraConfig) -> Params:
    """A new adapter, on the host."""
    return jax.device_get(init_lora(key, config, lora))


def trainable(params: Params, config: DecoderConfig, lora: LoraConfig | None, seed: int,
              adapter: Callable[[jax.Array, DecoderConfig, LoraConfig], Params] = fresh_adapter) -> Model:
    """All weights, or a fresh adapter (and the scalar head, if any) over frozen ones."""
    specs = param_specs(config)
    if lora is None:
        return Model(params, specs)
    trained: Params = {"lora": adapter(jax.random.key(seed), config, lora)}
    trained_specs: dict[str, Any] = {"lora": lora_specs(config, lora)}
    frozen, frozen_specs = dict(params), dict(specs)
    if config.is_classifier:
        trained["score"], trained_specs["score"] = frozen.pop("score"), frozen_specs.pop("score")
    return Model(trained, trained_specs, frozen, frozen_specs, bound(_adapted, lora.scale),
                 bound(_with_dropout, lora.lora_dropout) if lora.lora_dropout else None)


@contextmanager
def atomic_model_dir(folder: Path) -> Iterator[Path]:
    """A new folder that all processes write a model to; it becomes `folder`/model when the last of them is through."""
    partial_folder = folder / f".{MODEL}.partial"
    on_main(lambda: shutil.rmtree(partial_folder, ignore_errors=True))
    yield partial_folder
    gather(None)  # the others may still be writing their files

    def publish() -> None:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        os.replace(partial_folder, folder / MODEL)

    on_main(publish)


def export(folder: Path, job: Training, params: Params, frozen: Params, card: str) -> Params:
    """Writes the trained model to `folder`/model, whole or not at all; of an adapter also the adapter itself.

    Args:
      params, frozen: as `trainable` divides them.

    Returns:
      The model's parameters, an adapter merged.
    """
    config, lora, chat_template = job.config, adapter_of(job.options.lora), job.start.chat_template
    with atomic_model_dir(folder) as new:
        if lora is not None:
            if fused := fused_modules(config, lora):
                card += f"\nNo adapter lies beside the merged model: PEFT cannot hold one of {fused} in this family.\n"
            else:
                save_adapter(new / "adapter", params["lora"], config, lora, str(job.start.folder), params.get("score"),
                             chat_template)
            score = {"score": params["score"]} if "score" in params else {}
            params = {**merge_lora(frozen, params["lora"], lora.scale), **score}
        save_hf(new, params, config, tokenizer_from=job.start.tokenizer_folder, generation_from=job.start.folder,
                chat_template=chat_template, card=card + reading_note(config, job.start.folder))
        on_main(lambda: pad_as_config(new, config))
    return params


def model_card(what: str, base: str, options: Any, groups: int, steps: int) -> str:
    """What a model card says of a training run; no path of this machine, no time, so that runs can be compared."""
    name = Path(base).name if Path(base).exists() else base
    return (f"# {what}\n\nTrained by rlhf_jax from `{name}` on {groups:,} prompt "
            f"groups in {steps:,} steps, with these settings:\n\n```yaml\n{yaml.safe_dump(to_plain(options))}```")


def check_margins(options: Trained, groups: Sequence[PromptGroup], eval_groups: Sequence[PromptGroup]) -> None:
    """Raises ValueError if the loss reads reward gaps and a pair has none: 0 in its place would teach it as a tie."""
    match options:
        case PreferenceOptions() if options.loss.needs_margin:
            reader = f"loss_type = {options.loss.loss_type!r}"
            instead = "choose a loss without margins, such as 'sigmoid'"
        case BradleyTerryOptions(use_margin=True):
            reader, instead = "use_margin = True", "leave use_margin out"
        case _:
            return
    for name, some in (("training", groups), ("evaluation", eval_groups)):
        paired, lacking, first = 0, 0, ""
        for group in some:
            if group.pairs:
                paired, lacks = paired + 1, not group.margins
                first = group.prompt_id if lacks and not lacking else first
                lacking += lacks
        if lacking:
            raise ValueError(
                f"{reader} reads the reward gap of every pair, and {lacking} of {paired} {name} groups with pairs have "
                f"no margins (the first: prompt {first!r}). Give their rows a column "
                f"'margin', or 'chosen_score' and 'rejected_score', or graded responses; or {instead}")


def check_start(start: Checkpoint, lora: LoraConfig) -> None:
    """Raises ValueError for a new adapter over an old one: no folder holds the weights that it would belong to."""
    if lora.use_peft and start.adapter is not None:
        raise ValueError(f"{start.adapter} is an adapter, and use_peft would train a second one over it, whose base "
                         f"no folder holds. Merge it first (rlhf-jax export {start.adapter} --output_dir MERGED), or "
                         "leave use_peft out to train all weights")


def check_values(objective: Objective, groups: Sequence[PromptGroup], eval_groups: Sequence[PromptGroup]) -> None:
    """Raises ValueError if the objective reads a number that no response has."""
    for name, some in (("training", groups), ("evaluation", eval_groups)):
        there = {number for group in some for response in group.responses for number in response.scores}
        if some and (missing := [number for number in objective.reads if number not in there]):
            raise ValueError(f"{', '.join(missing)} is to be learned, and no response of the {name} rows has that "
                             f"number; there are {', '.join(sorted(there)) or 'none'}")


def checked_plan(objective: Objective, options: Trained, groups: Sequence[PromptGroup], mesh: Mesh,
                 reference: Sequence[Sequence[np.ndarray]] | None = None) -> BatchPlan:
    """The batches of a stage. ValueError: a group is longer than a row, or an objective over a batch sees it cut."""
    plan = make_plan(groups, options.train, mesh, reference=reference, objective=objective)
    pack_rows([int(plan.sizes.tokens.max())], plan.row_length)  # raises
    if objective.whole_batch and plan.accumulation > 1:
        raise ValueError(f"the loss looks across a whole batch, and this batch needs {plan.accumulation} "
                         "micro-batches; leave micro_rows out, which makes it one, or lower train_batch_size")
    return plan


def preview_training(stage: Any, context: Context,
                     as_read: Callable[[Sequence[PromptGroup]], Sequence[PromptGroup]] = lambda groups: groups
                     ) -> Preview:
    """What a dry run shows of a training stage, once its checks have passed; of its groups as its loss reads them."""
    check_start(stage.start, stage.options.lora)
    groups = as_read(read_all(stage.data))
    held_out = as_read(stage.evaluation.read() if stage.evaluation else [])
    objective = stage.objective(compute_of(stage.start.config, stage.options.train, context.mesh))
    check_margins(stage.options, groups, held_out)
    check_values(objective, groups, held_out)
    checked_plan(objective, stage.options, groups, context.mesh)
    return Preview(stage.start, stage.data[0], groups)


def train(folder: Path, job: Training, context: Context) -> Mapping[str, Any]:
    """Fits an objective to packed groups and exports the model; continues from checkpoints found in `folder`.

    Returns:
      The stage's report: last training and evaluation metrics, steps, packing efficiency, compiled programs.

    Raises:
      CheckpointError: the model could not be written when it is trained.
      ValueError: as `check_start`, `check_margins`, `check_values`, `check_ids` and `checked_plan`.
    """
    options, config, lora, mesh = job.options, job.config, adapter_of(job.options.lora), context.mesh
    check_start(job.start, options.lora)
    written_config(config)
    objective = job.objective(compute_of(config, options.train, mesh))
    check_margins(options, job.groups, job.eval_groups)
    check_values(objective, job.groups, job.eval_groups)
    check_ids(itertools.chain(job.groups, job.eval_groups), config.vocab_size)
    model = trainable(job.params, config, lora, options.train.seed)
    job.params = {}
    plan, settings, why = settled(checked_plan(objective, options, job.groups, mesh, job.reference), options.train,
                                  config, mesh, frozen=lora is not None, together=objective.whole_batch)
    if why:
        context.run.announce(why)  # also where the step then does not fit
    objective = job.objective(compute_of(config, settings, mesh))
    template = job.start.chat_template
    if template is not None:  # beside the checkpoints, for the export of a training that does not finish
        on_main(lambda: write_chat_template(folder, template))
    context.latest.release()
    with tracking(context.trackers, folder, context.run.config) as on_row:
        result = fit(model, objective, plan, settings, mesh, folder=folder / CHECKPOINTS,
                     eval_groups=job.eval_groups, eval_reference=job.eval_reference, report=context.report,
                     on_row=on_row, on_resume=context.resumed, flops=flops_counter(config, frozen=lora is not None),
                     consume=lora is None)
    card = model_card(type(objective).__name__, str(job.start.folder), options, len(job.groups), result.steps)
    params = export(folder, job, result.params, model.frozen, card)
    if job.keep:
        context.latest.keep(context.key, params)

    on_main(lambda: write_trainer_state(folder / MODEL, result, plan))
    train_rows = [row for row in result.log_history if "loss" in row]
    eval_rows = [row for row in result.log_history if "eval_loss" in row]
    found = {"steps": result.steps, "groups": len(job.groups), "packing_efficiency": round(result.efficiency, 4),
             "compiled_programs": result.compiles, "train": train_rows[-1], "eval": eval_rows[-1] if eval_rows else {}}
    return found | ({"micro_batches": why} if why else {})


def read_all(sources: Sequence[GroupSource]) -> Sequence[PromptGroup]:
    """The groups of several sources, in order."""
    found = [source.read() for source in sources]
    return found[0] if len(found) == 1 else OnDisk(itertools.chain(*found))


def funnels(sources: Sequence[GroupSource]) -> dict[str, Any]:
    """What a training stage reports of rows that it read itself."""
    return next(({"funnel": source.funnel.to_json()} for source in sources if isinstance(source, RenderedRows)), {})
