"""Hugging Face folders in and out: safetensors by name table, config.json, PEFT adapters.

`AutoModelForCausalLM` / `AutoModelForSequenceClassification` load what `save_hf` writes; nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from rlhf_jax.models.config import DecoderConfig, config_from_hf, config_to_hf
from rlhf_jax.models.lora import LoraConfig, lora_specs
from rlhf_jax.models.params import Params, ParamSpec, is_spec, param_specs

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                   "tokenizer.model", "vocab.json", "merges.txt")


class CheckpointError(ValueError):
    """A folder that is not the checkpoint it is asked to be: says what was found, what was expected, what to do."""


def read_config(folder: str | Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder; stop ids of generation_config.json take precedence."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no Hugging Face model folder; "
                              "give a folder written by save_pretrained or by `rlhf-jax`")
    raw = json.loads(path.read_text())
    generation = folder / "generation_config.json"
    if generation.is_file():
        stop = json.loads(generation.read_text()).get("eos_token_id")
        raw["eos_token_id"] = raw.get("eos_token_id") if stop is None else stop
    return config_from_hf(raw)


def _shards(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json; "
                              "convert older formats with transformers' save_pretrained(safe_serialization=True)")
    with safe_open(single, framework="numpy") as reader:
        return dict.fromkeys(reader.keys(), single)


def _hf_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    """Shape of a weight in the file (see `ParamSpec.inputs`)."""
    if inputs is None:
        return shape
    return (math.prod(shape),) if inputs == 0 else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _from_hf(tensor: np.ndarray, shape: tuple[int, ...], inputs: int | None) -> np.ndarray:
    return tensor.T.reshape(shape) if inputs else tensor.reshape(shape)


def _to_hf(array: np.ndarray, inputs: int | None) -> np.ndarray:
    if inputs is None:
        return array
    if inputs == 0:
        return array.reshape(-1)
    return np.ascontiguousarray(array.reshape(int(np.prod(array.shape[:inputs])), -1).T)


def _layer_count(spec: ParamSpec) -> int | None:
    return spec.shape[0] if spec.axes[0] == "layers" else None


def tensor_names(specs: dict[str, Any]) -> list[str]:
    """Every Hugging Face tensor name of a spec tree."""
    names: list[str] = []
    for spec in jax.tree.leaves(specs, is_leaf=is_spec):
        count = _layer_count(spec)
        names += [spec.hf_name] if count is None else [spec.hf_name.format(layer=i) for i in range(count)]
    return names


def _check_names(expected: list[str], found: dict[str, Path], folder: Path, config: DecoderConfig) -> None:
    missing = sorted(set(expected) - set(found))
    ignorable = {"lm_head.weight"} if config.tie_embeddings else set()
    extra = sorted(name for name in set(found) - set(expected) - ignorable if "rotary_emb" not in name)
    if missing or extra:
        kind = "reward model (sequence classifier)" if config.is_classifier else "language model"
        raise CheckpointError(
            f"{folder} does not hold the tensors of a {config.family} {kind}: "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}. "
            "Check that config.json belongs to these weights and that the checkpoint is of the kind you ask for")


def load_params(folder: str | Path, config: DecoderConfig | None = None, dtype: Any = jnp.float32) -> Params:
    """Weights of a Hugging Face folder as our tree, on the host (numpy), layers stacked.

    Raises:
      CheckpointError: if a tensor is missing, unexpected, or of another shape than the config says.
    """
    folder = Path(folder)
    config = config or read_config(folder)
    files, specs = _shards(folder), param_specs(config)
    _check_names(tensor_names(specs), files, folder, config)
    readers = {path: safe_open(path, framework="numpy") for path in set(files.values())}

    def read(name: str, shape: tuple[int, ...], inputs: int | None) -> np.ndarray:
        tensor = readers[files[name]].get_tensor(name)
        if tensor.shape != (expected := _hf_shape(shape, inputs)):
            raise CheckpointError(f"{name} in {files[name]} has shape {tensor.shape}; config.json implies {expected}. "
                                  "The weights belong to another configuration")
        return _from_hf(tensor, shape, inputs).astype(dtype)

    def one(spec: ParamSpec) -> np.ndarray:
        count = _layer_count(spec)
        if count is None:
            return read(spec.hf_name, spec.shape, spec.inputs)
        out = np.empty(spec.shape, dtype)
        for layer in range(count):
            out[layer] = read(spec.hf_name.format(layer=layer), spec.shape[1:], spec.inputs)
        return out

    return jax.tree.map(one, specs, is_leaf=is_spec)


def hf_tensors(params: Params, specs: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, tensor) for each weight, one layer at a time."""
    for spec, value in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(params), strict=True):
        array = np.asarray(value)
        count = _layer_count(spec)
        if count is None:
            yield spec.hf_name, _to_hf(array, spec.inputs)
            continue
        for layer in range(count):
            yield spec.hf_name.format(layer=layer), _to_hf(array[layer], spec.inputs)


def save_hf(folder: str | Path, params: Params, config: DecoderConfig, *, tokenizer_from: str | Path | None = None,
            max_shard_bytes: int = 4 << 30) -> None:
    """Writes a Hugging Face model folder: safetensors (sharded above `max_shard_bytes`), config, tokenizer files.

    The caller gives a folder that does not exist yet and renames it when this returns, so nothing half-written is
    ever taken for a model. `tokenizer_from` is the folder the tokenizer files are copied from.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in hf_tensors(params, param_specs(config)):
        if size and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    files = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        _write_json(folder / "model.safetensors.index.json",
                    {"metadata": {"total_size": total}, "weight_map": weight_map})
    dtype = str(jax.tree.leaves(params)[0].dtype)
    _write_json(folder / "config.json", config_to_hf(config, dtype))
    if not config.is_classifier:
        _write_json(folder / "generation_config.json", {
            "bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": config.pad_token_id})
    for name in TOKENIZER_FILES if tokenizer_from is not None else ():
        source = Path(tokenizer_from or "") / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def save_adapter(folder: str | Path, adapter: Params, config: DecoderConfig, lora: LoraConfig, base: str) -> None:
    """Writes a LoRA adapter in PEFT's layout (adapter_config.json, adapter_model.safetensors)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(t) for name, t in hf_tensors(adapter, lora_specs(config, lora))}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "adapter_config.json", {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if config.is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base, "r": lora.lora_r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0,
        "target_modules": list(lora.lora_target_modules), "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
