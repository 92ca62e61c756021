"""The files of a Hugging Face folder beside its weights: found, read as JSON of a known shape, copied to another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG = "config.json", "generation_config.json", "adapter_config.json"
TOKENIZER_CONFIG, CHAT_TEMPLATE, NAMED_TEMPLATES = "tokenizer_config.json", "chat_template.jinja", \
    "additional_chat_templates"
INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf",
                 "*.tflite", "*.mlmodel")
"""Weights in formats that are not read here."""
CODE = ("*.py", "*.pyc", "*.so")
"""Never run, so neither fetched nor handed on."""
_REPLACED = ("*.safetensors", "*.index.json", *OTHER_WEIGHTS, *CODE, CONFIG, GENERATION_CONFIG, "adapter_*",
             "README.md", ".*", "trainer_state.json", "*_results.json")
"""Files of a model folder that another model has of its own, or that tell of another training."""

_TEXT = (str, type(None))
_IDS = (int, list, type(None))
SHAPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    CONFIG: {"model_type": str, "architectures": (list, type(None)), "eos_token_id": _IDS, "text_config": dict,
             "id2label": (dict, type(None)), "num_labels": (int, type(None))},
    GENERATION_CONFIG: {"eos_token_id": _IDS},
    INDEX: {"weight_map": dict},
    ADAPTER_CONFIG: {"peft_type": str, "base_model_name_or_path": _TEXT, "revision": _TEXT, "r": int,
                     "lora_alpha": (int, float), "target_modules": (list, str)},
    TOKENIZER_CONFIG: {"chat_template": (str, list, type(None)), "tokenizer_class": _TEXT,
                       "added_tokens_decoder": dict},
}
"""File -> the keys that are read here and the types they may have; those without None must be there in `_NEEDED`."""
_NEEDED = {INDEX: ("weight_map",), ADAPTER_CONFIG: ("base_model_name_or_path", "r", "lora_alpha", "target_modules")}


class CheckpointError(ValueError):
    """A folder that is not the checkpoint it is asked to be: says what was found, what was expected, what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of one of the files of `SHAPES`.

    Raises:
      CheckpointError: if it is no JSON object, or a key that is read here is missing or of another type; names both.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON file ({error}); it was probably cut off or changed: copy or download "
                              "it again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a JSON {type(raw).__name__} where an object is expected; copy or "
                              "download it again")
    lacking = [key for key in _NEEDED.get(path.name, ()) if key not in raw]
    if lacking:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; copy or download it again")
    for key, kind in SHAPES[path.name].items():
        if key in raw and (not isinstance(raw[key], kind) or isinstance(raw[key], bool)):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise CheckpointError(f"{path}: {key} is {raw[key]!r:.80}, which is no {names.replace('NoneType', 'null')}")
    return raw


def find_model(name_or_path: str | Path, weights: bool = True) -> Path:
    """The folder of a model: a local one, else the files of a hub name, fetched into Hugging Face's own cache.

    Args:
      name_or_path: a folder, `owner/name`, or `owner/name@revision` (a branch, a tag or a commit).
      weights: False leaves the weights of a hub name where they are.

    Raises:
      CheckpointError: if there is neither, or the folder is the output folder of a verb, which holds the model's.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        inside = next((folder / name for name in ("model", "policy") if (folder / name / CONFIG).is_file()), None)
        if inside is not None and not ((folder / CONFIG).is_file() or is_adapter(folder)):
            raise CheckpointError(f"{folder} is an output folder; its model is {inside}")
        return folder
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", str(name_or_path))
    if match is None:
        raise CheckpointError(f"{str(name_or_path)!r} is neither a folder on this machine nor a hub name (owner/model "
                              "or owner/model@revision)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(match[1], revision=match[2], ignore_patterns=[
            *OTHER_WEIGHTS, *CODE, *(() if weights else ("*.safetensors",))]))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise CheckpointError(f"{str(name_or_path)!r} is no folder on this machine, and the hub did not give it: "
                              f"{error}") from error


def own_template(folder: Path) -> str | None:
    """The text of the chat template that a folder holds, in a file or in its tokenizer's config; None if it has none.

    Of several named ones it is `default`, which transformers takes where none is named.
    """
    if (file := folder / CHAT_TEMPLATE).is_file():
        return file.read_text(encoding="utf-8")
    if not (file := folder / TOKENIZER_CONFIG).is_file():
        return None
    found = read_json(file).get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        return named.get("default")
    return found


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary of its own."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def copy_companions(source: Path, target: Path) -> None:
    """Copies what lies beside a model's weights and that the new model does not write itself.

    That is the tokenizer in whatever files it comes, its named templates, licences. Left behind are weights, configs,
    the card, code, and other folders, which hold other formats, checkpoints and logs.
    """
    for path in sorted(source.iterdir()):
        if path.name == NAMED_TEMPLATES and path.is_dir():
            shutil.copytree(path, target / path.name, copy_function=shutil.copyfile, dirs_exist_ok=True)
        elif path.is_file() and not any(fnmatch(path.name, pattern) for pattern in _REPLACED):
            shutil.copyfile(path, target / path.name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented JSON, as transformers writes it."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_chat_template(folder: Path, text: str) -> None:
    """Puts a chat template in the place of a tokenizer's own: a file, and in its config if that holds one.

    Named templates are taken away: transformers would render with them what was rendered with this one.
    """
    (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    shutil.rmtree(folder / NAMED_TEMPLATES, ignore_errors=True)
    config = folder / TOKENIZER_CONFIG
    if config.is_file() and "chat_template" in (raw := read_json(config)):
        write_json(config, {**raw, "chat_template": text})
