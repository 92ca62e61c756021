"""LoRA adapters in PEFT's layout, read and written; nothing here imports PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.hf import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointError, Stored, compare_tensors, open_tensors
from rlhf_jax.models.load import TensorReader, read_whole
from rlhf_jax.models.lora import TARGETS, lora_specs
from rlhf_jax.models.params import Params, ParamSpec, is_spec
from rlhf_jax.models.save import hf_tensors, on_host, write_chat_template, write_json, write_tensors


class Adapter(NamedTuple):
    """A LoRA adapter as PEFT keeps it: the base it belongs to, its settings, weights, and a classifier's own head."""

    base: str
    lora: LoraConfig
    params: Params
    score: np.ndarray | None


_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "use_rslora": (False, None),
    "fan_in_fan_out": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "modules_to_save": (["score"], [], None), "layers_to_transform": (None,),
}
_SCORE = "base_model.model.score.weight"


def adapter_base(folder: str | Path) -> str | None:
    """The base model an adapter folder names; None if the folder holds no adapter."""
    path = Path(folder) / ADAPTER_CONFIG
    return json.loads(path.read_text())["base_model_name_or_path"] if path.is_file() else None


def load_adapter(folder: str | Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Adapter:
    """A LoRA adapter written by PEFT, TRL or `save_adapter`, for the model of `config`, as numpy arrays.

    Raises:
      CheckpointError: if the adapter has settings beyond plain LoRA, or its tensors are not those of this model.
    """
    folder = Path(folder)
    raw = json.loads((folder / ADAPTER_CONFIG).read_text())
    odd = {key: raw[key] for key, known in _PLAIN_LORA.items() if key in raw and raw[key] not in known}
    targets = raw["target_modules"]
    if odd or isinstance(targets, str) or not set(targets) <= set(TARGETS):
        raise CheckpointError(f"{folder} adapts {targets} with {odd or 'plain settings'}; supported is plain LoRA on "
                              f"{sorted(TARGETS)}. Merge the adapter with PEFT (merge_and_unload) and give the result")
    lora = LoraConfig(True, raw["r"], raw["lora_alpha"], tuple(sorted(targets)))
    specs = lora_specs(config, lora)
    with open_tensors(folder / ADAPTER_WEIGHTS) as reader:
        stored = {name: Stored(folder / ADAPTER_WEIGHTS, name) for name in list(reader.keys())}
    missing, unexpected, _ = compare_tensors(specs, stored)
    extra = [name for name in unexpected if name != _SCORE]
    if missing or extra:
        raise CheckpointError(f"{folder} is no adapter of this {config.family} model: {len(missing)} tensors missing "
                              f"{missing[:3]}, unexpected {extra[:3]}")
    read = TensorReader(stored)
    params = jax.tree.map(lambda spec: read_whole(spec, read, dtype), specs, is_leaf=is_spec)
    score = ParamSpec((config.num_labels, config.embed), ("labels", "embed"), "normal", _SCORE)
    return Adapter(raw["base_model_name_or_path"], lora, params,
                   read_whole(score, read, dtype) if _SCORE in stored else None)


def fused_modules(config: DecoderConfig, lora: LoraConfig) -> list[str]:
    """The adapted projections that the family's files fuse with others, of which PEFT knows one update for all."""
    return sorted(module for module, pair in lora_specs(config, lora).items() if pair["b"].fused is not None)


def save_adapter(folder: str | Path, adapter: Params, config: DecoderConfig, lora: LoraConfig, base: str,
                 score: Any = None, chat_template: str | None = None) -> None:
    """Writes a LoRA adapter in PEFT's layout (adapter_config.json, adapter_model.safetensors).

    score: [labels, D] of a classifier, whose head is trained whole beside the adapter. chat_template: what the adapter
    was trained with, where that is not the template of the base model.

    Raises:
      CheckpointError: for a family whose files fuse the adapted projections; PEFT knows one update for all of them.
    """
    specs = lora_specs(config, lora)
    if fused := fused_modules(config, lora):
        raise CheckpointError(f"{config.family} keeps {fused} fused with others in one tensor, which PEFT adapts as "
                              "one; this adapter has an update for each. Use the merged model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(hf_tensors(adapter, specs))
    if score is not None:
        tensors[_SCORE] = on_host(score)
    if jax.process_index() != 0:
        return
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    if chat_template is not None:
        write_chat_template(folder, chat_template)
    write_json(folder / ADAPTER_CONFIG, {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if config.is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base, "r": lora.lora_r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0.0,
        "target_modules": list(lora.lora_target_modules), "bias": "none", "fan_in_fan_out": False,
        "modules_to_save": None if score is None else ["score"], "inference_mode": True})
