"""Keys of other frameworks: what they are called here, what changes nothing here, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.config.lora import MODULES

ALIASES = {
    "warmup_ratio": "warmup_steps", "max_seq_length": "max_length", "torch_dtype": "dtype",
    "choose_type": "rule", "len_penalty": "length_penalty",
    "K": "num_generations", "n": "num_generations", "num_return_sequences": "num_generations",
    "dataset_train_split": "split", "dataset": "dataset_name",
    "ref_model_path": "reference_model", "ref_model": "reference_model", "ref_pretrain": "reference_model",
    "model": "model_name_or_path", "policy": "model_name_or_path", "pretrain": "model_name_or_path",
    "data": "dataset_name", "eval_dataset": "eval_dataset_name", "save_path": "output_dir", "lr": "learning_rate",
    "lr_warmup_ratio": "warmup_steps", "max_epochs": "num_train_epochs", "max_norm": "max_grad_norm",
    "l2": "weight_decay", "max_len": "max_length", "prompt_max_len": "max_prompt_length",
    "generate_max_len": "max_new_tokens", "n_samples_per_prompt": "num_generations", "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
}
"""Old or foreign names of keys and what they are called here; accepted where there is such a key, and said."""

SAME_VALUES: dict[str, dict[str, Any]] = {"lora_target_modules": {"all-linear": list(MODULES)},
                                          "loss_type": {"dpo": "sigmoid"}}
"""Key -> a foreign name of one of its values -> that value; accepted."""

TRL_VERBS = ("sft", "reward", "dpo")
"""Verbs whose configs `convert` makes of TRL's."""

_MESH, _SPLIT = "sharding follows from mesh", "use eval_dataset_name and eval_split"
_COLUMNS = "use columns, our name first: --columns.{} NAME"
_SCORER = ("answers are scored by `score` (model_name_or_path) or in `iterate` (scorer.model_name_or_path)")
_WANDB = "use report_to: wandb; its project is the environment variable WANDB_PROJECT"
OTHERS = {
    "reward_model": _SCORER, "reward_model_path": _SCORER, "reward_pretrain": _SCORER,
    "input_key": _COLUMNS.format("prompt"), "prompt_key": _COLUMNS.format("prompt"),
    "output_key": _COLUMNS.format("completion"), "chosen_key": _COLUMNS.format("chosen"),
    "rejected_key": _COLUMNS.format("rejected"),
    "micro_train_batch_size": "micro_rows is what one device works on at a time, in packed rows",
    "zero_stage": _MESH, "wandb_project": _WANDB, "use_wandb": _WANDB,
    "apply_chat_template": "chat messages are always rendered by the template; for strings use text_as_chat: true",
    "packing_samples": "rows are always packed", "ckpt_path": "checkpoints lie in output_dir",
    "load_checkpoint": "the same command always continues", "flash_attn": "use attn_implementation",
    "nll_loss_coef": "use loss_type: [sigmoid, sft] with loss_weights: [1, coefficient]",
}
"""Keys of OpenRLHF and of the paper's code that have no meaning here, and what to do instead."""

REFUSED = OTHERS | {
    "gradient_accumulation_steps": "train_batch_size is the global batch; accumulation follows from micro_rows",
    "per_device_train_batch_size": "train_batch_size is the global batch on any number of devices; micro_rows is what "
                                   "one device works on at a time",
    "per_device_eval_batch_size": "evaluation takes micro_rows packed rows per device at a time, and its numbers do "
                                  "not depend on them",
    "packing": "rows are always packed, and train_batch_size counts examples, not rows",
    "padding_free": "rows are always packed",
    "precompute_ref_log_probs": "reference log-probs are always computed once and cached",
    "use_liger_kernel": "log-probs are always chunked; see logits_chunk",
    "gradient_checkpointing": "use remat: auto | none | dots | full", "bf16": "use dtype: bfloat16",
    "fp16": "use dtype: bfloat16",
    "use_vllm": "sampling runs in this process; for vLLM give the section engine (of sampling, in iterate)",
    "load_in_4bit": "weights are float32 or bfloat16", "load_in_8bit": "weights are float32 or bfloat16",
    "disable_dropout": "models have no dropout, and adapters none unless lora_dropout is given",
    "use_dora": "adapters are plain LoRA",
    "lora_modules_to_save": "an adapter is all that is trained with use_peft",
    "lora_target_parameters": "name modules, with lora_target_modules",
    "lora_task_type": "leave it out; it follows from the verb",
    "completion_only_loss": "the loss is on the assistant's tokens alone",
    "assistant_only_loss": "the loss is on the assistant's tokens alone",
    "dataset_text_field": "rows are told by their columns; see docs/data.md, or choose a converter",
    "dataset_config": "give files, a folder, or a hub name whose default config has the rows",
    "dataset_test_split": _SPLIT, "shuffle_dataset": "rows are shuffled in each epoch, by seed",
    "sync_ref_model": "in a run of rounds use loop.reference: ema",
    "load_best_model_at_end": "the last step is what is kept", "model_init_kwargs": "use dtype and attn_implementation",
    "model_revision": "write model_name_or_path: owner/name@revision",
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
    "optim": "the optimizer is AdamW", "deepspeed": _MESH, "fsdp_config": _MESH,
    "parallelism_config": _MESH, "accelerator_config": _MESH, "lr_scheduler_kwargs": "give min_lr_rate",
    "overwrite_output_dir": "finished work is never overwritten; choose another output_dir or remove it",
    "resume_from_checkpoint": "the same command always continues",
    "dataset_mixer": "use dataset_name with several sources", "dataset_splits": "use split",
    "dataset_num_proc": "leave it out", "preprocessing_num_workers": "leave it out",
    "dataloader_num_workers": "leave it out", "chat_template": "use chat_template_path",
    "gradient_checkpointing_kwargs": "use remat: none | full | dots",
    "truncation_mode": "use overlong: error | drop | truncate_prompt_left | truncate_response",
    "data_seed": "seed decides the order too", "neftune_noise_alpha": "embeddings get no noise",
    "router_aux_loss_coef": "the router's balance is not a part of the loss",
}
"""Keys of other frameworks, TRL's and OTHERS, that have no meaning here, and what to do instead."""

_IDLE: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (False,), "optim": ("adamw_torch", "adamw_torch_fused", "adamw_hf"), "fp16": (False,),
    "bf16": (False,), "packing": (False,), "load_in_4bit": (False,), "load_in_8bit": (False,),
    "use_vllm": (False,), "disable_dropout": (True,), "use_dora": (False,),
    "completion_only_loss": (True,), "assistant_only_loss": (True,), "sync_ref_model": (False,),
    "load_best_model_at_end": (False,), "model_revision": ("main",), "label_smoothing_factor": (0,),
    "use_cpu": (False,), "trust_remote_code": (False,), "reference_free": (False,), "logging_strategy": ("steps",),
    "overwrite_output_dir": (False,), "resume_from_checkpoint": (True,), "auto_find_batch_size": (False,),
    "average_tokens_across_devices": (True,), "dataloader_drop_last": (False,), "eval_delay": (0,),
    "eval_on_start": (False,), "bf16_full_eval": (False,), "fp16_full_eval": (False,), "ignore_data_skip": (False,),
    "train_sampling_strategy": ("random",), "dataset_streaming": (False,), "fsdp": ("", False), "packing_strategy": (
        "bfd",), "dataset_test_split": ("test",), "save_only_model": (False,), "enable_jit_checkpoint": (False,),
    "hub_always_push": (False,), "dataset_text_field": ("text",),
    "eval_strategy": ("no", False), "evaluation_strategy": ("no", False), "save_strategy": ("no", False),
}
"""Key -> the values with which it changes nothing here. null, which means "not given", never does."""

_IDLE_PREFIXES = ("dataloader_", "ddp_", "hub_", "trackio_", "log_", "bnb_", "torch_", "include_", "activation_")
_MACHINERY = frozenset((
    "batch_eval_metrics", "dataset_num_proc", "debug", "disable_tqdm", "do_eval", "do_predict", "do_train",
    "eval_accumulation_steps", "eval_do_concat_batches", "eval_packing", "eval_use_gather_object", "full_determinism",
    "gradient_checkpointing_kwargs", "greater_is_better", "ignore_bias_buffers", "label_names", "length_column_name",
    "liger_kernel_config", "local_rank", "logging_first_step", "logging_nan_inf_filter", "lora_task_type",
    "pad_to_multiple_of", "padding_free", "per_device_eval_batch_size", "precompute_ref_batch_size",
    "precompute_ref_log_probs", "prediction_loss_only", "preprocessing_num_workers", "project", "ref_model_mixup_alpha",
    "ref_model_sync_steps", "remove_unused_columns", "restore_callback_states_from_checkpoint", "save_on_each_node",
    "shuffle_dataset", "skip_memory_metrics", "tf32", "torch_compile", "use_bnb_nested_quant", "use_cache",
    "use_liger_kernel"))
"""Keys about the machinery of other frameworks, of which no value changes what is trained here."""


def changes_nothing(key: str, value: Any) -> bool:
    """Whether a foreign key with this value asks for what is done here anyway, or for what does not touch results."""
    if value is None:
        return key in REFUSED or key in _IDLE or _is_machinery(key)
    if key in _IDLE:
        return any(value == idle and isinstance(value, bool) == isinstance(idle, bool) for idle in _IDLE[key])
    return _is_machinery(key)


def _is_machinery(key: str) -> bool:
    return key in _MACHINERY or (key.startswith(_IDLE_PREFIXES) and key not in ALIASES)


def split_idle(tree: Mapping[str, Any], known: set[str]) -> tuple[dict[str, Any], list[str]]:
    """A mapping without the foreign keys that change nothing, and a note on each of those. known: our own keys."""
    idle = [key for key, value in tree.items() if key not in known and changes_nothing(key, value)]
    notes = [f"{key} = {tree[key]!r}" + (f" ({REFUSED[key]})" if key in REFUSED else "") for key in idle]
    return {key: value for key, value in tree.items() if key not in idle}, notes


def meant(key: str) -> str:
    """What to do about a foreign key."""
    return REFUSED[key] if key in REFUSED else f"it is called {ALIASES[key]} here"
