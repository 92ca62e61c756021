"""YAML plus `--key value` as options; errors name the nearest key, or what other frameworks' keys are called here."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import yaml

from rlhf_jax.cli.config_file import read_config, read_value
from rlhf_jax.config.build import UnknownKeys, build
from rlhf_jax.fields import declared, flattened, keys

T = TypeVar("T")

ALIASES = {
    "warmup_ratio": "warmup_steps", "max_seq_length": "max_length", "torch_dtype": "dtype",
    "reward_model_path": "model_name_or_path", "choose_type": "rule", "len_penalty": "length_penalty",
    "K": "num_generations", "n": "num_generations", "num_return_sequences": "num_generations",
    "dataset_train_split": "split", "dataset": "dataset_name",
    "ref_model_path": "reference_model", "ref_model": "reference_model",
}
"""Old or foreign names of keys and what they are called here; accepted, and said."""

REFUSED = {
    "gradient_accumulation_steps": "train_batch_size is the global batch; accumulation follows from micro_rows",
    "per_device_train_batch_size": "train_batch_size is the global batch on any number of devices; micro_rows is what "
                                   "one device works on at a time",
    "per_device_eval_batch_size": "evaluation takes micro_rows packed rows per device at a time, and its numbers do "
                                  "not depend on them",
    "packing": "rows are always packed", "padding_free": "rows are always packed",
    "precompute_ref_log_probs": "reference log-probs are always computed once and cached",
    "use_liger_kernel": "log-probs are always chunked; see logits_chunk",
    "gradient_checkpointing": "use remat: none | full | dots", "bf16": "use dtype: bfloat16",
    "fp16": "use dtype: bfloat16", "use_vllm": "sampling runs in this process, on the training weights",
    "load_in_4bit": "weights are float32 or bfloat16", "load_in_8bit": "weights are float32 or bfloat16",
    "lora_dropout": "adapters are trained without dropout", "disable_dropout": "there is no dropout anywhere",
    "use_rslora": "the update is scaled by lora_alpha / lora_r; raise lora_alpha",
    "use_dora": "adapters are plain LoRA",
    "lora_modules_to_save": "an adapter is all that is trained with use_peft",
    "lora_task_type": "leave it out; it follows from the verb",
    "completion_only_loss": "the loss is on the assistant's tokens alone",
    "assistant_only_loss": "the loss is on the assistant's tokens alone",
    "dataset_text_field": "rows are told by their columns; see docs/data.md, or choose a converter",
    "dataset_test_split": "use eval_dataset_name", "shuffle_dataset": "rows are shuffled in each epoch, by seed",
    "sync_ref_model": "in a run of rounds use loop.reference: ema",
    "load_best_model_at_end": "the last step is what is kept", "model_init_kwargs": "use dtype and attn_implementation",
    "eos_token": "stop tokens follow from the chat template and the model",
    "pad_token": "it follows from the tokenizer", "label_smoothing_factor": "the loss of a token is not smoothed",
    "run_name": "trackers know a run by its output_dir", "use_cpu": "set the environment variable JAX_PLATFORMS=cpu",
    "torch_compile": "everything is compiled", "label_names": "leave it out",
    "trust_remote_code": "code from model folders is never run",
    "rpo_alpha": "use loss_type: [sigmoid, sft] with loss_weights: [1, alpha]",
    "cpo_alpha": "use loss_type: [cpo, sft] with loss_weights: [1, alpha]",
    "reference_free": "choose a reference-free loss_type: simpo, cpo, orpo or alphapo",
    "eval_strategy": "give eval_steps; evaluation at the end follows from the held-out rows",
    "evaluation_strategy": "give eval_steps; evaluation at the end follows from the held-out rows",
    "save_strategy": "give save_steps", "logging_strategy": "give logging_steps",
    "do_train": "leave it out", "do_eval": "leave it out; held-out rows are evaluated where they are given",
    "push_to_hub": "nothing is uploaded; OUTPUT_DIR/model is a Hugging Face folder",
    "hub_model_id": "nothing is uploaded; OUTPUT_DIR/model is a Hugging Face folder",
    "optim": "the optimizer is AdamW", "deepspeed": "sharding follows from mesh",
    "fsdp_config": "sharding follows from mesh",
    "overwrite_output_dir": "finished work is never overwritten; choose another output_dir or remove it",
    "resume_from_checkpoint": "the same command always continues",
    "dataset_mixer": "use dataset_name with several sources", "dataset_splits": "use split",
    "dataset_num_proc": "leave it out", "preprocessing_num_workers": "leave it out",
    "dataloader_num_workers": "leave it out", "chat_template": "use chat_template_path",
    "gradient_checkpointing_kwargs": "use remat: none | full | dots",
    "truncation_mode": "use overlong: error | drop | truncate_prompt_left | truncate_response",
}
"""Keys of other frameworks that have no meaning here, and what to do instead."""


SIMILAR = 0.8
"""A key that is this much like a known one (difflib's ratio) is a misspelling of it; less like, it means another."""
SHOWN_KEYS = 20
"""Unknown keys that one message names."""


def refuse(verb: str, message: str) -> NoReturn:
    """Ends the program with status 2 and a message that names where the keys are listed."""
    print(f"rlhf-jax {verb}: {message}\n(rlhf-jax {verb} --help lists the keys)", file=sys.stderr)
    raise SystemExit(2)


def instead(key: str, options: type) -> str:
    """What to write instead of a key that the options, of the chosen kinds, do not have."""
    tail = key.rsplit(".", 1)[-1]
    known: dict[str, type] = {}
    for name, owner, _ in keys(options):
        known.setdefault(name, owner)
    if key in known:
        kind = next((f.default for f in declared(known[key]) if f.name == "kind"), None)
        return f"has no effect on this kind{f'; it belongs to kind: {kind}' if kind else ''}; leave it out"
    if tail in REFUSED:
        return REFUSED[tail]
    names = {name.rsplit(".", 1)[-1]: name for name in sorted(known)} | {name: name for name in known}
    near = [name for word in (key, tail) for name in difflib.get_close_matches(word, names, n=1, cutoff=SIMILAR)]
    words = set(tail.split("_"))
    near += sorted((name for name in names if words <= set(name.rsplit(".", 1)[-1].split("_"))), key=len)
    return f"did you mean {names[near[0]]!r}?" if near else "no key has a similar name"


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


def parse(options: type[T], verb: str, words: Sequence[str]) -> T:
    """Builds `options` from `--config file.yaml` and `--key value`, later ones winning.

    Exits with status 2 and a message for unknown keys, wrong types, and values the options refuse.
    """
    try:
        tree = merged_tree(words)
    except ValueError as error:
        refuse(verb, str(error))
    return parse_tree(options, verb, tree)


def parse_tree(options: type[T], verb: str, tree: dict[str, Any]) -> T:
    """`parse` of a mapping that is already read."""
    try:
        return build(options, _renamed_tree(tree, {key.rsplit(".", 1)[-1] for key, _, _ in keys(options)}))
    except UnknownKeys as error:
        lines = [f"  {key}: {instead(key, options)}" for key in error.names[:SHOWN_KEYS]]
        lines += [f"  and {len(error.names) - SHOWN_KEYS:,} more"] * (len(error.names) > SHOWN_KEYS)
        refuse(verb, "\n".join([f"no such key{'s' * (len(error.names) > 1)}:", *lines]))
    except ValueError as error:
        refuse(verb, str(error))


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
        trees.append(read_config(value) if key == "config" else _nested(key, _flag_value(flag, value)))
    return _merged(trees)


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


def _flag_value(flag: str, text: str) -> Any:
    try:
        return read_value(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text[:200]}: the value is not valid YAML; put it in quotes ({error})") from error


def _merged(trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = _merged([out[key], value]) if both else value
    return out


def show(value: Any) -> str:
    """A resolved config as YAML."""
    plain = json.loads(json.dumps(flattened(value), default=str))
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=False)
