"""Hugging Face folders: what lies in them, and how their tensors relate to ours. `load` reads them, `save` writes them.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from rlhf_jax.models.config import DecoderConfig
from rlhf_jax.models.families import config_from_hf
from rlhf_jax.models.folder import ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG, INDEX, CheckpointError, read_json
from rlhf_jax.models.params import ParamSpec, is_spec

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
LM_HEAD = "lm_head.weight"
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(folder: str | Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder; stop ids of generation_config.json take precedence."""
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{folder} holds a LoRA adapter, not a whole model; merge it into its base first: "
                                  f"rlhf-jax export --model_name_or_path {folder} --output_dir MERGED")
        raise CheckpointError(f"{folder} holds no config.json, so it is no Hugging Face model folder; "
                              "give a folder written by save_pretrained or by `rlhf-jax`")
    raw = read_json(path)
    generation = folder / GENERATION_CONFIG
    if generation.is_file():
        stop = read_json(generation).get("eos_token_id")
        raw["eos_token_id"] = raw.get("eos_token_id") if stop is None else stop
    try:
        return config_from_hf(raw)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: {' '.join(reason.split())}") from error


def open_tensors(file: Path) -> Any:
    """A safetensors file opened to read tensors by name; CheckpointError if it is not there or not whole."""
    try:
        return safe_open(file, framework="numpy")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {file}; copy or download it again") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); it was probably cut off while being copied: copy or "
                              "download it again") from error


class Stored(NamedTuple):
    """A tensor of a folder: its file, and its name there."""

    file: Path
    name: str


_TEXT_PART = re.compile(r"^((?:base_model\.model\.)?)(model\.language_model\.|language_model\.model\.)")
_OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.|rotary_emb")
"""Vision and projection weights of a multimodal checkpoint whose text part is used, and old rotary buffers."""


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Tensor name, as the text model alone would have it -> where it lies.

    Raises:
      CheckpointError: if the folder has no weights, or its index names a file that is missing or not in the folder.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():  # before an index, as in transformers, which leaves an old index beside it
        with open_tensors(folder / WEIGHTS) as reader:
            files = dict.fromkeys(reader.keys(), folder / WEIGHTS)
    elif index.is_file():
        files = _indexed(index)
    else:
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; "
                              "convert older formats with transformers' save_pretrained(safe_serialization=True)")
    return {text_name(name): Stored(file, name) for name, file in files.items()}


def text_name(name: str) -> str:
    """What a tensor of a multimodal checkpoint, or of an adapter over it, would be called in its text part alone."""
    return _TEXT_PART.sub(r"\1model.", name).replace("language_model.lm_head", "lm_head")


def _indexed(index: Path) -> dict[str, Path]:
    """Tensor name -> file, of an index whose files are all there."""
    weight_map = read_json(index)["weight_map"]
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or file == ".." or Path(file).name != file:
            raise CheckpointError(f"{index} says that {name} lies in {file!r}; the files of a model lie beside its "
                                  "index. Do not use one that points elsewhere")
    missing = sorted(file for file in set(weight_map.values()) if not (index.parent / file).is_file())
    if missing:
        raise CheckpointError(f"{index.parent} lacks {len(missing)} of the {len(set(weight_map.values()))} files that "
                              f"its index names: {', '.join(missing[:5])}; copy or download them again")
    return {name: index.parent / file for name, file in weight_map.items()}


class Differences(NamedTuple):
    """Tensors a config asks for and a folder lacks; those the folder has beyond them; those that are passed over; and
    what is wrong with those that are there."""

    missing: list[str]
    unexpected: list[str]
    ignored: list[str]
    wrong: list[str]

    def __bool__(self) -> bool:
        """Whether the folder is refused."""
        return bool(self.missing or self.unexpected or self.wrong)

    def __str__(self) -> str:
        wrong = f", {len(self.wrong)} wrong: {'; '.join(self.wrong[:3])}" if self.wrong else ""
        return (f"{len(self.missing)} missing {self.missing[:3]}, {len(self.unexpected)} unexpected "
                f"{self.unexpected[:3]}{wrong}")


def compare_tensors(specs: dict[str, Any], found: dict[str, Stored]) -> Differences:
    """Holds the headers of a folder's files against what its config asks for; no weight is read."""
    expected = tensor_shapes(specs)
    extra = sorted(set(found) - set(expected))
    ignored = [name for name in extra if _OTHER_PARTS.search(name) or (name == LM_HEAD and is_tied(specs))]
    return Differences(sorted(set(expected) - set(found)), [name for name in extra if name not in ignored], ignored,
                       _wrong_tensors({name: stored for name, stored in found.items() if name in expected}, expected))


def is_tied(specs: dict[str, Any]) -> bool:
    """Whether the output embedding is the input's, which a file may hold a second time."""
    return "head" not in specs and "score" not in specs


def _wrong_tensors(found: dict[str, Stored], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with each tensor that is not the one its config or its index describes."""
    files: dict[Path, list[str]] = {}
    for name, stored in found.items():
        files.setdefault(stored.file, []).append(name)
    wrong = []
    for file, names in files.items():
        with open_tensors(file) as reader:
            there = set(reader.keys())
            for name in names:
                if found[name].name not in there:
                    wrong.append(f"{name} is not in {file.name}, where the index says it is")
                    continue
                header = reader.get_slice(found[name].name)
                if (shape := tuple(header.get_shape())) != expected[name]:
                    wrong.append(f"{name} in {file.name} has shape {shape}; config.json implies {expected[name]}")
                elif (dtype := header.get_dtype()) not in _FLOATS:
                    wrong.append(f"{name} in {file.name} is stored as {dtype}; weights are {', '.join(_FLOATS)}")
    return wrong


def parts(spec: ParamSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tensor name in the file, index on the stacked axes) of each tensor that a weight is spread over."""
    counted = [axis.removesuffix("s") for axis in spec.axes[: spec.stacked]]
    for index in np.ndindex(*spec.shape[: spec.stacked]):
        yield spec.hf_name.format(**dict(zip(counted, index, strict=True))), index


def tensor_shapes(specs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor name of a spec tree, with its shape in the file."""
    return {name: hf_shape(spec) for spec in jax.tree.leaves(specs, is_leaf=is_spec) for name, _ in parts(spec)}


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
