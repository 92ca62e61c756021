"""A config dataclass as a command: help from docstrings, YAML plus `--key value`, errors with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

ALIASES = {
    "warmup_ratio": "warmup_steps", "max_seq_length": "max_length", "torch_dtype": "dtype",
    "reward_model_path": "model_name_or_path", "choose_type": "rule", "len_penalty": "length_penalty",
    "K": "num_generations", "dataset": "dataset_name", "per_device_eval_batch_size": "micro_rows",
    "ref_model_path": "reference_model", "ref_model": "reference_model",
}
"""Old or foreign names of keys and what they are called here; accepted, and said."""

REFUSED = {
    "gradient_accumulation_steps": "train_batch_size is the global batch; accumulation follows from micro_rows",
    "per_device_train_batch_size": "train_batch_size is the global batch on any number of devices; micro_rows is what "
                                   "one device works on at a time",
    "packing": "rows are always packed", "padding_free": "rows are always packed",
    "precompute_ref_log_probs": "reference log-probs are always computed once and cached",
    "use_liger_kernel": "log-probs are always chunked; see logits_chunk",
    "gradient_checkpointing": "use remat: none | full | dots", "bf16": "use dtype: bfloat16",
    "fp16": "use dtype: bfloat16", "use_vllm": "sampling runs in this process, on the training weights",
    "load_in_4bit": "4-bit weights are not supported", "trust_remote_code": "code from model folders is never run",
    "rpo_alpha": "use loss_type: [sigmoid, sft] with loss_weights: [1, alpha]",
    "cpo_alpha": "use loss_type: [cpo, sft] with loss_weights: [1, alpha]",
    "reference_free": "choose a reference-free loss_type: simpo, cpo, orpo or alphapo",
    "truncation_mode": "use overlong: error | drop | truncate_prompt_left | truncate_response",
}
"""Keys of other frameworks that have no meaning here, and what to do instead."""


class Parser(ArgumentParser):
    """An argument parser whose errors name the nearest known key. keys: all of them, dotted."""

    keys: frozenset[str] = frozenset()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.keys:  # of one alternative of a key's type; the parser of the whole command knows its full name
            raise ValueError(message)
        known = sorted({action.dest for action in self._actions} | self.keys)
        words = [m.rsplit(".", 1)[-1] for m in re.findall(r"[\w.]+", message)]
        hints = [f"{word}: {REFUSED[word]}" for word in words if word in REFUSED]
        unknown = [m.strip(".") for m in re.findall(r"(?:--|[Kk]ey \"|[Oo]ption ')([\w.]+)", message)]
        for key in unknown:
            if key in known or key in REFUSED:
                continue
            tails = {name.rsplit(".", 1)[-1]: name for name in known} | {name: name for name in known}
            near = difflib.get_close_matches(key, tails, n=1) or difflib.get_close_matches(
                key.rsplit(".", 1)[-1], tails, n=1)
            hints += [f"no key {key!r}; did you mean {tails[near[0]]!r}?"] if near else []
        print(f"rlhf-jax: {message}", *(f"  -> {hint}" for hint in dict.fromkeys(hints)), sep="\n", file=sys.stderr)
        raise SystemExit(2)


def renamed(key: str) -> str:
    """The current name of a key, whose last part may be an alias."""
    head, _, tail = key.rpartition(".")
    new = ALIASES.get(tail, tail)
    if new != tail:
        print(f"rlhf-jax: {tail} is called {new} here", file=sys.stderr)
    return f"{head}.{new}" if head else new


def _renamed_tree(value: Any, known: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    tree: dict[str, Any] = {}
    for key, child in value.items():
        name = key if key in known else renamed(key)
        if name in tree or (name != key and name in value):
            raise ValueError(f"{key} and {name} are one key; give it once")
        tree[name] = _renamed_tree(child, known)
    return tree


def _resolve_types(command: type) -> None:
    """Turns the string annotations of a config dataclass, and of those inside it, into types the parser can check.

    jsonargparse looks names up in one module; options inherited from another would go unchecked.
    """
    hints = typing.get_type_hints(command)
    hints["return"] = type(None)
    vars(command)["__init__"].__annotations__ = hints
    for hint in hints.values():
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner) and inner is not command:
                _resolve_types(inner)


def parse(command: type, verb: str, args: Sequence[str]) -> Any:
    """Builds `command` (a config dataclass) from `--config file.yaml` and `--key value`, later ones winning.

    Exits with status 2 and a message for unknown keys, wrong types, and values the dataclass refuses.
    """
    if {"-h", "--help"} & set(args):
        return parse_tree(command, verb, None)
    try:
        tree = merged_tree(args)
    except ValueError as error:
        _parser(command, verb).error(str(error))
    return parse_tree(command, verb, tree)


def _parser(command: type, verb: str) -> Parser:
    _resolve_types(command)
    parser = Parser(prog=f"rlhf-jax {verb}", description=(command.__doc__ or "").split("\n")[0], default_env=False)
    parser.add_argument("--config", type=str, help="YAML file with the keys below; may be given more than once")
    parser.add_class_arguments(command, nested_key=None, as_group=False)
    parser.keys = frozenset(_keys(command))
    return parser


def _keys(command: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a config dataclass, also of one that is an alternative ("auto" or a mapping)."""
    for name, hint in typing.get_type_hints(command).items():
        yield prefix + name
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _keys(inner, f"{prefix}{name}.")


def parse_tree(command: type, verb: str, tree: dict[str, Any] | None) -> Any:
    """`parse` of a mapping that is already read; None prints the help and exits."""
    parser = _parser(command, verb)
    if tree is None:
        parser.parse_args(["--help"])
    known = {action.dest.rsplit(".", 1)[-1] for action in parser._actions}
    try:
        found = parser.parse_object(_renamed_tree(tree, known), defaults=True)
        values = vars(parser.instantiate(found))
        values.pop("config", None)
        return command(**values)
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def merged_tree(args: Sequence[str]) -> dict[str, Any]:
    """All config files and `--key value` pairs as one nested mapping, in the order given."""
    trees: list[dict[str, Any]] = []
    queue = list(args)
    while queue:
        flag, equals, value = queue.pop(0).partition("=")
        if not flag.startswith("--"):
            raise ValueError(f"{flag!r} is not an option; options are written --key value or --key=value")
        if not equals:
            if not queue:
                raise ValueError(f"{flag} needs a value: {flag} VALUE")
            value = queue.pop(0)
        key = flag[2:].replace("-", "_")
        trees.append(_load_yaml(value) if key == "config" else _nested(key, _flag_value(flag, value)))
    return _merged(trees)


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


def _flag_value(flag: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag} {text}: the value is not valid YAML; put it in quotes") from error


def _load_yaml(path: str) -> dict[str, Any]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    try:
        value = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--config {path} holds {type(value).__name__}; a config is a mapping of keys to values")
    return value


def _merged(trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = _merged([out[key], value]) if both else value
    return out


def show(value: Any) -> str:
    """A resolved config as YAML."""
    from rlhf_jax.workflow.stage import to_plain

    return yaml.safe_dump(to_plain(value), sort_keys=False, default_flow_style=False)
