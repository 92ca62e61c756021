"""A model made into a folder that others load: dtype chosen, adapter merged, a killed run's last checkpoint taken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config.commands import ExportCommand
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.data.tokenizer import check_vocabulary, load_tokenizer
from rlhf_jax.models import (
    CheckpointError,
    DecoderConfig,
    Params,
    cast,
    find_model,
    merge_lora,
    param_specs,
    save_hf,
    with_score,
)
from rlhf_jax.models.folder import TOKENIZER_CONFIG, is_adapter, own_template
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.models.params import is_spec
from rlhf_jax.parallel import on_main, shaped, spec_shardings
from rlhf_jax.training.checkpoints import restore_params, saved_params
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import Preview
from rlhf_jax.workflow.products import CHECKPOINTS, INPUTS, MODEL
from rlhf_jax.workflow.reward_model import pad_as_config, reading_note
from rlhf_jax.workflow.stage import Stage, hash_path
from rlhf_jax.workflow.stages.train import atomic_model_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """Exporting a model folder, an adapter with its base, or a training stage's last checkpoint with its base.

    Attributes:
      base: whose config, tokenizer and weights are used.
      checkpoint: what is laid over it, if anything.
      dtype: of the written weights. max_shard_size: gigabytes of one file.
    """

    base: Checkpoint
    checkpoint: Path | None = None
    dtype: str
    max_shard_size: float

    def inputs(self) -> dict[str, Any]:
        return {**super().inputs(), "checkpoint": self.checkpoint and hash_path(self.checkpoint)}

    def preview(self, context: Context) -> Preview:
        del context
        return Preview(self.base)

    def run(self, folder: Path, context: Context) -> Mapping[str, Any]:
        params, config, what = self._source(context.mesh)
        if config.is_classifier and (self.base.folder / TOKENIZER_CONFIG).is_file():
            config = dataclasses.replace(config, pad_token_id=self.base.reward_model.pad_token_id)
        with atomic_model_dir(folder) as new:
            save_hf(new, cast(params, jnp.dtype(self.dtype)), config, tokenizer_from=self.base.tokenizer_folder,
                    generation_from=self.base.folder, chat_template=self.base.chat_template,
                    max_shard_bytes=int(self.max_shard_size * 1e9),
                    card=f"# {folder.name}\n\nExported by rlhf_jax from {what}, as {self.dtype}.\n"
                    + reading_note(config, self.base.folder))
            on_main(lambda: pad_as_config(new, config))
        again = Checkpoint(folder / MODEL)
        loaded = again.params(context.mesh, jnp.dtype(self.dtype))  # raises for a tensor missing or of another shape
        return {"exported": what, "dtype": self.dtype, "parameters": sum(x.size for x in jax.tree.leaves(loaded)),
                "files": sorted(path.name for path in (folder / MODEL).iterdir())}

    def _source(self, mesh: Mesh) -> tuple[Params, DecoderConfig, str]:
        """Weights, their shape, and what they are in words."""
        config, name = self.base.config, self.base.folder.name
        if self.checkpoint is not None:
            return _checkpointed(self.checkpoint, self.base, mesh)
        params, adapter = self.base.params(mesh), self.base.adapter
        if adapter is None:
            return params, config, f"`{name}`"
        return params, config, f"`{name}` with the adapter `{adapter.name}` merged"


def find_source(command: ExportCommand) -> ExportStage:
    """The export of a model, an adapter or a checkpoint, whichever `command` names.

    Raises:
      CheckpointError: if there is no such model, or a base is given where none is needed.
    """
    folder = find_model(command.model_name_or_path)
    export = partial(ExportStage, dtype=command.dtype, max_shard_size=command.max_shard_size)
    if command.checkpoint is None:
        return export(base=_opened(folder, command.base_model))
    if is_adapter(folder):
        raise CheckpointError("checkpoint holds trained weights, and so does an adapter; give the base model and one "
                              "of them")
    checkpoint = Path(command.checkpoint)
    template = None if own_template(checkpoint) is None else str(checkpoint)  # what it was trained with
    return export(base=Checkpoint.find(folder, template, command.base_model), checkpoint=checkpoint)


def _opened(folder: Path, base_model: str | None) -> Checkpoint:
    """The model or adapter in a folder; that an adapter's tokenizer does not fit its base is said now."""
    found = Checkpoint.find(folder, base_model=base_model)
    if found.adapter is not None:
        folder = found.tokenizer_folder
        check_vocabulary(load_tokenizer(str(folder)), found.stored_config.vocab_size, folder)
    return found


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
    if "score" in shapes:
        config = _classifier(config, shapes["score"].shape[0])
    lora = _lora_of(folder) if "lora" in shapes else None
    params = restore_params(saved, step, _placed(shapes, _trained_specs(config, lora, "score" in shapes), mesh))
    if lora is not None:
        merged = merge_lora(base.params(mesh), params["lora"], lora.scale)
        params = with_score(merged, params["score"]) if "score" in params else merged
    return params, config, f"step {step} of the unfinished training in `{folder.name}`"


def _classifier(config: DecoderConfig, labels: int) -> DecoderConfig:
    """A model's shape with a trained head over it; a classifier keeps its own."""
    return config if config.is_classifier else dataclasses.replace(config, num_labels=labels, tie_embeddings=False)


def _lora_of(folder: Path) -> LoraConfig:
    options = json.loads((folder / INPUTS).read_text())["inputs"]["options"]
    return LoraConfig(True, options["lora_r"], options["lora_alpha"], tuple(options["lora_target_modules"]),
                      options.get("use_rslora", False))


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
