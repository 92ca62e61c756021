"""What a checkpoint is, before any of it is loaded: family, head, tensors, and bytes per device on a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from rlhf_jax.config.mesh import AXES, MeshConfig
from rlhf_jax.models import FAMILIES, DecoderConfig, count_params, param_specs
from rlhf_jax.models.families import head_kind
from rlhf_jax.models.hf import compare_tensors, open_tensors, stored_tensors
from rlhf_jax.models.params import is_spec
from rlhf_jax.parallel import param_shardings
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.kinds.ensemble import is_ensemble
from rlhf_jax.workflow.kinds.odin import LABELS as ODIN_LABELS
from rlhf_jax.workflow.kinds.outcome import LABELS as OUTCOME_LABELS
from rlhf_jax.workflow.products import TREE

_WIDE, _NARROW = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
      facts: name -> value, in the order a reader wants them.
      missing, unexpected, ignored: tensors the config asks for and the files lack; those that would be refused; those
        that are passed over. wrong: what is wrong with others.
      memory: what -> bytes of one device.
    """

    facts: dict[str, Any]
    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    wrong: list[str]
    memory: dict[str, int]

    @property
    def loads(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong)


def inspect_model(folder: Path, mesh: MeshConfig, devices: int) -> Inspection:
    """Reads config.json and the headers of the weight files only.

    Raises:
      CheckpointError, ValueError: if the folder is no model of a supported family; the text says what differs.
    """
    config = Checkpoint(folder).config
    stored = stored_tensors(folder)
    differences = compare_tensors(param_specs(config), stored)
    shape = dict(zip(AXES, mesh.shape(devices), strict=True))
    files = {tensor.file for tensor in stored.values()}
    head = f"{config.num_labels} score(s) per response" if config.is_classifier else "next-token logits"
    tied = " (tied to the input embedding)" if config.tie_embeddings and not config.is_classifier else ""
    facts = {
        "folder": str(folder),
        "architecture": FAMILIES[config.family].architectures[head_kind(config)],
        "head": head + tied,
        **({"outputs": ", ".join(config.labels)} if config.labels else {}),
        "serves": served_kinds(folder, config),
        "parameters": f"{count_params(config):,}",
        "layers, width": f"{config.layers} x {config.embed}, mlp {config.mlp}"
                         + f" x {config.experts} experts" * bool(config.experts),
        "heads": f"{config.heads} over {config.kv_heads} key heads of {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,}, padded to {config.vocab_rows:,} rows in memory",
        "positions": f"{config.max_position:,}" + (f", window {config.window} in {sum(config.local_layers)} layers"
                                                   if config.window else ""),
        "stop tokens": ", ".join(map(str, config.eos_token_ids)) or "none in config.json",
        "files": f"{len(files)}, {sum(file.stat().st_size for file in files):,} bytes",
        "stored as": ", ".join(f"{dtype} x {count}" for dtype, count in sorted(_dtypes(files).items())),
        "mesh": ", ".join(f"{axis} {size}" for axis, size in shape.items()) + f" = {devices} device(s)",
    }
    return Inspection(facts, *differences, memory=_memory(config, shape))


def served_kinds(folder: Path, config: DecoderConfig) -> str:
    """The kinds of scorer that a checkpoint can be opened as; of a language model also what else it does."""
    if not config.is_classifier:
        return ("a policy; kind: implicit against its reference_model; kind: local_judge; kind: pairwise if it was "
                "trained to answer A or B; kind: process or outcome_generative if + or -")
    if config.gate is not None:
        return "kind: multi_objective"
    if (folder / TREE).is_file():
        return "kind: tree; one of its regressions as kind: bradley_terry with output"
    if config.labels == ODIN_LABELS:
        return "kind: odin"
    if config.labels == OUTCOME_LABELS:
        return "kind: outcome"
    if is_ensemble(config):
        return "kind: ensemble"
    plain = "kind: bradley_terry" + " with output" * (config.num_labels > 1)
    return f"kind: regression; {plain}" if config.labels else plain


def _dtypes(files: set[Path]) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in files:
        with open_tensors(file) as reader:
            found.update(reader.get_slice(name).get_dtype() for name in list(reader.keys()))
    return found


def _memory(config: DecoderConfig, shape: dict[str, int]) -> dict[str, int]:
    """Bytes on one device for what a run holds whatever its batch: weights, training state, a cache per token."""
    shardings = param_shardings(config, AbstractMesh(tuple(shape.values()), tuple(shape)))
    mine = sum(math.prod(sharding.shard_shape(spec.shape)) for spec, sharding in zip(
        jax.tree.leaves(param_specs(config), is_leaf=is_spec), jax.tree.leaves(shardings), strict=True))
    keys_of_one = config.kv_heads // shape["tensor"] if config.kv_heads % shape["tensor"] == 0 else config.kv_heads
    return {
        "weights, float32": mine * _WIDE,
        "weights, bfloat16": mine * _NARROW,
        "training state: float32 masters, two Adam moments, gradients": mine * _WIDE * 4,
        "training in bfloat16: the same and the working copy": mine * (_WIDE * 4 + _NARROW),
        "cache of 1,000 tokens, bfloat16": 2 * config.layers * keys_of_one * config.head_dim * 1000 * _NARROW,
    }
