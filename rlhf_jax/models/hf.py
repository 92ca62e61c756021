"""Hugging Face folders: what lies in them, and how their tensors relate to ours. `load` reads them, `save` writes them.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.families import config_from_hf
from rlhf_jax.models.params import ParamSpec, is_spec

CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", CHAT_TEMPLATE, "tokenizer.model",
                   "vocab.json", "merges.txt")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class CheckpointError(ValueError):
    """A folder that is not the checkpoint it is asked to be: says what was found, what was expected, what to do."""


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model: a local one, else the files of a hub name, fetched into Hugging Face's own cache.

    Raises:
      CheckpointError: if there is neither.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name_or_path)):
        raise CheckpointError(f"{str(name_or_path)!r} is no folder on this machine and no hub name (owner/model)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["*.safetensors", "*.json", *TOKENIZER_FILES]))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise CheckpointError(f"{str(name_or_path)!r} is no folder on this machine, and the hub did not give it: "
                              f"{error}") from error


def read_config(folder: str | Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder; stop ids of generation_config.json take precedence."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{folder} holds a LoRA adapter, not a whole model; merge it into its base first: "
                                  f"rlhf-jax export --model_name_or_path {folder} --output_dir MERGED")
        raise CheckpointError(f"{folder} holds no config.json, so it is no Hugging Face model folder; "
                              "give a folder written by save_pretrained or by `rlhf-jax`")
    raw = json.loads(path.read_text())
    generation = folder / "generation_config.json"
    if generation.is_file():
        stop = json.loads(generation.read_text()).get("eos_token_id")
        raw["eos_token_id"] = raw.get("eos_token_id") if stop is None else stop
    return config_from_hf(raw)


def open_tensors(file: Path) -> Any:
    """A safetensors file opened to read tensors by name; CheckpointError if it is not whole."""
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); it was probably cut off while being copied: copy or "
                              "download it again") from error


class Stored(NamedTuple):
    """A tensor of a folder: its file, and its name there."""

    file: Path
    name: str


_TEXT_PART = re.compile(r"^(model\.language_model\.|language_model\.model\.)")
_OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.|rotary_emb")
"""Vision and projection weights of a multimodal checkpoint whose text part is used, and old rotary buffers."""


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Tensor name, as the text model alone would have it -> where it lies."""
    index = folder / INDEX
    if index.is_file():
        files = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    elif (folder / WEIGHTS).is_file():
        with open_tensors(folder / WEIGHTS) as reader:
            files = dict.fromkeys(reader.keys(), folder / WEIGHTS)
    else:
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; "
                              "convert older formats with transformers' save_pretrained(safe_serialization=True)")
    plain = {name: _TEXT_PART.sub("model.", name).replace("language_model.lm_head", "lm_head") for name in files}
    return {plain[name]: Stored(file, name) for name, file in files.items()}


class Differences(NamedTuple):
    """Tensors a config asks for and a folder lacks; those the folder has beyond them; those that are passed over."""

    missing: list[str]
    unexpected: list[str]
    ignored: list[str]


def compare_tensors(specs: dict[str, Any], found: dict[str, Stored]) -> Differences:
    expected = set(tensor_names(specs))
    extra = sorted(set(found) - expected)
    tied = "head" not in specs and "score" not in specs  # the output embedding is the input's, stored twice
    ignored = [name for name in extra if _OTHER_PARTS.search(name) or (name == "lm_head.weight" and tied)]
    return Differences(sorted(expected - set(found)), [name for name in extra if name not in ignored], ignored)


def parts(spec: ParamSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tensor name in the file, index on the stacked axes) of each tensor that a weight is spread over."""
    counted = [axis.removesuffix("s") for axis in spec.axes[: spec.stacked]]
    for index in np.ndindex(*spec.shape[: spec.stacked]):
        yield spec.hf_name.format(**dict(zip(counted, index, strict=True))), index


def tensor_names(specs: dict[str, Any]) -> list[str]:
    """Every Hugging Face tensor name of a spec tree, once."""
    return list(dict.fromkeys(name for spec in jax.tree.leaves(specs, is_leaf=is_spec) for name, _ in parts(spec)))


def hf_shape(spec: ParamSpec) -> tuple[int, ...]:
    """Shape of one whole tensor in the file (see `ParamSpec`)."""
    inner = spec.shape[spec.stacked:]
    if spec.inputs is None:
        return (inner[0] - spec.padding, *inner[1:])
    if spec.inputs == 0:
        return (math.prod(inner),)
    rows = math.prod(inner[spec.inputs:]) if spec.fused is None else spec.fused[1]
    return rows, math.prod(inner[: spec.inputs])


def from_hf(tensor: np.ndarray, spec: ParamSpec) -> np.ndarray:
    """A whole tensor of the file as our weight (without the stacked axes)."""
    inner = spec.shape[spec.stacked:]
    if spec.padding:
        return np.concatenate([tensor, np.zeros((spec.padding, *inner[1:]), tensor.dtype)])
    if spec.fused is not None:
        first = spec.fused[0]
        tensor = tensor[first : first + math.prod(inner[spec.inputs or 0:])]
    return tensor.T.reshape(inner) if spec.inputs else tensor.reshape(inner)


def to_hf(array: np.ndarray, spec: ParamSpec) -> np.ndarray:
    """Our weight (without the stacked axes) as the file keeps it; a fused one gives its rows only."""
    if spec.inputs is None:
        return array[: array.shape[0] - spec.padding]
    if spec.inputs == 0:
        return array.reshape(-1)
    return np.ascontiguousarray(array.reshape(math.prod(array.shape[: spec.inputs]), -1).T)
