"""Models written as Hugging Face folders: sharded safetensors, config, tokenizer, card.

`AutoModelForCausalLM` / `AutoModelForSequenceClassification` load what `save_hf` writes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import load_file, save_file

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.families import config_from_hf, config_to_hf
from rlhf_jax.models.folder import (
    CONFIG,
    GENERATION_CONFIG,
    INDEX,
    CheckpointError,
    copy_companions,
    read_json,
    write_chat_template,
    write_json,
)
from rlhf_jax.models.hf import WEIGHTS, hf_shape, parts, to_hf
from rlhf_jax.models.params import Params, ParamSpec, count_params, is_spec, param_specs

_Source = tuple[Any, tuple[int, ...], ParamSpec]
"""A weight, the index on its stacked axes, its spec: what a tensor of the file, or a part of one, is made from."""


def _sources(params: Params, specs: dict[str, Any]) -> dict[str, list[_Source]]:
    """Tensor name -> its parts in order; one part unless the family fuses weights."""
    found: dict[str, list[_Source]] = {}
    for spec, weight in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(params), strict=True):
        for name, index in parts(spec):
            found.setdefault(name, []).append((weight, index, spec))
    return {name: sorted(some, key=lambda part: part[2].fused or (0, 0)) for name, some in found.items()}


def on_host(array: Any) -> np.ndarray:
    """A whole array, on the host of every process."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _tensor(sources: list[_Source]) -> np.ndarray:
    """One tensor of the file, on the host of every process."""
    pieces = []
    for weight, index, spec in sources:
        pieces.append(to_hf(on_host(weight[index] if index else weight), spec))
    return np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))


def hf_tensors(params: Params, specs: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, tensor) for each tensor of the file, one at a time."""
    for name, sources in _sources(params, specs).items():
        yield name, _tensor(sources)


def _planned_files(sources: dict[str, list[_Source]], max_shard_bytes: int) -> list[list[str]]:
    """Tensor names of each file, in order, no file above the limit unless one tensor is."""
    files: list[list[str]] = [[]]
    size = 0
    for name, some in sources.items():
        nbytes = math.prod(hf_shape(some[0][2])) * some[0][0].dtype.itemsize
        if size and size + nbytes > max_shard_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += nbytes
    return files


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a file, with the rights that the umask gives, and reads it back: what is on disk is what was meant.

    Raises:
      CheckpointError: a tensor holds NaN or infinity, or reads back as another.
    """
    if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise CheckpointError(f"{len(broken)} tensors hold NaN or infinity (the first: {broken[0]}, "
                              f"{tensors[broken[0]].dtype}), so nothing was exported. A training that ends so has "
                              "diverged: lower learning_rate or max_grad_norm. Weights beyond the range of float16 are "
                              "exported as bfloat16 or float32")
    path.touch()
    rights = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})  # puts a file of its own in the place, of mode 0600
    path.chmod(rights)
    back = load_file(path)
    wrong = [name for name, tensor in tensors.items()
             if name not in back or back[name].dtype != tensor.dtype or back[name].tobytes() != tensor.tobytes()]
    if wrong:
        raise CheckpointError(f"{path} does not read back as it was written: {wrong[:3]} differ. The disk may be "
                              "full or failing; nothing was exported")


def written_config(config: DecoderConfig, dtype: str = "float32") -> dict[str, Any]:
    """The config.json of a model. Raises CheckpointError if it would read back as another one."""
    raw, published = config_to_hf(config, dtype), dataclasses.replace(config, vocab_multiple=1)
    again = config_from_hf(raw)
    if again == published:
        return raw
    apart = ", ".join(f"{field.name} = {getattr(again, field.name)} instead of {getattr(published, field.name)}"
                      for field in dataclasses.fields(published)
                      if getattr(again, field.name) != getattr(published, field.name))
    raise CheckpointError(f"a {config.family} model of this kind can be read and not written: its config.json would "
                          f"read back with {apart}")


def save_hf(folder: str | Path, params: Params, config: DecoderConfig, *, tokenizer_from: str | Path | None = None,
            generation_from: str | Path | None = None, chat_template: str | None = None,
            max_shard_bytes: int = 4 << 30, card: str = "") -> None:
    """Writes a Hugging Face model folder: safetensors (sharded above `max_shard_bytes`), config, tokenizer, card.

    The caller gives a folder that does not exist yet and renames it when this returns, so nothing half-written is
    ever taken for a model. One file's tensors are in memory at a time; with several processes each writes every n-th
    file. Each file is read back and compared.

    Args:
      tokenizer_from: folder whose tokenizer, and what else lies beside its weights, is copied (`copy_companions`).
      generation_from: folder whose generation_config.json gives the sampling defaults; None for `tokenizer_from`.
      chat_template: text that replaces the template among the copied files.
      card: what the model card says of how the model came about (Markdown).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    raw = written_config(config, dtype)
    sources = _sources(params, param_specs(config))
    planned = _planned_files(sources, max_shard_bytes)
    names = [WEIGHTS] if len(planned) == 1 else [
        f"model-{i + 1:05d}-of-{len(planned):05d}.safetensors" for i in range(len(planned))]
    for number, (file, members) in enumerate(zip(names, planned, strict=True)):
        mine = number % jax.process_count() == jax.process_index()
        tensors = {}
        for name in members:  # all processes take part in gathering; the writer keeps it
            tensor = _tensor(sources[name])
            if mine:
                tensors[name] = tensor
        if mine:
            write_tensors(folder / file, tensors)
    if jax.process_index() == 0:
        if len(planned) > 1:
            write_json(folder / INDEX, {
                "metadata": {"total_size": count_params(config) * jax.tree.leaves(params)[0].dtype.itemsize},
                "weight_map": {name: file for file, members in zip(names, planned, strict=True) for name in members}})
        write_json(folder / CONFIG, raw)
        if not config.is_classifier:
            defaults = Path(generation_from or tokenizer_from or "") / GENERATION_CONFIG
            given = read_json(defaults) if defaults.is_file() else {}
            own = {key: getattr(config, key) if given.get(key) is None else given[key]
                   for key in ("bos_token_id", "pad_token_id")}
            write_json(folder / GENERATION_CONFIG, {**given, **own, "eos_token_id": list(config.eos_token_ids)})
        if card:
            (folder / "README.md").write_text(_card(config, card))
        if tokenizer_from is not None:
            copy_companions(Path(tokenizer_from), folder)
        if chat_template is not None:
            write_chat_template(folder, chat_template)


def _card(config: DecoderConfig, text: str) -> str:
    task = "text-classification" if config.is_classifier else "text-generation"
    head = f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- rlhf_jax\n---\n\n"
    return f"{head}{text.rstrip()}\n\n{count_params(config):,} parameters, family {config.family}.\n"
