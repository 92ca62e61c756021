"""TRL's configs as ours: keys that mean the same, keys that are computed from others, and what has no counterpart.

A key that is not given has TRL's default there, so a default that differs from ours is written out. `tests/config/
test_trl.py` holds the names and defaults below against TRL's own dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from rlhf_jax.config.commands import RewardCommand, SftCommand
from rlhf_jax.config.foreign import ALIASES, REFUSED, split_idle
from rlhf_jax.config.lora import MODULES
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.config.trackers import PACKAGES
from rlhf_jax.config.training import Schedule
from rlhf_jax.fields import keys

TrlVerb = Literal["sft", "reward", "dpo"]
COMMANDS: dict[str, type] = {"sft": SftCommand, "reward": RewardCommand, "dpo": DpoCommand}
LEARNING_RATES = {"sft": 2e-5, "reward": 1e-4, "dpo": 1e-6}
DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_steps": 0, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "logging_steps": 10,
    "save_steps": 500, "eval_strategy": "no", "save_strategy": "steps", "max_length": 1024, "max_steps": -1,
    "truncation_mode": "keep_start",
}
"""TRL's defaults of the keys that are read below."""
NULL = ("max_length",)
"""Keys of which null is a value, and not the default."""
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses of TRL that read label_smoothing; the others pass over it."""
_PEFT_MODULES = ("q_proj", "v_proj")
"""PEFT's choice for Llama, Mistral, Qwen and Gemma where lora_target_modules is not given."""
_REMOVED = {"max_prompt_length": 512, "rpo_alpha": 1.0}
"""Keys of older TRL that are read below, with a value of their type."""
_OVERLONG = {"keep_start": "truncate_response", "keep_end": "truncate_prompt_left"}


@dataclasses.dataclass
class Converted:
    """config: keys of our verb. said: what was computed or renamed. idle: keys that change nothing, with the reason.
    lost: keys without a counterpart -> what to do."""

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    said: list[str] = dataclasses.field(default_factory=list)
    idle: list[str] = dataclasses.field(default_factory=list)
    lost: dict[str, str] = dataclasses.field(default_factory=dict)


Take = Callable[[str], Any]
"""A key's value, or TRL's default, or None; what is taken is done with."""


def convert(verb: TrlVerb, given: Mapping[str, Any], processes: int = 1) -> Converted:
    """The config of `rlhf-jax VERB` that does what `trl VERB` does with `given`, on so many devices.

    Raises:
      ValueError: a value that is computed with is of another type than TRL's.
    """
    left = {key: "no" if key.endswith("_strategy") and value is False else value  # what YAML makes of a bare no
            for key, value in given.items() if value is not None or key in NULL}
    out, defaults = Converted(), {**DEFAULTS, "learning_rate": LEARNING_RATES[verb], "num_processes": processes}
    left |= _typed({key: value for key, value in left.items() if value is not None},
                   {**defaults, **_REMOVED, "lr_scheduler_kwargs": {}})

    def take(key: str) -> Any:
        return left.pop(key, defaults.get(key))

    for part in (_model, _data, _batch, _length, _schedule, _precision, _rhythm, _adapter, _loss):
        part(take, out, verb)
    ours = {key for key, _, _ in keys(COMMANDS[verb])}
    left, out.idle = split_idle(left, ours)
    for key, value in left.items():
        name = key if key in ours else ALIASES.get(key, key)
        if name in ours:
            out.config[name] = value
            out.said += [f"{key} is called {name} here"] * (name != key)
        else:
            out.lost[key] = REFUSED.get(key, "no key here does this")
    return out


def _typed(given: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are computed with; numbers that YAML took for text (5e-7, without a point) are numbers again."""
    found: dict[str, Any] = {}
    for key in [key for key in given if key in like]:
        value = given[key]
        kind: Any = (int, float) if isinstance(like[key], int | float) else type(like[key])
        if isinstance(kind, tuple) and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            name = "a number" if isinstance(kind, tuple) else {"str": "text", "dict": "a mapping"}[kind.__name__]
            raise ValueError(f"{key} = {value!r}; in TRL it is {name}")
        found[key] = value
    return found


def _model(take: Take, out: Converted, verb: str) -> None:
    name, revision, attention = take("model_name_or_path"), take("model_revision"), take("attn_implementation")
    if name is not None:
        out.config["model_name_or_path"] = name if revision in (None, "main") else f"{name}@{revision}"
    if attention is not None:
        out.said.append(f"attn_implementation = {attention!r} is left out: ours is chosen by the devices")


def _data(take: Take, out: Converted, verb: str) -> None:
    mixture = take("datasets")
    if mixture:
        out.lost["datasets"] = "name the sources in dataset_name, a list; the columns are found by themselves"
    if verb == "sft" and not take("assistant_only_loss"):
        out.said.append("the loss is on the assistant's tokens alone; TRL's, without assistant_only_loss, is on all of "
                        "a conversation (`messages`)")
    if (name := take("dataset_name")) is not None:
        out.config["dataset_name"] = name
    out.config["split"] = take("dataset_train_split") or "train"


def _batch(take: Take, out: Converted, verb: str) -> None:
    each, accumulated, processes = (int(take(key)) for key in (
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_processes"))
    out.config["train_batch_size"] = each * accumulated * processes
    out.said.append(f"train_batch_size = {each} per device x {accumulated} accumulated x {processes} device(s)")


def _length(take: Take, out: Converted, verb: str) -> None:
    longest, prompt, mode = take("max_length"), take("max_prompt_length"), take("truncation_mode")
    if longest != DEFAULTS["max_length"]:
        out.config["max_length"] = longest
    if prompt is not None:
        out.config["max_prompt_length"] = prompt
    cuts_prompt = prompt is not None and verb == "dpo"
    if cuts_prompt:
        out.config["overlong"] = "truncate_prompt_left"
        out.said.append(f"overlong = 'truncate_prompt_left': older TRL keeps the last {prompt} tokens of a prompt "
                        "(max_prompt_length); a row still longer than max_length then cuts the response, as keep_start")
    elif prompt is not None:
        out.said.append(f"max_prompt_length is no key of `trl {verb}`: here it leaves out rows with longer prompts, or "
                        "cuts them with overlong: truncate_prompt_left")
    if verb == "reward" or longest is None:
        return  # TRL leaves out longer rows, as we do; without a limit nothing is cut
    if mode not in _OVERLONG:
        out.lost["truncation_mode"] = REFUSED["truncation_mode"]
        return
    if cuts_prompt:
        return
    out.config["overlong"] = _OVERLONG[mode]
    out.said.append(f"overlong = {_OVERLONG[mode]!r}: TRL cuts longer rows ({mode}), and we leave them out if not told")


def _schedule(take: Take, out: Converted, verb: str) -> None:
    steps, epochs, schedule = take("max_steps"), take("num_train_epochs"), take("lr_scheduler_type")
    if steps > 0:
        out.config["max_steps"] = steps
    else:
        out.config["num_train_epochs"] = epochs
    out.config["learning_rate"] = float(take("learning_rate"))
    if schedule in get_args(Schedule):
        out.config["lr_scheduler_type"] = schedule
    else:
        out.lost["lr_scheduler_type"] = f"choose one of {', '.join(get_args(Schedule))}"
    more = dict(take("lr_scheduler_kwargs") or {})
    if "min_lr_rate" in more and schedule == "cosine_with_min_lr":
        out.config["min_lr_rate"] = more.pop("min_lr_rate")
    out.lost |= {f"lr_scheduler_kwargs.{key}": "no key here does this" for key in more}
    ratio, warmup = take("warmup_ratio"), take("warmup_steps")
    out.config["warmup_steps"] = warmup or ratio or 0
    if schedule == "constant" and out.config["warmup_steps"]:
        out.config["warmup_steps"] = 0
        out.said.append("warmup_steps is left out: lr_scheduler_type 'constant' has no warm-up, here and in TRL")


def _precision(take: Take, out: Converted, verb: str) -> None:
    half, bfloat, weights = take("fp16"), take("bf16"), take("dtype") or take("torch_dtype")
    if half:
        out.said.append("fp16 becomes dtype: bfloat16, which needs no loss scaling")
    if bfloat is not False or half:
        out.config["dtype"] = "bfloat16"  # TRL computes in it unless told otherwise
    if weights in ("bfloat16", "float16"):
        out.said.append(f"dtype = {weights!r} of TRL stores the weights so; here masters and moments stay float32")
        out.config["dtype"] = "bfloat16"
    recompute = take("gradient_checkpointing")
    if recompute is not None:
        out.config["remat"] = "full" if recompute else "none"


def _rhythm(take: Take, out: Converted, verb: str) -> None:
    """When it logs, evaluates, saves and to whom it reports."""
    logged = take("logging_steps")
    if isinstance(logged, float) and not logged.is_integer():
        out.lost["logging_steps"] = "give a whole number of steps"
    elif logged != DEFAULTS["logging_steps"]:
        out.config["logging_steps"] = int(logged)
    strategy = take("eval_strategy") if (old := take("evaluation_strategy")) is None else old
    every, test = take("eval_steps"), take("dataset_test_split")
    if strategy != "no" and "dataset_name" in out.config:
        out.config |= {"eval_dataset_name": out.config["dataset_name"], "eval_split": test or "test"}
        rhythm = every or logged
        if strategy == "steps" and float(rhythm).is_integer():
            out.config["eval_steps"] = int(rhythm)
        elif strategy == "steps":
            out.lost["eval_steps"] = "give a whole number of steps"
        else:
            out.lost["eval_strategy"] = "evaluated at the end; give eval_steps to evaluate while it trains"
    elif strategy != "no":
        out.lost["eval_strategy"] = "give held-out rows as eval_dataset_name; they are evaluated at the end"
    saving, steps, limit = take("save_strategy"), take("save_steps"), take("save_total_limit")
    if saving == "steps" and not float(steps).is_integer():
        out.lost["save_steps"] = "give a whole number of steps; the end of the training is always saved"
    elif saving == "steps":
        out.config["save_steps"] = int(steps)
        if limit is not None:
            out.config["save_total_limit"] = limit
    elif saving not in ("no", "epoch"):
        out.lost["save_strategy"] = "the last step is what is kept"
    elif saving == "epoch":
        out.lost["save_strategy"] = "give save_steps, in steps; the end of the training is always saved"
    reported = take("report_to")
    names = [reported] if isinstance(reported, str) else list(reported or [])
    if kept := [name for name in names if name in PACKAGES]:
        out.config["report_to"] = kept
    if strange := [name for name in names if name not in PACKAGES and name != "none"]:
        out.lost["report_to"] = f"{', '.join(strange)}: choose from {', '.join(PACKAGES)}"


def _adapter(take: Take, out: Converted, verb: str) -> None:
    used, rank, alpha, dropout = (take(key) for key in ("use_peft", "lora_r", "lora_alpha", "lora_dropout"))
    modules, stabilised = take("lora_target_modules"), take("use_rslora")
    if not used:
        return
    out.config |= {"use_peft": True, "lora_r": rank, "lora_alpha": alpha}
    if stabilised:
        out.config["use_rslora"] = True
    if dropout and verb != "sft" and take("disable_dropout") is not False:
        out.said.append("lora_dropout is 0: TRL switches dropout off here, adapters' too, unless disable_dropout is "
                        "false")
    elif dropout:
        out.config["lora_dropout"] = dropout
    if modules is None:
        modules = list(_PEFT_MODULES)
        out.said.append(f"lora_target_modules = {modules}: PEFT's choice for Llama, Mistral, Qwen and Gemma; ours is "
                        "all of them")
    modules = [modules] if isinstance(modules, str) else list(modules)
    if modules == ["all-linear"]:
        return
    if strange := sorted(set(modules) - set(MODULES)):
        out.lost["lora_target_modules"] = f"{', '.join(strange)}: choose from {', '.join(MODULES)}"
    out.config["lora_target_modules"] = [module for module in modules if module in MODULES] or list(MODULES)


def _loss(take: Take, out: Converted, verb: str) -> None:
    loss, alpha, centred = take("loss_type"), take("rpo_alpha"), take("center_rewards_coefficient")
    if verb == "sft" and loss not in (None, "nll"):
        out.lost["loss_type"] = f"{loss!r}: the loss is the negative log-likelihood"
    if verb == "reward" and centred is not None:
        out.config["center_rewards_coefficient"] = centred
    if verb != "dpo":
        return
    names = [loss] if isinstance(loss, str) else list(loss or ["sigmoid"])
    weights = take("loss_weights")
    if alpha is not None and "sft" in names:
        weights = [float(weight) + alpha * (name == "sft")
                   for name, weight in zip(names, weights or [1.0] * len(names), strict=False)]
        out.said.append(f"rpo_alpha is added to the weight of 'sft', which loss_type names too: {weights}")
    elif alpha is not None:
        names, weights = [*names, "sft"], [*(weights or [1.0] * len(names)), alpha]
        out.said.append("rpo_alpha becomes the weight of the loss 'sft'")
    out.config["loss_type"] = names if len(names) > 1 else names[0]
    if weights is not None:
        out.config["loss_weights"] = weights
    if smoothing := take("label_smoothing"):
        if {*names} & {*SMOOTHED}:
            out.config["label_smoothing"] = smoothing
        else:
            out.said.append(f"label_smoothing = {smoothing} is left out: of TRL's losses only {', '.join(SMOOTHED)} "
                            "read it. Ours of sigmoid does; give it if you mean it")
    divergence, alpha = take("f_divergence_type"), take("f_alpha_divergence_coef")
    if divergence == "alpha_divergence" and alpha == 1:
        out.said.append("f_divergence_type is left out: alpha_divergence with 1 is reverse_kl")
    elif divergence is not None:
        out.config["f_divergence_type"] = divergence
        if divergence == "alpha_divergence" and alpha is not None:
            out.config["f_alpha_divergence_coef"] = alpha
