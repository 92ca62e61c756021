"""A model made into a folder that others load: dtype chosen, adapter merged, a killed run's last checkpoint taken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.models import (
    CheckpointError,
    DecoderConfig,
    LoraConfig,
    Params,
    adapter_base,
    cast,
    find_model,
    load_adapter,
    merge_lora,
    param_specs,
    save_hf,
)
from rlhf_jax.models.hf import CHAT_TEMPLATE, TOKENIZER_CONFIG
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.models.params import is_spec
from rlhf_jax.parallel import on_main, shaped, spec_shardings
from rlhf_jax.training.checkpoints import restore_params, saved_params
from rlhf_jax.workflow.policy import Checkpoint
from rlhf_jax.workflow.reward_model import pad_as_config, reading_note
from rlhf_jax.workflow.train import CHECKPOINTS, MODEL, published


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported: a model folder, an adapter with its base, or a training stage's last checkpoint with its base.

    base: whose config, tokenizer and frozen weights are used. adapter, checkpoint: what is laid over it, if anything.
    """

    base: Checkpoint
    adapter: Path | None = None
    checkpoint: Path | None = None


def find_source(model_name_or_path: str, base_model: str | None, checkpoint: str | None) -> Source:
    """Tells a model from an adapter.

    Raises:
      CheckpointError: if there is no such model, or a base is given where none is needed.
    """
    folder = find_model(model_name_or_path)
    named = adapter_base(folder)
    if named is None or (folder / "config.json").is_file():
        if base_model is not None:
            raise CheckpointError(f"{folder} is a whole model and needs no base_model; leave base_model out")
        if checkpoint is None:
            return Source(Checkpoint(folder))
        return Source(Checkpoint(folder, _template(Path(checkpoint))), checkpoint=Path(checkpoint))
    if checkpoint is not None:
        raise CheckpointError("checkpoint holds trained weights, and so does an adapter; give the base model and one "
                              "of them")
    return Source(Checkpoint.find(base_model or named, _template(folder)), adapter=folder)


def _template(folder: Path) -> str | None:
    """The chat template beside an adapter or an unfinished training: what it was trained with, if not its base's."""
    path = folder / CHAT_TEMPLATE
    return str(path) if path.is_file() else None


def _checkpointed(folder: Path, base: Checkpoint, mesh: Mesh) -> tuple[Params, DecoderConfig, str]:
    """The parameters of the last whole checkpoint of an unfinished training stage, merged where it was an adapter."""
    saved = folder / CHECKPOINTS
    if not saved.is_dir():
        raise CheckpointError(f"{folder} holds no folder {CHECKPOINTS!r}; give the folder of a training stage that did "
                              f"not finish (a finished one has its model in {folder / MODEL})")
    found = saved_params(saved)
    if found is None:
        raise CheckpointError(f"{saved} holds no finished checkpoint yet")
    step, shapes = found
    config = base.config
    if "score" in shapes and not config.is_classifier:
        config = dataclasses.replace(config, num_labels=shapes["score"].shape[0], tie_embeddings=False)
    lora = _lora_of(folder) if "lora" in shapes else None
    params = restore_params(saved, step, _placed(shapes, _trained_specs(config, lora, "score" in shapes), mesh))
    if lora is not None:
        merged = merge_lora(base.params(mesh), params["lora"], lora.scale)
        score = {"score": params["score"]} if "score" in params else {}
        params = {key: value for key, value in merged.items() if key not in ("score", "head") or not score} | score
    return params, config, f"step {step} of the unfinished training in `{folder.name}`"


def _lora_of(folder: Path) -> LoraConfig:
    options = json.loads((folder / "inputs.json").read_text())["inputs"]["options"]
    return LoraConfig(options["lora_r"], options["lora_alpha"], tuple(options["lora_target_modules"]))


def _trained_specs(config: DecoderConfig, lora: LoraConfig | None, scored: bool) -> dict[str, Any]:
    """`ParamSpec`s of what was trained: all weights, or an adapter and the scalar head, if any."""
    whole = param_specs(config)
    if lora is None:
        return whole
    return {"lora": lora_specs(config, lora), **({"score": whole["score"]} if scored else {})}


def _placed(shapes: Any, specs: Any, mesh: Mesh) -> Any:
    """The saved shapes with this mesh's shardings.

    Raises:
      CheckpointError: if they are not the shapes of `specs`, which are the base model's.
    """
    ours, theirs = ({jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=is_spec)} for tree in (shapes, specs))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(f"this is a checkpoint of another model: {name} is {ours.get(name, 'missing')} in it "
                                  f"and {theirs.get(name, 'missing')} in the base; give the model that it started from")
    return shaped(shapes, spec_shardings(specs, mesh))


def export_stage(folder: Path, *, source: Source, mesh: Mesh, dtype: str, max_shard_bytes: int) -> Mapping[str, Any]:
    """Writes `folder`/model, whole or not at all, and opens it again as a check; returns what it is."""
    config, name = source.base.config, source.base.folder.name
    if source.checkpoint is not None:
        params, config, what = _checkpointed(source.checkpoint, source.base, mesh)
    else:
        params, what = source.base.params(mesh), f"`{name}`"
    if source.adapter is not None:
        adapter = load_adapter(source.adapter, config)
        score = {} if adapter.score is None else {"score": jnp.asarray(adapter.score)}
        params = {**merge_lora(params, adapter.params, adapter.lora.scale), **score}
        what = f"`{name}` with the adapter `{source.adapter.name}` (rank {adapter.lora.lora_r}) merged"
    if config.is_classifier and (source.base.folder / TOKENIZER_CONFIG).is_file():
        config = dataclasses.replace(config, pad_token_id=source.base.reward_model.pad_token_id)
    with published(folder) as new:
        save_hf(new, cast(params, jnp.dtype(dtype)), config, tokenizer_from=source.base.folder,
                chat_template=source.base.chat_template, max_shard_bytes=max_shard_bytes,
                card=f"# {folder.name}\n\nExported by rlhf_jax from {what}, as {dtype}.\n"
                + reading_note(config, source.base.folder))
        on_main(lambda: pad_as_config(new, config))
    again = Checkpoint(folder / MODEL)
    loaded = again.params(mesh, jnp.dtype(dtype))  # raises where a tensor is missing or of another shape
    return {"exported": what, "dtype": dtype, "parameters": sum(x.size for x in jax.tree.leaves(loaded)),
            "files": sorted(path.name for path in (folder / MODEL).iterdir())}
