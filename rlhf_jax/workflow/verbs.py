"""The single verbs: each one stage, with files in and files out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.chat import render_all
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.jsonl import read_groups, write_groups
from rlhf_jax.data.rows import Kind
from rlhf_jax.models import DecoderConfig
from rlhf_jax.parallel import is_main_process
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.scoring import letter_examples
from rlhf_jax.workflow.commands import (
    DpoCommand,
    EvaluateCommand,
    ExportCommand,
    GenerateCommand,
    PairsCommand,
    RewardCommand,
    ScoreCommand,
    SftCommand,
)
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.evaluate import Outcome, evaluate_policy, evaluate_scorer
from rlhf_jax.workflow.export import export_stage, find_source
from rlhf_jax.workflow.iterate import Policy, sample_from, with_capacity
from rlhf_jax.workflow.options import (
    DataOptions,
    PairOptions,
    PreferenceOptions,
    RewardOptions,
    ScorerOptions,
    SftOptions,
    part,
)
from rlhf_jax.workflow.pairs import make_pairs
from rlhf_jax.workflow.policy import (
    Checkpoint,
    Loaded,
    check_vocabularies,
    data_key,
    prompt_groups,
    read_data,
    sources_key,
)
from rlhf_jax.workflow.reward_model import reading_key
from rlhf_jax.workflow.sample import read_shards, score_stage, shards
from rlhf_jax.workflow.scorers import open_scorer
from rlhf_jax.workflow.stage import Stage, hash_path, run_stage
from rlhf_jax.workflow.train import bradley_terry_stage, dpo_stage, sft_stage


def load(command: Any, kind: Kind, *, letters: bool = False) -> Loaded:
    """Reads, validates and renders a verb's data for its model."""
    data: DataOptions = part(command, DataOptions)
    checkpoint = Checkpoint.find(command.model_name_or_path, data.chat_template_path)
    if letters or not isinstance(command, RewardCommand):
        checkpoint.as_policy()
    scores = isinstance(command, RewardCommand) and not letters
    renderer, folder = checkpoint.renderer(data, scores=scores), Path(command.output_dir)

    def rendered(data: DataOptions, name: str) -> tuple[list[PromptGroup], Funnel]:
        examples, funnel = read_data(data, kind, folder / f"quarantine-{name}.jsonl")
        if letters:
            examples = letter_examples(examples, command.seed, funnel)
        make = prompt_groups if kind == "prompt" else render_all
        return make(examples, renderer, funnel), funnel

    if getattr(command, "pairs", None):
        groups = read_groups(command.pairs)
        funnel = Funnel(read=len(groups))
    else:
        groups, funnel = rendered(data, "train")
    held_out = getattr(command, "eval_dataset_name", ())
    eval_data = dataclasses.replace(data, dataset_name=held_out, max_samples=None)
    evaluation = rendered(eval_data, "eval")[0] if held_out else []
    return Loaded(checkpoint, groups, evaluation, funnel)


def loaded(command: Any) -> Loaded | None:
    """The data of a verb that reads any; None for score and pairs."""
    match command:
        case SftCommand():
            return load(command, "sft")
        case RewardCommand():
            return load(command, "preference", letters=command.kind == "pairwise")
        case DpoCommand():
            return load(command, "preference")
        case GenerateCommand():
            return load(command, "prompt")
    return None


def _train(command: Any, context: Context, name: str, options: Any, body: Any,
           config_of: Callable[[Checkpoint], DecoderConfig] = attrgetter("config"), **inputs: Any) -> Stage:
    """Runs a training stage in the command's output folder, keyed by its base model, data and options."""
    data = loaded(command)
    assert data is not None
    config = config_of(data.checkpoint)
    keys = {"base": hash_path(data.checkpoint.folder), "data": data_key(part(command, DataOptions)),
            "eval": sources_key(DataOptions(command.eval_dataset_name).sources, command.split),
            "options": options, **reading_key(config), **inputs}

    def run(folder: Path) -> Mapping[str, Any]:
        report = body(folder, options=options, params=data.checkpoint.params(context.mesh),
                      config=config, groups=data.groups, eval_groups=data.eval_groups,
                      tokenizer_from=data.checkpoint.folder, base=str(data.checkpoint.folder),
                      chat_template=data.checkpoint.chat_template,
                      setting=context.setting(name))
        return {**report, "funnel": data.funnel.to_json()}

    return run_stage(Path(command.output_dir), name, keys, run)


def run_sft(command: SftCommand, context: Context) -> Stage:
    """`rlhf-jax sft`."""
    return _train(command, context, "sft", part(command, SftOptions), sft_stage)


def run_reward(command: RewardCommand, context: Context) -> Stage:
    """`rlhf-jax reward`."""
    options = part(command, RewardOptions)
    if command.kind == "pairwise":
        return _train(command, context, "reward", options, sft_stage)
    return _train(command, context, "reward", options, bradley_terry_stage, attrgetter("reward_model"))


def run_dpo(command: DpoCommand, context: Context) -> Stage:
    """`rlhf-jax dpo`."""
    reference = Checkpoint.find(command.reference_model or command.model_name_or_path).as_policy()
    if command.reference_model is not None:
        check_vocabularies(Checkpoint.find(command.model_name_or_path), reference, "The reference is asked for the "
                           "probability of the policy's tokens; give a reference_model with the policy's tokenizer")

    def body(folder: Path, **arguments: Any) -> Mapping[str, Any]:
        cache = folder / "reference_cache"
        return dpo_stage(folder, reference=lambda: reference.params(context.mesh),
                         reference_config=reference.config, cache=cache, **arguments)

    return _train(command, context, "dpo", part(command, PreferenceOptions), body,
                  reference=hash_path(reference.folder), pairs=command.pairs and hash_path(command.pairs))


def run_generate(command: GenerateCommand, context: Context) -> Stage:
    """`rlhf-jax generate`."""
    data = load(command, "prompt")
    sampling = with_capacity(part(command, SamplingConfig), data.groups)
    inputs = {"policy": hash_path(data.checkpoint.folder), "data": data_key(part(command, DataOptions)),
              "sampling": sampling, "dtype": command.dtype, "shard_size": command.shard_size}

    def body(folder: Path) -> Mapping[str, Any]:
        report = sample_from(context, folder, data.checkpoint, "", data.groups, sampling, command.dtype,
                             command.shard_size, context.progress("generate"))
        return {**report, "funnel": data.funnel.to_json()}

    return run_stage(Path(command.output_dir), "generate", inputs, body)


def _shards_key(folder: Path) -> list[str]:
    """What identifies a stage's samples in the inputs of another: its shards alone, no record or report beside them."""
    return [hash_path(path) for path in shards(folder)]


def run_score(command: ScoreCommand, context: Context) -> Stage:
    """`rlhf-jax score`."""
    source = Path(command.input)
    scorer = open_scorer(part(command, ScorerOptions), context.local_mesh, command.name)
    inputs = {"scorer": scorer.fingerprint, "as": command.name, "source": _shards_key(source)}
    return run_stage(Path(command.output_dir), "score", inputs,
                     lambda folder: score_stage(folder, scorer=scorer, source=source,
                                                progress=context.progress("score")))


def run_pairs(command: PairsCommand, context: Context) -> Stage:
    """`rlhf-jax pairs`."""
    del context
    options: PairOptions = part(command, PairOptions)
    inputs = {"source": _shards_key(Path(command.input)), "scorer": command.scorer, "options": options}

    def body(folder: Path) -> Mapping[str, Any]:
        groups, funnel = make_pairs(read_shards(Path(command.input)), command.scorer, options)
        if is_main_process():
            write_groups(folder / "pairs.jsonl", groups)
        return {"funnel": funnel.to_json()}

    return run_stage(Path(command.output_dir), "pairs", inputs, body)


def run_evaluate(command: EvaluateCommand, context: Context) -> Stage:
    """`rlhf-jax evaluate`."""
    data: DataOptions = part(command, DataOptions)
    scorer = open_scorer(command.scorer, context.local_mesh, "proxy")
    examples, funnel = read_data(data, "preference", Path(command.output_dir) / "quarantine.jsonl")
    inputs = {"scorer": scorer.fingerprint, "data": data_key(data), "seed": command.seed}

    def body(folder: Path) -> Mapping[str, Any]:
        del folder
        return {**evaluate_scorer(scorer, examples, command.seed).to_json(), "funnel": funnel.to_json()}

    return run_stage(Path(command.output_dir), "evaluate", inputs, body)


def run_export(command: ExportCommand, context: Context) -> Stage:
    """`rlhf-jax export`."""
    source = find_source(command.model_name_or_path, command.base_model, command.checkpoint)
    inputs = {"source": {key: hash_path(path) for key, path in (
        ("base", source.base.folder), ("adapter", source.adapter), ("checkpoint", source.checkpoint)) if path},
        "dtype": command.dtype, "max_shard_size": command.max_shard_size}
    return run_stage(Path(command.output_dir), "export", inputs, lambda folder: export_stage(
        folder, source=source, mesh=context.mesh, dtype=command.dtype,
        max_shard_bytes=int(command.max_shard_size * 1e9)))


def _check_same_prompts(baseline: Policy, policy: Policy, prompts: Sequence[PromptGroup], own: Sequence[PromptGroup]
                        ) -> None:
    """Raises ValueError if the policy would write a prompt of the baseline's in other tokens (`own`)."""
    written = {group.prompt_id: group.prompt_ids for group in own}
    odd = [g.prompt_id for g in prompts if not np.array_equal(g.prompt_ids, written.get(g.prompt_id, g.prompt_ids))]
    if odd:
        raise ValueError(f"{policy.folder} writes {len(odd):,} of {len(prompts):,} prompts in other tokens than "
                         f"{baseline.folder}, the first {odd[0]!r}, and is to answer what the baseline answers: their "
                         "chat templates differ. Set chat_template_path to the one that both shall be given")


def evaluate_policies(command: EvaluateCommand, context: Context) -> Outcome:
    """`rlhf-jax evaluate` of a policy: fresh samples of it and of its baseline, judged, ready for the report."""
    data: DataOptions = part(command, DataOptions)
    checkpoints = {label: Checkpoint.find(str(name), data.chat_template_path).as_policy() for label, name in (
        ("baseline", command.baseline_model), ("policy", command.model_name_or_path))}
    policies = [Policy(label, checkpoint, checkpoint.key) for label, checkpoint in checkpoints.items()]
    scorers = [open_scorer(options, context.local_mesh, name)
               for name, options in (("proxy", command.scorer), ("gold", command.gold)) if options is not None]
    examples, funnel = read_data(data, "prompt", Path(command.output_dir) / "quarantine.jsonl")
    start, policy = policies
    check_vocabularies(start.checkpoint, policy.checkpoint, "The policy is given the baseline's tokens, and the "
                       "baseline is asked for the probability of the policy's; give models of one tokenizer")
    prompts, own = (prompt_groups(examples, checkpoint.renderer(data), counts) for checkpoint, counts in (
        (start.checkpoint, funnel), (policy.checkpoint, Funnel())))
    _check_same_prompts(start, policy, prompts, own)
    judged = {p.label: evaluate_policy(context, p, start, prompts, command.sampling, scorers, command.dtype)
              for p in policies}
    return Outcome([(p, p.label, i) for i, p in enumerate(policies)], judged, {"prompts": funnel}, None)


VERBS: dict[str, tuple[type, Any]] = {
    "sft": (SftCommand, run_sft),
    "reward": (RewardCommand, run_reward),
    "dpo": (DpoCommand, run_dpo),
    "generate": (GenerateCommand, run_generate),
    "score": (ScoreCommand, run_score),
    "pairs": (PairsCommand, run_pairs),
    "evaluate": (EvaluateCommand, run_evaluate),
    "export": (ExportCommand, run_export),
}
"""Verb -> (its config, what it does)."""


