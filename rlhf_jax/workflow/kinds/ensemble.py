"""`kind: ensemble`: several reward heads, whose disagreement says how far to trust them (arXiv 2310.02743)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config.scorer import EnsembleScoring
from rlhf_jax.config.training import EnsembleOptions
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.prompt_text import normalised, plain_text
from rlhf_jax.data.rows import Example
from rlhf_jax.models import DecoderConfig, Params, as_classifier
from rlhf_jax.scoring.ensemble import EnsembleScorer, member_labels
from rlhf_jax.training.ensemble import Ensemble, draw_name
from rlhf_jax.training.objectives import Compute, Objective
from rlhf_jax.workflow.checkpoint import Checkpoint, check_vocabularies
from rlhf_jax.workflow.kinds.base import GivenWeights, Kind, Passes, TrainedKind, find_model_of, open_model, read_at
from rlhf_jax.workflow.reward_model import reward_config
from rlhf_jax.workflow.stage import fingerprint


def ensemble_config(options: EnsembleOptions, config: DecoderConfig) -> DecoderConfig:
    """The shape of an ensemble on a language model's backbone; one that has several heads already keeps its own."""
    if config.is_classifier and config.num_labels != 1:
        return config
    return dataclasses.replace(reward_config(config), num_labels=options.members,
                               labels=member_labels(options.members))


def open_scorer(options: EnsembleScoring, mesh: Mesh, name: str, weights: GivenWeights = None) -> EnsembleScorer:
    """The checkpoint's heads, and those of the other members, as one scorer.

    Raises:
      CheckpointError: as `EnsembleScorer` does.
      ValueError: a member has another vocabulary or chat template than the first.
    """
    first = find_model_of(options.model)
    others = [Checkpoint.find(member, options.model.chat_template_path) for member in options.members]
    for other in others:
        check_vocabularies(first, other, "The members of an ensemble read the same tokens in one pass; give reward "
                           "models of one tokenizer")
        if other.tokenizer.chat_template != first.tokenizer.chat_template:
            raise ValueError(f"{other.folder} has another chat template than {first.folder}, and the members of an "
                             "ensemble read the same tokens; set chat_template_path to the one that both shall have")
    model = open_model(dataclasses.replace(options, members=()), mesh, weights)
    dtype = jnp.dtype(options.model.dtype)

    def params() -> Params:
        if weights is not None:
            return {"0": weights()} | member_weights({str(i): x for i, x in enumerate(others, start=1)}, mesh, dtype)
        return member_weights({str(i): x for i, x in enumerate((first, *others))}, mesh, dtype)

    def key() -> str:
        return fingerprint([model.key(), *(other.key for other in others)]) if others else model.key()

    configs = [read_at(config, options.score_at) for config in (model.config, *(other.config for other in others))]
    return EnsembleScorer(params, configs, model.renderer, mesh, name=name, key=key, aggregate=options.aggregate,
                          uncertainty_weight=options.uncertainty_weight)


def member_weights(members: Mapping[str, Checkpoint], mesh: Mesh, dtype: Any) -> dict[str, Params]:
    """The weights of each; adapters of one base stay beside it, and its arrays are held once for all of them."""
    bases = Counter(member.shared_base for member in members.values())
    of = {member.shared_base: member for member in members.values()}
    loaded = {base: of[base].base_params(mesh, dtype) for base, count in bases.items() if base and count > 1}
    return {name: member.over(loaded[base], mesh) if (base := member.shared_base) in loaded
            else member.params(mesh, dtype) for name, member in members.items()}


def several_heads(options: EnsembleOptions, params: Params, config: DecoderConfig) -> tuple[Params, DecoderConfig]:
    """A language model with fresh heads, each drawn by itself, or the ensemble it already is."""
    if "score" not in params:
        shape = ensemble_config(options, config)
        return as_classifier(params, jax.random.key(options.train.seed), shape), shape
    if config.num_labels != options.members:
        raise ValueError(f"members = {options.members} and this checkpoint has {config.num_labels} output(s); start "
                         "from a language model, or from an ensemble of as many members")
    return params, config


def draws(prompt: str, options: EnsembleOptions) -> dict[str, float]:
    """How often each member draws a prompt: Poisson of mean 1, the bootstrap's count where there are many prompts.

    Rows of one prompt are drawn together, and whatever else the data holds changes nothing.
    """
    digest = hashlib.sha256(f"{options.train.seed} {prompt}".encode()).digest()
    counts = np.random.default_rng(list(digest)).poisson(1.0, options.members)
    return {draw_name(member): float(count) for member, count in enumerate(counts)}


def with_draws(options: EnsembleOptions, examples: Sequence[Example], funnel: Funnel, renderer: Renderer
               ) -> Sequence[Example]:
    """Pairs whose responses carry how often each member draws their prompt."""
    del funnel, renderer
    if not options.bootstrap:
        return examples
    out = OnDisk[Example]()
    for example in examples:
        drawn = draws(normalised(plain_text(example.prompt)), options)
        scores = example.scores or ({},) * len(example.responses)
        out.append(dataclasses.replace(example, scores=tuple({**some, **drawn} for some in scores)))
    return out


def objective(options: EnsembleOptions) -> Callable[[Compute], Objective]:
    return partial(Ensemble, members=options.members, bootstrap=options.bootstrap,
                   center_rewards_coefficient=options.center_rewards_coefficient)


def is_ensemble(config: DecoderConfig) -> bool:
    """A checkpoint with the outputs of an ensemble."""
    return config.num_labels > 1 and config.labels == member_labels(config.num_labels)


def outputs(compute: Compute) -> Callable[[Params, Any], Any]:
    """Of one checkpoint; what members are put together by is too small to count."""
    return compute.slot_scores


KIND = Kind(
    options=EnsembleScoring, open=open_scorer, shape=reward_config,
    passes=lambda options, responses: Passes(1 + len(options.members), responses), outputs=outputs,
    training=TrainedKind(options=EnsembleOptions, examples=with_draws, model=several_heads, shape=ensemble_config,
                         objective=objective, responses=2, quoted=0, reads_head=True,
                         served=lambda options, model: EnsembleScoring(model)))
