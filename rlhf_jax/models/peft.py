"""LoRA adapters in PEFT's layout, read and written; nothing here imports PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.families import is_multimodal
from rlhf_jax.models.folder import ADAPTER_CONFIG, CONFIG, CheckpointError, read_json, write_chat_template, write_json
from rlhf_jax.models.hf import ADAPTER_WEIGHTS, Stored, compare_tensors, open_tensors, text_name
from rlhf_jax.models.load import TensorReader, read_whole
from rlhf_jax.models.lora import TARGETS, lora_specs
from rlhf_jax.models.params import Params, ParamSpec, is_spec, param_specs
from rlhf_jax.models.save import hf_tensors, on_host, write_tensors


class Adapter(NamedTuple):
    """A LoRA adapter as PEFT keeps it: its settings, weights, and a classifier's own head, [labels, D].

    whole: weights that replace those of the base: `embed`, `head` or both, each [V, D].
    """

    lora: LoraConfig
    params: Params
    score: np.ndarray | None
    whole: Params


_EYE = r".*(vision_tower|multi_modal_projector).*"
"""Modules of a multimodal base that no adapter of its text part is about."""
_ANY = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "r", "target_modules", "lora_alpha",
        "lora_dropout", "use_rslora", "peft_version", "auto_mapping", "megatron_core", "qalora_group_size",
        "runtime_config", "loftq_config", "eva_config", "corda_config", "layers_pattern")
"""Settings of adapter_config.json that are read, or that change nothing of what a trained adapter computes."""
_SOME: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (True,),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),  # the others change the base: PiSSA, OLoRA, LoftQ ...
    "exclude_modules": (_EYE,),
}
"""Settings of which some values are known. Of all others only "not set" is: null, false, or empty."""
_MERGE = "Merge the adapter into its base with PEFT (merge_and_unload, save_pretrained) and give the result"
_PREFIX = "base_model.model."
_SCORE = f"{_PREFIX}score.weight"
_WHOLE = {"embed_tokens": "embed", "lm_head": "head"}
"""Modules of a language model that PEFT may save whole beside an adapter -> where the weight sits in the tree."""


def adapter_base(folder: str | Path) -> str | None:
    """The base model that an adapter folder names, a hub name with its revision; None if it names none."""
    path = Path(folder) / ADAPTER_CONFIG
    raw = read_json(path) if path.is_file() else {}
    name, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    return f"{name}@{revision}" if name and revision and not Path(name).is_dir() else name


def has_magnitudes(folder: str | Path) -> bool:
    """Whether an adapter is one of DoRA, which cannot lie beside its base: it scales the columns of their sum."""
    return bool(read_json(Path(folder) / ADAPTER_CONFIG).get("use_dora"))


def adapter_outputs(folder: str | Path) -> int | None:
    """How many outputs the classifier's head beside an adapter has; None where there is none."""
    with open_tensors(Path(folder) / ADAPTER_WEIGHTS) as reader:
        shape = reader.get_slice(_SCORE).get_shape() if _SCORE in set(reader.keys()) else ()
    return int(shape[0]) if shape else None


def _unknown_settings(raw: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The settings of an adapter_config.json with which it may compute something else than LoRA or DoRA.

    Of tied embeddings PEFT saves one side, and the other stays as it was in the base: no tied model computes that.
    """
    odd = {key: value for key, value in raw.items()
           if key not in (*_ANY, "modules_to_save") and value not in (None, False, {}, [], *_SOME.get(key, ()))}
    saved = raw.get("modules_to_save") or []
    known = {"score", "classifier"} if config.tie_embeddings else {"score", "classifier", *_WHOLE}
    return odd if isinstance(saved, list) and set(map(str, saved)) <= known else odd | {"modules_to_save": saved}


def load_adapter(folder: str | Path, config: DecoderConfig, dtype: Any = jnp.float32) -> Adapter:
    """A LoRA adapter written by PEFT, TRL or `save_adapter`, for the model of `config`, as numpy arrays.

    One with DoRA's magnitudes can be merged (`merge_lora`) and not trained. The head of a classifier may lie over a
    language model, which then has as many labels as it.

    Raises:
      CheckpointError: if the adapter has settings beyond that, its tensors are not those of this model, or it is a
        classifier's and there is no head.
    """
    folder = Path(folder)
    raw = read_json(folder / ADAPTER_CONFIG)
    targets, rank = raw["target_modules"], raw["r"]
    if isinstance(targets, str) or not targets or not set(map(str, targets)) <= set(TARGETS):
        raise CheckpointError(f"{folder} adapts {targets}; supported are {sorted(TARGETS)}. {_MERGE}")
    if odd := _unknown_settings(raw, config):
        said = ", ".join(f"{key} = {value!r}" for key, value in odd.items())
        raise CheckpointError(f"{folder} is an adapter with {said}; supported are LoRA and DoRA over the base as it "
                              "was published, a head of its own, and embed_tokens and lm_head of its own where the "
                              f"base does not tie them. {_MERGE}")
    lora = LoraConfig(True, rank, raw["lora_alpha"], tuple(sorted(targets)), bool(raw.get("use_rslora")))
    specs: dict[str, Any] = {"lora": lora_specs(config, lora, magnitudes=has_magnitudes(folder))}
    with open_tensors(folder / ADAPTER_WEIGHTS) as reader:
        stored = {text_name(name): Stored(folder / ADAPTER_WEIGHTS, name) for name in list(reader.keys())}
    labels = config.num_labels or adapter_outputs(folder) or 0
    if _SCORE in stored:
        specs["score"] = ParamSpec((labels, config.embed), ("labels", "embed"), "normal", _SCORE)
    elif raw.get("task_type") == "SEQ_CLS" and not labels:
        raise CheckpointError(f"{folder} is an adapter of a classifier, and neither it nor its base has the head; give "
                              "the classifier that it was trained on as base_model, or train it with PEFT's "
                              "task_type SEQ_CLS, which keeps the head")
    own = param_specs(config)
    for key in (_WHOLE[name] for name in raw.get("modules_to_save") or () if name in _WHOLE):
        if key not in own:
            raise CheckpointError(f"{folder} brings {key} of its own, which a classifier of {config.family} lacks. "
                                  f"{_MERGE}")
        specs[key] = own[key]._replace(hf_name=_PREFIX + own[key].hf_name)
    if differences := compare_tensors(specs, stored):
        raise CheckpointError(f"{folder} is no adapter of this {config.family} model: {differences}")
    read = TensorReader(stored)
    params = jax.tree.map(lambda spec: read_whole(spec, read, dtype), specs, is_leaf=is_spec)
    whole = {key: params[key] for key in _WHOLE.values() if key in params}
    return Adapter(lora, params["lora"], params.get("score"), whole)


def fused_modules(config: DecoderConfig, lora: LoraConfig) -> list[str]:
    """The adapted projections that the family's files fuse with others, of which PEFT knows one update for all."""
    return sorted(module for module, pair in lora_specs(config, lora).items() if pair["b"].fused is not None)


def save_adapter(folder: str | Path, adapter: Params, config: DecoderConfig, lora: LoraConfig, base: str,
                 score: Any = None, chat_template: str | None = None) -> None:
    """Writes a LoRA adapter in PEFT's layout (adapter_config.json, adapter_model.safetensors).

    base: the model's folder; of a multimodal one the adapter is of its text part. score: [labels, D] of a classifier,
    whose head is trained whole beside the adapter. chat_template: what the adapter was trained with, where that is not
    the template of the base model.

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
    path = Path(base) / CONFIG
    multimodal = path.is_file() and is_multimodal(read_json(path))
    if multimodal:
        tensors = {name.replace(f"{_PREFIX}model.", f"{_PREFIX}model.language_model."): x
                   for name, x in tensors.items()}
    if score is not None:
        tensors[_SCORE] = on_host(score)
    if jax.process_index() != 0:
        return
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    if chat_template is not None:
        write_chat_template(folder, chat_template)
    write_json(folder / ADAPTER_CONFIG, {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if config.is_classifier else "CAUSAL_LM",
        "base_model_name_or_path": base, "r": lora.lora_r, "lora_alpha": lora.lora_alpha, "use_rslora": lora.use_rslora,
        "lora_dropout": lora.lora_dropout, "target_modules": list(lora.lora_target_modules), "bias": "none",
        "exclude_modules": _EYE if multimodal else None,
        "fan_in_fan_out": False, "modules_to_save": None if score is None else ["score"], "inference_mode": True})
