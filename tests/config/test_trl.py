"""TRL's configs as ours: what is computed by hand, and TRL's own dataclasses for names and defaults."""

import dataclasses

import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.foreign import changes_nothing
from rlhf_jax.config.trl import COMMANDS, DEFAULTS, LEARNING_RATES, convert

GIVEN = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_not_given_has_trls_default(verb):
    found = convert(verb, GIVEN)
    command = build(COMMANDS[verb], found.config)
    train = command.options.train
    assert (train.train_batch_size, train.num_train_epochs, train.lr_scheduler_type) == (8, 3.0, "linear")
    assert (train.learning_rate, train.warmup_steps, train.dtype) == (LEARNING_RATES[verb], 0, "bfloat16")
    assert command.data.render.overlong == ("drop" if verb == "reward" else "truncate_response")
    assert not found.lost
    assert not found.idle


@pytest.mark.parametrize(("given", "expected"), [
    ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, {"train_batch_size": 24}),
    ({"per_device_train_batch_size": 4, "num_processes": 5}, {"train_batch_size": 20}),
    ({"max_steps": 100}, {"max_steps": 100, "num_train_epochs": None}),
    ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    ({"warmup_ratio": 0.1, "warmup_steps": 20}, {"warmup_steps": 20}),
    ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}}, {"min_lr_rate": 0.2}),
    ({"bf16": False}, {"dtype": None}),
    ({"fp16": True}, {"dtype": "bfloat16"}),
    ({"gradient_checkpointing": False}, {"remat": "none"}),
    ({"max_length": 2048, "truncation_mode": "keep_end"}, {"max_length": 2048, "overlong": "truncate_prompt_left"}),
    ({"max_prompt_length": 512}, {"max_prompt_length": 512, "overlong": "truncate_prompt_left"}),
    ({"max_prompt_length": 512, "max_length": None}, {"max_length": None, "overlong": "truncate_prompt_left"}),
    ({"max_prompt_length": 512, "truncation_mode": "keep_end"}, {"overlong": "truncate_prompt_left"}),
    ({"max_prompt_length": None}, {"max_prompt_length": None, "overlong": "truncate_response"}),
    ({"dataset_train_split": "train_prefs"}, {"split": "train_prefs"}),
    ({}, {"split": "train"}), ({"dataset_train_split": None}, {"split": "train"}),
    ({"model_revision": "v2"}, {"model_name_or_path": "m@v2"}),
    ({"save_strategy": "no", "save_total_limit": 3}, {"save_steps": None, "save_total_limit": None}),
    ({"save_total_limit": 3}, {"save_steps": 500, "save_total_limit": 3}),
    ({"report_to": ["wandb", "none"]}, {"report_to": ["wandb"]}),
    ({"lora_r": 8}, {"use_peft": None, "lora_r": None}),
    ({"use_peft": True, "lora_r": 16, "lora_alpha": 32, "use_rslora": True}, {
        "lora_alpha": 32, "use_rslora": True, "lora_target_modules": ["q_proj", "v_proj"]}),
    ({"use_peft": True, "lora_target_modules": "all-linear"}, {"lora_target_modules": None}),
    ({"loss_type": ["sigmoid"], "rpo_alpha": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    ({"loss_type": ["sigmoid", "sft"], "rpo_alpha": 1.0}, {
        "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0]}),
    ({"loss_type": ["sft", "ipo"], "loss_weights": [0.5, 2], "rpo_alpha": 0.25}, {
        "loss_type": ["sft", "ipo"], "loss_weights": [0.75, 2.0]}),
    ({"loss_type": "sft", "rpo_alpha": 1.0}, {"loss_type": "sft", "loss_weights": [2.0]}),
    ({"beta": 0.3, "torch_dtype": "bfloat16"}, {"beta": 0.3, "dtype": "bfloat16"}),
    ({"use_peft": True}, {"lora_dropout": None}),
    ({"use_peft": True, "lora_dropout": 0.1, "disable_dropout": True}, {"lora_dropout": None}),
    ({"use_peft": True, "disable_dropout": False}, {"lora_dropout": 0.05}),
    ({"use_peft": True, "lora_dropout": 0.0, "disable_dropout": False}, {"lora_dropout": None}),
    ({"ref_model": "r"}, {"reference_model": "r"}),
    ({"label_smoothing": 0.1}, {"label_smoothing": None, "loss_type": "sigmoid"}),
    ({"label_smoothing": 0.1, "loss_type": ["robust", "sft"]}, {"label_smoothing": 0.1}),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}, {
        "f_divergence_type": None, "f_alpha_divergence_coef": None}),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, {
        "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}),
    ({"f_divergence_type": "js_divergence", "f_alpha_divergence_coef": 0.3}, {
        "f_divergence_type": "js_divergence", "f_alpha_divergence_coef": None}),
    ({"lr_scheduler_type": "constant", "warmup_steps": 50}, {"warmup_steps": 0}),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 50}, {"warmup_steps": 50}),
    ({"learning_rate": "5e-7", "eval_strategy": False, "save_strategy": False}, {"learning_rate": 5e-7,
                                                                               "save_steps": None}),
], ids=str)
def test_keys_that_are_computed(given, expected):
    config = convert("dpo", {**GIVEN, **given}, processes=2).config
    assert {key: config.get(key) for key in expected} == expected
    build(COMMANDS["dpo"], config)


@pytest.mark.parametrize("verb", COMMANDS)
def test_null_is_no_limit_where_it_is_a_value_in_trl(verb):
    found = convert(verb, {**GIVEN, "max_length": None})
    assert "max_length" in found.config
    assert build(COMMANDS[verb], found.config).data.render.max_length is None
    assert build(COMMANDS[verb], convert(verb, {**GIVEN, "max_steps": None}).config).data.render.max_length == 1024


@pytest.mark.parametrize(("given", "lost"), [
    ({"use_peft": True, "lora_target_modules": ["q_proj", "lm_head"]}, "lora_target_modules"),
    ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs.num_cycles"),
    ({"truncation_mode": "middle"}, "truncation_mode"),
    ({"truncation_mode": "middle", "max_prompt_length": 9}, "truncation_mode"),
    ({"eval_strategy": "epoch"}, "eval_strategy"),
    ({"eval_strategy": "steps", "eval_steps": 0.1}, "eval_steps"),
    ({"save_steps": 0.2}, "save_steps"),
    ({"save_strategy": "epoch"}, "save_strategy"),
    ({"save_strategy": "best"}, "save_strategy"),
    ({"logging_steps": 0.1}, "logging_steps"),
    ({"report_to": "mlflow"}, "report_to"),
    ({"datasets": [{"path": "a"}]}, "datasets"),
    ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
    ({"packing": True}, "packing"),
    ({"push_to_hub": True}, "push_to_hub"),
    ({"optim": "adafactor"}, "optim"),
    ({"own_key": 1}, "own_key"),
], ids=str)
def test_what_has_no_counterpart_is_listed(given, lost):
    found = convert("dpo", {**GIVEN, **given})
    assert [*found.lost] == [lost]
    build(COMMANDS["dpo"], found.config)


@pytest.mark.parametrize(("verb", "given", "words"), [
    ("dpo", {"max_prompt_length": 512}, "older TRL keeps the last 512 tokens of a prompt"),
    ("dpo", {"max_prompt_length": 512, "truncation_mode": "keep_end"}, "then cuts the response, as keep_start"),
    ("reward", {"max_prompt_length": 512}, "here it leaves out rows with longer prompts"),
    ("sft", {"max_prompt_length": 512}, "here it leaves out rows with longer prompts"),
    ("dpo", {"rpo_alpha": 0.5, "loss_type": ["sigmoid", "sft"]}, "rpo_alpha is added to the weight of 'sft'"),
    ("dpo", {"rpo_alpha": 0.5}, "rpo_alpha becomes the weight of the loss 'sft'"),
], ids=str)
def test_what_is_computed_otherwise_is_said(verb, given, words):
    assert words in " ".join(convert(verb, {**GIVEN, **given}).said)


def test_losses_with_too_few_weights_are_named_beside_rpo_alpha():
    given = {"loss_type": ["sft", "sigmoid"], "loss_weights": [1.0], "rpo_alpha": 1.0}
    with pytest.raises(ValueError, match="loss_weights"):
        build(COMMANDS["dpo"], convert("dpo", {**GIVEN, **given}).config)


@pytest.mark.parametrize("given", [
    {"max_prompt_length": "long"}, {"rpo_alpha": "a"}, {"per_device_train_batch_size": "many"},
    {"lr_scheduler_kwargs": 3}, {"max_steps": [1]}, {"warmup_steps": True},
    {"lr_scheduler_type": 1},
], ids=str)
def test_a_value_of_another_type_is_refused_by_name(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} = .*; in TRL it is "):
        convert("dpo", {**GIVEN, **given})


@pytest.mark.parametrize(("verb", "kept"), [("sft", 0.05), ("reward", None)])
def test_an_adapters_dropout_is_kept_where_trl_has_it(verb, kept):
    assert convert(verb, {**GIVEN, "use_peft": True}).config.get("lora_dropout") == kept


def test_a_fine_tuning_loss_beside_the_usual_one_is_listed():
    assert [*convert("sft", {**GIVEN, "loss_type": "dft"}).lost] == ["loss_type"]
    assert convert("reward", {**GIVEN, "center_rewards_coefficient": 0.01}).config["center_rewards_coefficient"] == 0.01


@pytest.mark.parametrize(("key", "value", "idle"), [
    ("push_to_hub", False, True), ("push_to_hub", True, False), ("push_to_hub", 0, False),
    ("optim", "adamw_torch", True), ("optim", "adafactor", False), ("dataloader_num_workers", 4, True),
    ("hub_model_id", "me/mine", True), ("lora_dropout", 0.0, False), ("disable_dropout", True, True),
    ("ddp_timeout", 1800, True), ("torch_dtype", "bfloat16", False), ("beta", 0.1, False), ("deepspeed", None, True),
    ("own", None, False), ("eval_strategy", False, True), ("save_strategy", "epoch", False),
])
def test_what_changes_nothing(key, value, idle):
    assert changes_nothing(key, value) is idle


@pytest.mark.torch
@pytest.mark.parametrize("verb", COMMANDS)
def test_every_key_of_trl_is_known_with_its_default(verb):
    trl = pytest.importorskip("trl")
    own = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}[verb]
    fields = {field.name: field for cls in (own, trl.ModelConfig, trl.ScriptArguments)
              for field in dataclasses.fields(cls)}
    defaults = {name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                for name, field in fields.items() if name not in ("output_dir", "model_name_or_path", "dataset_name")}
    for name, value in {**DEFAULTS, "learning_rate": LEARNING_RATES[verb]}.items():
        if name in defaults:  # not all have truncation_mode
            assert defaults[name] == value, name
    found = convert(verb, {**GIVEN, **defaults})
    assert not found.lost
    assert build(COMMANDS[verb], found.config) == build(COMMANDS[verb], {
        **convert(verb, GIVEN).config, "seed": 42, **({"remat": "full"} if defaults["gradient_checkpointing"] else {})})


def test_an_evaluation_is_on_the_split_that_trl_takes():
    steps = convert("dpo", {**GIVEN, "eval_strategy": "steps", "eval_steps": 50})
    assert not steps.lost
    command = build(COMMANDS["dpo"], steps.config)
    assert (command.eval_dataset_name, command.eval_split, command.data.rows.split) == ("d", "test", "train")
    assert command.options.train.eval_steps == 50
    epoch = convert("sft", {**GIVEN, "eval_strategy": "epoch", "dataset_test_split": "held_out"})
    assert (epoch.config["eval_split"], [*epoch.lost]) == ("held_out", ["eval_strategy"])
