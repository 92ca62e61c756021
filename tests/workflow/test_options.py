"""Every option that would have no effect, or contradicts another, is an error that says so."""

import pytest

from rlhf_jax.cli.parser import parse_tree
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.workflow.commands import DpoCommand, EvaluateCommand, GenerateCommand, RewardCommand, SftCommand
from rlhf_jax.workflow.experiment_config import (
    EvaluationSection,
    ExperimentConfig,
    RewardSection,
    ScratchOptions,
    SftSection,
)
from rlhf_jax.workflow.iterate import LoopOptions
from rlhf_jax.workflow.options import (
    DataOptions,
    PairOptions,
    PreferenceOptions,
    PromptOptions,
    RewardOptions,
    ScorerOptions,
    SftOptions,
)

FUNCTION = {"kind": "function", "function": "m:f"}
SCORER = ScorerOptions(**FUNCTION)
DATA = DataOptions("x.jsonl")
OTHER = DataOptions("x.jsonl", chat_template_path="plain")
RUN = {"output_dir": "o", "prompts": PromptOptions("x.jsonl"), "scorer": SCORER}
REWARDED = {"output_dir": "o", "prompts": PromptOptions("x.jsonl"), "model_name_or_path": "m"}
START = {**RUN, "model_name_or_path": "m"}
MODEL = {"model_name_or_path": "m", "output_dir": "o"}


@pytest.mark.parametrize(("options", "settings", "words"), [
    (RewardOptions, {"kind": "pairwise", "use_margin": True}, "kind: bradley_terry"),
    (RewardOptions, {"kind": "pairwise", "center_rewards_coefficient": 0.1}, "kind: bradley_terry"),
    (ScorerOptions, {}, "takes model_name_or_path and not function"),
    (ScorerOptions, {"function": "m:f"}, "takes model_name_or_path and not function"),
    (ScorerOptions, {"model_name_or_path": "m", "function": "m:f"}, "takes model_name_or_path and not function"),
    (ScorerOptions, {"kind": "function", "model_name_or_path": "m"}, "takes function and not model_name_or_path"),
    (ScorerOptions, {"model_name_or_path": "m", "method": "knock_out"}, "no effect on kind 'bradley_terry'"),
    (ScorerOptions, {**FUNCTION, "method": "knock_out"}, "no effect on kind 'function'"),
    (ScorerOptions, {**FUNCTION, "dtype": "bfloat16"}, "no effect on kind 'function'"),
    (ScorerOptions, {**FUNCTION, "score_at": "last_token"}, "no effect on kind 'function'"),
    (ScorerOptions, {"kind": "pairwise", "model_name_or_path": "m", "score_at": "end_of_turn"}, "kind 'pairwise'"),
    (PairOptions, {"min_gap": -0.1}, "min_gap"),
    (PairOptions, {"length_unit": "tokens"}, "length_unit has no effect"),
    (LoopOptions, {"rounds": 0}, "rounds = 0"),
    (LoopOptions, {"shard_size": 0}, "shard_size = 0"),
    (LoopOptions, {"data_policy": "window", "window": 0}, "window = 0"),
    (LoopOptions, {"window": 3}, "window = 3 has no effect"),
    (LoopOptions, {"window": 3, "data_policy": "accumulate"}, "window = 3 has no effect"),
    (LoopOptions, {"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha = 0.5 has no effect"),
    (LoopOptions, {"ref_model_mixup_alpha": 0.5, "reference": "previous"}, "has no effect with reference = 'previous'"),
    (LoopOptions, {"method": "raft", "reference": "previous"}, "has no reference"),
    (LoopOptions, {"method": "raft", "reference": "ema"}, "has no reference"),
    (SftOptions, {"min_lr_rate": 0.2}, "min_lr_rate = 0.2 has no effect"),
    (SftOptions, {"train_batch_size": 0}, "train_batch_size"),
    (SftOptions, {"learning_rate": 0.0}, "learning_rate"),
    (SftOptions, {"num_train_epochs": 0}, "num_train_epochs"),
    (PreferenceOptions, {"simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect"),
    (PreferenceOptions, {"loss_type": "sigmoyd"}, "Did you mean 'sigmoid'"),
    (PreferenceOptions, {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0,)}, "loss_weights has 1 numbers"),
    (PreferenceOptions, {"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef"),
    (PreferenceOptions, {"beta": 0.0}, "beta"),
    (SamplingConfig, {"lanes": 9}, "lanes = 9"),
    (SamplingConfig, {"temperature": (1.0, 0.7, 0.4), "num_generations": 2}, "temperature has 3 values"),
    (DpoCommand, {"model_name_or_path": "m", "output_dir": "o"}, "exactly one of dataset_name"),
    (DpoCommand, {"model_name_or_path": "m", "output_dir": "o", "dataset_name": "x", "pairs": "y"}, "exactly one of"),
    (EvaluateCommand, {"output_dir": "o", "scorer": SCORER, "model_name_or_path": "m"}, "baseline_model"),
    (EvaluateCommand, {"output_dir": "o", "scorer": SCORER, "gold": SCORER}, "gold and sampling have no effect"),
    (DataOptions, {"max_samples": -3}, "max_samples = -3"),
    (DataOptions, {"max_length": 0}, "max_length = 0"),
    (DataOptions, {"max_bad_rows": -1}, "max_bad_rows = -1"),
    (SftOptions, {"lora_r": 4}, "lora_r = 4 has no effect without use_peft"),
    (RewardOptions, {"lora_alpha": 4.0}, "lora_alpha = 4.0 has no effect"),
    (PreferenceOptions, {"lora_target_modules": ("q_proj",)}, "lora_target_modules"),
    (SftOptions, {"save_total_limit": 5}, "save_total_limit = 5 has no effect without save_steps"),
    (SftCommand, {**MODEL, "dataset_name": "x", "eval_steps": 5}, "eval_steps = 5 has no effect"),
    (RewardCommand, {**MODEL, "dataset_name": "x", "eval_steps": 5}, "eval_steps = 5 has no effect"),
    (SftCommand, {**MODEL, "dataset_name": "x", "pair_rule": "best_worst"}, "pair_rule = 'best_worst'"),
    (GenerateCommand, {**MODEL, "dataset_name": "x", "min_gap": 1.0}, "min_gap = 1.0"),
    (GenerateCommand, {**MODEL, "dataset_name": "x", "shard_size": 0}, "shard_size = 0"),
    (DpoCommand, {**MODEL, "pairs": "y", "max_length": 64}, "max_length = 64 has no effect on pairs"),
    (DpoCommand, {**MODEL, "dataset_name": "x", "loss_type": "simpo", "reference_model": "r"}, "has no reference"),
    (ExperimentConfig, {**START, "gold": SCORER}, "gold judges policies in the evaluation"),
    (ExperimentConfig, {**START, "raft": SftOptions(train_batch_size=8)}, "raft section has no effect"),
    (ExperimentConfig, {**START, "dpo": PreferenceOptions(eval_steps=5)}, "dpo.eval_steps = 5 has no effect"),
    (SftCommand, {**MODEL, "dataset_name": "x", "report_to": "mlflow"}, "report_to = 'mlflow'"),
    (ExperimentConfig, {**START, "report_to": ("none", "wandb")}, "contradicts itself"),
    (ExperimentConfig, RUN, "exactly one of model_name_or_path"),
    (ExperimentConfig, {**RUN, "model_name_or_path": "m", "scratch": ScratchOptions("t")}, "exactly one of model_name"),
    (ExperimentConfig, {**RUN, "scorer": None, "model_name_or_path": "m"}, "exactly one of reward"),
    (ExperimentConfig, {**RUN, "scratch": ScratchOptions("t")}, "needs an sft section"),
    (ExperimentConfig, {**RUN, "model_name_or_path": "m", "baselines": ("offline_dpo",)}, "offline_dpo"),
    (ExperimentConfig, {**START, "prompts": PromptOptions("x.jsonl", chat_template_path="plain")},
     r"prompts\.chat_template_path = 'plain' has.*Set chat_templ"),
    (ExperimentConfig, {**START, "sft": SftSection(OTHER)}, r"sft\.data\.chat_template_path = 'plain' has no effect"),
    (ExperimentConfig, {**START, "sft": SftSection(DATA, eval_data=OTHER)}, r"sft\.eval_data\.chat_template_path"),
    (ExperimentConfig, {**START, "evaluation": EvaluationSection(OTHER)}, r"evaluation\.data\.chat_template_path"),
    (ExperimentConfig, {**REWARDED, "reward": RewardSection(OTHER)}, r"reward\.data\.chat_template_path"),
    (ExperimentConfig, {**REWARDED, "reward": RewardSection(OTHER, eval_data=OTHER, init="m")},
     r"reward\.eval_data\.chat_template_path = ..*Set reward\.data\.chat_template_path instead"),
    (EvaluateCommand, {"output_dir": "o", "scorer": SCORER, "chat_template_path": "plain"}, "set scorer.chat_template"),
], ids=lambda x: getattr(x, "__name__", None))
def test_settings_that_have_no_effect_or_contradict_each_other_are_refused(options, settings, words):
    with pytest.raises(ValueError, match=words):
        options(**settings)


@pytest.mark.parametrize(("options", "settings"), [
    (RewardOptions, {"use_margin": True, "center_rewards_coefficient": 0.1}), (RewardOptions, {"kind": "pairwise"}),
    (ScorerOptions, FUNCTION), (ScorerOptions, {"model_name_or_path": "m"}),
    (ScorerOptions, {"kind": "pairwise", "model_name_or_path": "m", "method": "knock_out"}),
    (PairOptions, {"length_penalty": 0.001, "length_unit": "tokens"}),
    (LoopOptions, {"data_policy": "window", "window": 3}), (LoopOptions, {"method": "raft"}),
    (LoopOptions, {"reference": "ema", "ref_model_mixup_alpha": 0.5}),
    (SftOptions, {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_rate": 0.2}),
    (PreferenceOptions, {"label_smoothing": 0.1}),
    (ExperimentConfig, {**RUN, "scratch": ScratchOptions("t"), "sft": SftSection(DATA)}),
    (ExperimentConfig, {**START, "chat_template_path": "plain", "sft": SftSection(DATA)}),
    (ExperimentConfig, {**REWARDED, "reward": RewardSection(OTHER, eval_data=DATA, init="m")}),
    (EvaluateCommand, {"output_dir": "o", "scorer": ScorerOptions(model_name_or_path="m", chat_template_path="plain")}),
], ids=lambda x: getattr(x, "__name__", None))
def test_the_combinations_those_errors_advise_are_accepted(options, settings):
    options(**settings)


def test_loss_options_reach_the_loss_and_adapters_the_training():
    options = PreferenceOptions(loss_type="ipo", beta=0.3, use_peft=True, lora_r=4)
    assert (options.loss.loss_types, options.loss.beta) == (("ipo",), 0.3)
    assert options.lora.lora_r == 4
    assert PreferenceOptions().lora is None


def test_duplicates_are_dropped_from_the_prompts_of_the_loop_alone_unless_the_config_says_otherwise():
    tree = {"output_dir": "o", "model_name_or_path": "m", "scorer": FUNCTION,
            "prompts": {"dataset_name": "x"}, "evaluation": {"data": {"dataset_name": "x"}}}
    run = parse_tree(ExperimentConfig, "iterate", tree)
    assert run.prompts.drop_duplicate_prompts
    assert not run.evaluation.data.drop_duplicate_prompts
    assert not DataOptions("x").drop_duplicate_prompts
    tree["prompts"]["drop_duplicate_prompts"] = False
    assert not parse_tree(ExperimentConfig, "iterate", tree).prompts.drop_duplicate_prompts


def test_a_data_set_name_may_be_one_or_several():
    assert DataOptions("a.jsonl").sources == ("a.jsonl",)
    assert DataOptions(("a.jsonl", "b.jsonl")).sources == ("a.jsonl", "b.jsonl")
    assert DataOptions().sources == ()
