"""The training stages: SFT, reward and preference models, preference optimisation; out comes a model folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax.sharding import Mesh

from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import (
    DecoderConfig,
    LoraConfig,
    Params,
    as_classifier,
    fused_modules,
    init_lora,
    merge_lora,
    param_specs,
    save_adapter,
    save_hf,
    with_lora,
)
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.models.save import write_chat_template
from rlhf_jax.parallel import gather, on_main
from rlhf_jax.training.config import TrainConfig
from rlhf_jax.training.fit import Model, Reporter, fit, make_plan, write_trainer_state
from rlhf_jax.training.mfu import flops_counter
from rlhf_jax.training.objectives import BradleyTerry, Compute, Objective, Preference, Sft
from rlhf_jax.workflow.options import LoraOptions, PreferenceOptions, RewardOptions, SftOptions
from rlhf_jax.workflow.reference import reference_logps
from rlhf_jax.workflow.reward_model import pad_as_config, reading_note
from rlhf_jax.workflow.stage import to_plain
from rlhf_jax.workflow.trackers import tracking

MODEL, CHECKPOINTS = "model", "checkpoints"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where training happens and who is told.

    Attributes:
      report: shows progress. keep: gets the trained weights. let_go: called before the first step, whose state needs
        the memory; drops weights that the run only keeps to save reading them again.
      trackers: get the metric rows, and `config` as the run's.
    """

    mesh: Mesh
    report: Reporter
    keep: Callable[[Params], None] = lambda params: None
    let_go: Callable[[], None] = lambda: None
    trackers: tuple[str, ...] = ()
    config: Any = dataclasses.field(default_factory=dict)


def compute_of(config: DecoderConfig, train: TrainConfig, mesh: Mesh) -> Compute:
    """How objectives run this model."""
    return Compute(config, train.remat, train.logits_chunk, mesh, train.attn_implementation)


def _adapted(trained: Params, frozen: Params, scale: float) -> Params:
    params = with_lora(frozen, trained["lora"], scale)
    return {**params, "score": trained["score"]} if "score" in trained else params


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
    return Model(trained, trained_specs, frozen, frozen_specs, partial(_adapted, scale=lora.scale))


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A new folder that all processes write a model to; it becomes `folder`/model when the last of them is through."""
    partial_folder = folder / f".{MODEL}.partial"
    on_main(lambda: shutil.rmtree(partial_folder, ignore_errors=True))
    yield partial_folder
    gather(None)  # the others may still be writing their files

    def publish() -> None:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        os.replace(partial_folder, folder / MODEL)

    on_main(publish)


def export(folder: Path, params: Params, frozen: Params, config: DecoderConfig, lora: LoraConfig | None,
           tokenizer_from: Path, base: str, card: str, chat_template: str | None = None) -> Params:
    """Writes the trained model to `folder`/model, whole or not at all; of an adapter also the adapter itself.

    Args:
      params, frozen: as `trainable` divides them. base: the model the adapter belongs to.
      chat_template: what the model was trained with, where that is not the template among the tokenizer's files.

    Returns:
      The model's parameters, an adapter merged.
    """
    with published(folder) as new:
        if lora is not None:
            if fused := fused_modules(config, lora):
                card += f"\nNo adapter lies beside the merged model: PEFT cannot hold one of {fused} in this family.\n"
            else:
                save_adapter(new / "adapter", params["lora"], config, lora, base, params.get("score"),
                             chat_template)
            score = {"score": params["score"]} if "score" in params else {}
            params = {**merge_lora(frozen, params["lora"], lora.scale), **score}
        save_hf(new, params, config, tokenizer_from=tokenizer_from, chat_template=chat_template,
                card=card + reading_note(config, tokenizer_from))
        on_main(lambda: pad_as_config(new, config))
    return params


def model_card(what: str, base: str, options: Any, groups: int, steps: int) -> str:
    """What a model card says of a training run; no path of this machine, no time, so that runs can be compared."""
    name = Path(base).name if Path(base).exists() else base
    return (f"# {what}\n\nTrained by rlhf_jax from `{name}` on {groups:,} prompt "
            f"groups in {steps:,} steps, with these settings:\n\n```yaml\n{yaml.safe_dump(to_plain(options))}```")


def check_margins(options: LoraOptions, groups: Sequence[PromptGroup], eval_groups: Sequence[PromptGroup]) -> None:
    """Raises ValueError if the loss reads reward gaps and a pair has none: 0 in its place would teach it as a tie."""
    match options:
        case PreferenceOptions() if options.loss.needs_margin:
            reader, instead = f"loss_type = {options.loss_type!r}", "choose a loss without margins, such as 'sigmoid'"
        case RewardOptions(use_margin=True):
            reader, instead = "use_margin = True", "leave use_margin out"
        case _:
            return
    for name, some in (("training", groups), ("evaluation", eval_groups)):
        paired = [group for group in some if group.pairs]
        lacking = [group for group in paired if not group.margins]
        if lacking:
            raise ValueError(
                f"{reader} reads the reward gap of every pair, and {len(lacking)} of {len(paired)} {name} groups with "
                f"pairs have no margins (the first: prompt {lacking[0].prompt_id!r}). Give their rows a column "
                f"'margin', or 'chosen_score' and 'rejected_score', or graded responses; or {instead}")


def train_stage(
    folder: Path,
    *,
    params: Params,
    config: DecoderConfig,
    options: LoraOptions,
    train: TrainConfig,
    objective: Callable[[Compute], Objective],
    groups: Sequence[PromptGroup],
    tokenizer_from: Path,
    base: str,
    setting: Setting,
    chat_template: str | None = None,
    reference: list[list[np.ndarray]] | None = None,
    eval_groups: Sequence[PromptGroup] = (),
    eval_reference: list[list[np.ndarray]] | None = None,
) -> Mapping[str, Any]:
    """Fits an objective to packed groups and exports the model; continues from checkpoints found in `folder`.

    Args:
      params: where training starts, float32. They are consumed: deleted once the state is made of them, unless an
        adapter is trained, which is merged into them at the end.
      chat_template: what the groups were rendered with, where that is not the template among the tokenizer's files.

    Returns:
      The stage's report: last training and evaluation metrics, steps, packing efficiency, compiled programs.

    Raises:
      ValueError: the loss reads margins that a pair lacks, or sorts all pairs of a batch that is cut.
    """
    check_margins(options, groups, eval_groups)
    model = trainable(params, config, options.lora, train.seed)
    plan = make_plan(list(groups), train, setting.mesh, reference=reference)
    if isinstance(options, PreferenceOptions) and options.loss.compares_pairs and plan.accumulation > 1:
        raise ValueError(f"loss_type {options.loss_type!r} sorts all pairs of a batch, and this batch needs "
                         f"{plan.accumulation} micro-batches; raise micro_rows or lower train_batch_size to need one")
    if chat_template is not None:  # beside the checkpoints, for the export of a training that does not finish
        on_main(lambda: write_chat_template(folder, chat_template))
    setting.let_go()
    with tracking(setting.trackers, folder, setting.config) as on_row:
        result = fit(model, objective(compute_of(config, train, setting.mesh)), plan, train, setting.mesh,
                     folder=folder / CHECKPOINTS, eval_groups=list(eval_groups), eval_reference=eval_reference,
                     report=setting.report, on_row=on_row, flops=flops_counter(config, frozen=options.lora is not None),
                     consume=options.lora is None)
    made_by = objective.func if isinstance(objective, partial) else objective
    setting.keep(export(folder, result.params, model.frozen, config, options.lora, tokenizer_from, base,
                        model_card(made_by.__name__, base, options, len(groups), result.steps), chat_template))

    def tidy() -> None:
        write_trainer_state(folder / MODEL, result, plan)
        done = folder / ".checkpoints.done"
        shutil.rmtree(done, ignore_errors=True)
        os.replace(folder / CHECKPOINTS, done)  # at once: a half-deleted checkpoint must never be found again
        shutil.rmtree(done, ignore_errors=True)

    on_main(tidy)
    train_rows = [row for row in result.log_history if "loss" in row]
    eval_rows = [row for row in result.log_history if "eval_loss" in row]
    return {"steps": result.steps, "groups": len(groups), "packing_efficiency": round(result.efficiency, 4),
            "compiled_programs": result.compiles, "train": train_rows[-1], "eval": eval_rows[-1] if eval_rows else {}}


def sft_stage(folder: Path, *, options: SftOptions, params: Params, config: DecoderConfig,
              groups: Sequence[PromptGroup], tokenizer_from: Path, base: str, setting: Setting,
              eval_groups: Sequence[PromptGroup] = (), chat_template: str | None = None) -> Mapping[str, Any]:
    """Supervised fine-tuning; also RAFT's update and the pairwise preference model's."""
    return train_stage(folder, params=params, config=config, options=options, train=options, objective=Sft,
                       groups=groups, tokenizer_from=tokenizer_from, base=base, setting=setting,
                       eval_groups=eval_groups, chat_template=chat_template)


def objective_of(options: LoraOptions) -> Callable[[Compute], Objective]:
    """What a training stage with these options minimises."""
    match options:
        case PreferenceOptions():
            return partial(Preference, loss=options.loss, ld_alpha=options.ld_alpha,
                           use_weighting=options.use_weighting)
        case RewardOptions(kind="bradley_terry"):
            return partial(BradleyTerry, center_rewards_coefficient=options.center_rewards_coefficient,
                           use_margin=options.use_margin)
    return Sft


def bradley_terry_stage(folder: Path, *, options: RewardOptions, params: Params, config: DecoderConfig,
                        groups: Sequence[PromptGroup], tokenizer_from: Path, base: str, setting: Setting,
                        eval_groups: Sequence[PromptGroup] = (), chat_template: str | None = None) -> Mapping[str, Any]:
    """A Bradley-Terry reward model on the backbone of `params` (a language model gets a fresh scalar head).

    config: the reward model's, whose head is read where the groups' responses end (`Checkpoint.reward_model`).
    """
    check_margins(options, groups, eval_groups)
    if "score" not in params:
        params = as_classifier(params, jax.random.key(options.seed), config)
    if config.num_labels != 1:
        raise ValueError(f"a Bradley-Terry model has one output and this checkpoint has {config.num_labels}; start "
                         "from a language model or from a reward model with one output")
    return train_stage(folder, params=params, config=config, options=options, train=options,
                       objective=objective_of(options), groups=groups, tokenizer_from=tokenizer_from, base=base,
                       setting=setting, eval_groups=eval_groups, chat_template=chat_template)


def dpo_stage(folder: Path, *, options: PreferenceOptions, params: Params, config: DecoderConfig,
              reference: Callable[[], Params], groups: Sequence[PromptGroup], tokenizer_from: Path, base: str,
              setting: Setting, cache: Path, eval_groups: Sequence[PromptGroup] = (),
              chat_template: str | None = None, reference_config: DecoderConfig | None = None) -> Mapping[str, Any]:
    """The DPO family: reference log-probs once (cached under `cache`), then training without the reference model.

    reference: gives the reference model's weights, if the loss needs them; nobody may hold them after that.
    reference_config: of the reference, where it is a model of another shape than the policy.
    """
    check_margins(options, groups, eval_groups)  # before the reference's pass over all of them
    reference_of = eval_reference_of = None
    if options.loss.needs_reference:
        compute = compute_of(reference_config or config, options, setting.mesh)
        dtype = jnp.dtype(options.dtype)
        weights = reference()
        reference_of, eval_reference_of = (
            reference_logps(compute, weights, some, setting.mesh, dtype=dtype, cache=cache, rows=options.micro_rows,
                            row_length=options.row_length) if some else None
            for some in (list(groups), list(eval_groups)))
        del weights  # their log-probs are all that training needs of them
    return train_stage(folder, params=params, config=config, options=options, train=options,
                       objective=objective_of(options), groups=groups, tokenizer_from=tokenizer_from, base=base,
                       setting=setting, reference=reference_of, eval_groups=eval_groups,
                       eval_reference=eval_reference_of, chat_template=chat_template)
