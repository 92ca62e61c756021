"""Every option that would have no effect, contradicts another or is out of range is an error that says so."""

import ast
import contextlib
import math
import typing
from pathlib import Path

import pytest

import rlhf_jax
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build
from rlhf_jax.config.commands import (
    CompareCommand,
    GenerateCommand,
    RewardCommand,
    ScoreCommand,
    SftCommand,
)
from rlhf_jax.config.data import DataOptions
from rlhf_jax.config.evaluation import EvaluateCommand
from rlhf_jax.config.loop import LoopOptions
from rlhf_jax.config.mixes import DataCommand, SourceOptions
from rlhf_jax.config.pairs import PairOptions
from rlhf_jax.config.preference import DpoCommand, PreferenceOptions
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import BradleyTerryOptions, SftOptions
from rlhf_jax.fields import check_null, check_range, declared, flattened, keys, replaced
from rlhf_jax.losses import LOSSES

FUNCTION = {"kind": "function", "function": "m:f"}
DATA = {"dataset_name": "x.jsonl"}
OTHER = {"dataset_name": "x.jsonl", "chat_template_path": "plain"}
RUN = {"output_dir": "o", "prompts": DATA, "scorer": FUNCTION}
REWARDED = {"output_dir": "o", "prompts": DATA, "model_name_or_path": "m"}
START = {**RUN, "model_name_or_path": "m"}
EVALUATED = {**START, "evaluation": {"data": DATA}}
MODEL = {"model_name_or_path": "m", "output_dir": "o"}
ENGINE = {"urls": "http://h/v1", "model": "m", "name": "vllm", "version": "1"}
SCORE = {"input": "i", "output_dir": "o"}
MIX = {"sources": ["a.jsonl"], "output_dir": "o"}
JUDGED = {"output_dir": "o", "scorer": FUNCTION}
ON_TASKS = {"output_dir": "o", "tasks": "gsm8k, mmlu", "policy": {"model_name_or_path": "m"}}
SUM = {"kind": "combine", "weights": {"proxy/a": 1.0}}
RATED = {"kind": "regression", "objectives": ["data"]}
DIRECTED = {"loop": {"method": "raft", "directions": {"objectives": ["proxy/a", "proxy/b"]}}}


@pytest.mark.parametrize(("options", "settings", "words"), [
    (RewardCommand, {**MODEL, "kind": "pairwise", "use_margin": True}, "no such key: use_margin"),
    (RewardCommand, {**MODEL, "kind": "pairwise", "center_rewards_coefficient": 0.1}, "center_rewards_coefficient"),
    (RewardCommand, {**MODEL, "kind": "process", "min_gap": 0.5}, "min_gap has no effect with kind = 'process'"),
    (RewardCommand, {**MODEL, "kind": "outcome", "label_threshold": 0.5}, "no such key: label_threshold"),
    (ScoreCommand, {**SCORE, "model_name_or_path": "m", "kind": "process", "step_separator": ""}, "is empty"),
    (ExperimentConfig, {**REWARDED, "baselines": ["offline_dpo"], "reward": {"data": DATA, "train": {
        "kind": "process"}}}, "offline_dpo trains on preference data"),
    (ScoreCommand, SCORE, "model_name_or_path is missing"),
    (ScoreCommand, {**SCORE, "function": "m:f"}, "no such key: function"),
    (ScoreCommand, {**SCORE, "kind": "function", "model_name_or_path": "m"}, "no such key: model_name_or_path"),
    (ScoreCommand, {**SCORE, "model_name_or_path": "m", "method": "knock_out"}, "no such key: method"),
    (ScoreCommand, {**SCORE, **FUNCTION, "method": "knock_out"}, "no such key: method"),
    (ScoreCommand, {**SCORE, **FUNCTION, "dtype": "bfloat16"}, "no such key: dtype"),
    (ScoreCommand, {**SCORE, "kind": "pairwise", "model_name_or_path": "m", "output": 1}, "no such key: output"),
    (ScoreCommand, {**SCORE, "kind": "gauge"}, "kind = 'gauge'; did you mean 'judge'"),
    (PairOptions, {"min_gap": -0.1}, "min_gap"),
    (PairOptions, {"length_unit": "tokens"}, "length_unit = 'tokens' has no effect with length_penalty = 0.0"),
    (LoopOptions, {"rounds": 0}, "rounds = 0"),
    (LoopOptions, {"shard_size": 0}, "shard_size = 0"),
    (LoopOptions, {"data_policy": "window", "window": 0}, "window = 0"),
    (LoopOptions, {"window": 3}, "window = 3 has no effect"),
    (LoopOptions, {"window": 3, "data_policy": "accumulate"}, "window = 3 has no effect"),
    (LoopOptions, {"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha = 0.5 has no effect"),
    (LoopOptions, {"ref_model_mixup_alpha": 0.5, "reference": "previous"}, "has no effect with reference = 'previous'"),
    (LoopOptions, {"directions": {"objectives": ["a", "b"]}}, "no effect with method = 'dpo'; set method: raft"),
    (LoopOptions, {"method": "raft", "directions": {"objectives": ["a"]}}, "lies over two different ratings"),
    (ExperimentConfig, {**START, **DIRECTED, "pairs": {"scorer": "proxy/a"}}, "pairs.scorer = 'proxy/a' has no effect"),
    (ExperimentConfig, {**START, **DIRECTED, "prompts": {**DATA, "system_prompt": "s"}}, "system_prompt has no effect"),
    (ExperimentConfig, {**START, "scorer": SUM}, r"scorer\.kind = 'combine' adds numbers that responses carry"),
    (ExperimentConfig, {**START, "gold": SUM, "evaluation": {"data": DATA}}, r"set gold\.scorer to what gives them"),
    (CompareCommand, {**JUDGED, "scorer": SUM, "model_name_or_path": "m", "baseline_model": "b"}, "samples carry none"),
    (ScoreCommand, {**SCORE, "kind": "combine", "weights": {}}, "weights is empty"),
    (ScoreCommand, {**SCORE, **SUM, "weights": {"a": math.inf}}, "weights = .*it must be at least"),
    (ScoreCommand, {**SCORE, **SUM, "scorer": SUM}, "kind = 'combine'; choose one of bradley_terry"),
    (RewardCommand, {**MODEL, "kind": "regression"}, "objectives is missing"),
    (RewardCommand, {**MODEL, **RATED, "min_gap": 1.0}, "min_gap has no effect with kind = 'regression'"),
    (ExperimentConfig, {**REWARDED, "reward": {"data": {**DATA, "min_gap": 1.0}, "train": RATED}}, "min_gap has no"),
    (LoopOptions, {"method": "raft", "reference": "previous"}, "no effect with method = 'raft'; set method: dpo"),
    (LoopOptions, {"method": "raft", "reference": "ema"}, "reference = 'ema' has no effect with method = 'raft'"),
    (SftOptions, {"min_lr_rate": 0.2}, "min_lr_rate = 0.2 has no effect"),
    (SftOptions, {"train_batch_size": 0}, "train_batch_size"),
    (SftOptions, {"learning_rate": 0.0}, "learning_rate = 0.0; it must be greater than 0"),
    (SftOptions, {"num_train_epochs": 0}, "num_train_epochs"),
    (PreferenceOptions, {"simpo_gamma": 1.0}, "simpo_gamma=1.0 has no effect"),
    (PreferenceOptions, {"loss_type": "sigmoyd"}, "Did you mean 'sigmoid'"),
    (PreferenceOptions, {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0,)}, "loss_weights has 1 numbers"),
    (PreferenceOptions, {"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef"),
    (PreferenceOptions, {"beta": 0.0}, "beta"),
    (PreferenceOptions, {"loss_type": "aot", "use_weighting": True}, "use_weighting weighs each pair on its own"),
    (PreferenceOptions, {"ld_alpha": 1.5}, "ld_alpha = 1.5; it must be at least 0 and at most 1"),
    (PreferenceOptions, {"ld_alpha": 0.5, "loss_type": "sft"}, "ld_alpha has no effect with loss_type = 'sft'"),
    (PreferenceOptions, {"ld_alpha": 0.5, "loss_type": ("sft", "raft")}, "ld_alpha has no effect"),
    (SftOptions, {"lr_scheduler_type": "constant", "warmup_steps": 5}, "set constant_with_warmup"),
    (SamplingConfig, {"lanes": 9}, "lanes = 9"),
    (SamplingConfig, {"temperature": (1.0, 0.7, 0.4), "num_generations": 2}, "temperature has 3 values"),
    (SamplingConfig, {"temperature": (1.0, -0.7)}, "temperature = "),
    (SamplingConfig, {"engine": ENGINE, "slots": 4}, "slots = 4 is about our own sampler .* leave slots out"),
    (SamplingConfig, {"engine": {**ENGINE, "urls": []}}, "urls is empty"),
    (SamplingConfig, {"engine": {**ENGINE, "urls": "localhost"}}, "give an address like http"),
    (SamplingConfig, {"engine": {**ENGINE, "hand_over_urls": "http://me:pw@h"}}, "login and parameters not shown"),
    (SamplingConfig, {"engine": {"urls": "http://h/v1", "model": "m"}}, r"engine\.name is missing"),
    (SamplingConfig, {"top_p": 0.0}, "top_p = 0.0; it must be greater than 0 and at most 1"),
    (DpoCommand, MODEL, "exactly one of dataset_name"),
    (PreferenceOptions, {"split_pairs": True}, "split_pairs has no effect with loss_type = 'sigmoid'"),
    (PreferenceOptions, {"loss_type": "kto", "ld_alpha": 0.5}, "ld_alpha is about pairs"),
    (PreferenceOptions, {"loss_type": "bco", "use_weighting": True}, "use_weighting"),
    (DpoCommand, {**MODEL, "pairs": "p.jsonl", "loss_type": "kto"}, "reads single responses, and pairs are pairs"),
    (DpoCommand, {**MODEL, **DATA, "loss_type": "kto", "min_gap": 1}, "min_gap has no effect on single responses"),
    (ExperimentConfig, {**START, "dpo": {"loss_type": "kto"}}, "the loop makes pairs; set dpo.split_pairs"),
    (DataCommand, {"output_dir": "o"}, "sources is missing"),
    (DataCommand, {**MIX, "sources": []}, "sources is empty"),
    (DataCommand, {**MIX, "sources": 3}, r"sources = 3; give a list, of names or of objects {name: ...}"),
    (DataCommand, {**MIX, "sources": [{"name": "a", "columns": ["x"]}]}, r"columns = \['x'\]; it must be a mapping of"),
    (DataCommand, {**MIX, "sources": [{"name": "a", "wieght": 2}]}, r"no such key: sources\[0\].wieght"),
    (DataCommand, {**MIX, "sources": [{"weight": 2}]}, r"sources\[0\].name is missing"),
    (DataCommand, {**MIX, "sources": ["a", {"name": "b", "weight": 0}]}, r"sources\[1\]: weight = 0.*greater than 0"),
    (DataCommand, {**MIX, "sources": [{"name": "a", "weight": 2}]}, r"\.weight = 2 has no effect without size"),
    (DataCommand, {**MIX, "kind": "sft", "sources": [{"name": "a", "min_gap": 1}]}, r"\.min_gap has no effect"),
    (DataCommand, {**MIX, "sources": [{"name": "a", "prompts_from": "first_user"}]}, r"\.prompts_from has no effect"),
    (DataCommand, {**MIX, "kind": "sft", "contradictions": "keep"}, "contradictions = 'keep' has no effect"),
    (DataCommand, {**MIX, "batches": 2}, "batches = 2 needs batch_size"),
    (DataCommand, {**MIX, "batch_size": 2}, "batch_size = 2 has no effect"),
    (DataCommand, {**MIX, "valid_percent": 50, "test_percent": 50}, "leave less than a tenth to train on"),
    (DpoCommand, {**MODEL, "dataset_name": "x", "pairs": "y"}, "exactly one of"),
    (CompareCommand, {**JUDGED, "model_name_or_path": "m"}, "baseline_model is missing"),
    (EvaluateCommand, {**JUDGED, "gold": FUNCTION}, "no such key: gold"),
    (EvaluateCommand, {**JUDGED, "max_length": 64}, "no such key: max_length"),
    (EvaluateCommand, {**JUDGED, "text_as_chat": True}, "no such key: text_as_chat"),
    (EvaluateCommand, {**JUDGED, "dtype": "bfloat16"}, "no such key: dtype"),
    (EvaluateCommand, {**JUDGED, "chat_template_path": "plain"}, "no such key: chat_template_path"),
    (EvaluateCommand, {"output_dir": "o"}, "give one of scorer, .* input, .* and policy"),
    (EvaluateCommand, {**JUDGED, "tasks": "gsm8k"}, "tasks = 'gsm8k' has no effect with policy = None; set policy"),
    (EvaluateCommand, {**ON_TASKS, "tasks": ()}, "policy is given and tasks is not"),
    (EvaluateCommand, {**ON_TASKS, **DATA}, "dataset_name has no effect with policy, which reads the rows of its t"),
    (EvaluateCommand, {**ON_TASKS, "tie_rule": "half"}, "tie_rule has no effect with policy"),
    (EvaluateCommand, {**ON_TASKS, "policy": {"model_name_or_path": "m", "chat_template_path": "plain"}},
     "chat_template_path = 'plain' has no effect with apply_chat_template = False"),
    (DataOptions, {"max_samples": -3}, "max_samples = -3"),
    (DataOptions, {"max_length": 0}, "max_length = 0; it must be at least 1, or null"),
    (DataOptions, {"max_bad_rows": -1}, "max_bad_rows = -1"),
    (SftOptions, {"lora_r": 4}, "lora_r = 4 has no effect with use_peft = False; set use_peft: true"),
    (BradleyTerryOptions, {"lora_alpha": 4.0}, "lora_alpha = 4.0 has no effect"),
    (PreferenceOptions, {"lora_target_modules": ("q_proj",)}, "lora_target_modules"),
    (SftOptions, {"use_peft": True, "lora_target_modules": ("q",)}, r"lora_target_modules has \['q'\]"),
    (SftOptions, {"save_total_limit": 5}, "save_total_limit = 5 has no effect with save_steps = None; set save_steps"),
    (SftOptions, {"attn_implementation": "cudnn"}, "set dtype: bfloat16"),
    (SftCommand, {**MODEL, "dataset_name": "x", "eval_steps": 5}, "eval_steps = 5 has no effect"),
    (RewardCommand, {**MODEL, "dataset_name": "x", "eval_steps": 5}, "eval_steps = 5 has no effect"),
    (SftCommand, {**MODEL, "dataset_name": "x", "pair_rule": "best_worst"}, "no such key: pair_rule"),
    (SftCommand, {**MODEL, "dataset_name": "x", "max_length": 0}, "max_length = 0"),
    (GenerateCommand, {**MODEL, "dataset_name": "x", "min_gap": 1.0}, "no such key: min_gap"),
    (GenerateCommand, {**MODEL, "dataset_name": "x", "shard_size": 0}, "shard_size = 0"),
    (DpoCommand, {**MODEL, "pairs": "y", "max_length": 64}, "max_length = 64 has no effect on pairs"),
    (DpoCommand, {**MODEL, "dataset_name": "x", "loss_type": "simpo", "reference_model": "r"}, "has no reference"),
    (ExperimentConfig, {**START, "gold": FUNCTION}, "gold judges policies in the evaluation"),
    (ExperimentConfig, {**START, "raft": {"train_batch_size": 8}}, "raft section has no effect"),
    (ExperimentConfig, {**START, "dpo": {"eval_steps": 5}}, r"dpo\.eval_steps = 5 has no effect"),
    (ExperimentConfig, {**START, "dpo": {"adam_beta1": 1.5}}, "dpo: adam_beta1 = 1.5"),
    (ExperimentConfig, {**START, "dpo": {"bta": 1}}, r"no such key: dpo\.bta"),
    (SftCommand, {**MODEL, "dataset_name": "x", "report_to": "mlflow"}, "report_to = 'mlflow'"),
    (ExperimentConfig, {**START, "report_to": ("none", "wandb")}, "contradicts itself"),
    (ExperimentConfig, RUN, "exactly one of model_name_or_path"),
    (ExperimentConfig, {**START, "scratch": {"tokenizer": "t"}}, "exactly one of model_name"),
    (ExperimentConfig, REWARDED, "exactly one of reward"),
    (ExperimentConfig, {**RUN, "scratch": {"tokenizer": "t"}}, "needs an sft section"),
    (ExperimentConfig, {**START, "baselines": ("offline_dpo",)}, "offline_dpo"),
    (ExperimentConfig, {**START, "prompts": OTHER}, r"prompts\.chat_template_path = 'plain' has.*Set chat_templ"),
    (ExperimentConfig, {**START, "sft": {"data": OTHER}}, r"sft\.data\.chat_template_path = 'plain' has no effect"),
    (ExperimentConfig, {**START, "sft": {"data": DATA, "eval_data": OTHER}}, r"sft\.eval_data\.chat_template_path"),
    (ExperimentConfig, {**START, "evaluation": {"data": OTHER}}, r"evaluation\.data\.chat_template_path"),
    (ExperimentConfig, {**REWARDED, "reward": {"data": OTHER}}, r"reward\.data\.chat_template_path"),
    (ExperimentConfig, {**REWARDED, "reward": {"data": DATA, "eval_data": OTHER}},
     r"no such key: reward\.eval_data\.chat_template_path"),
])
def test_settings_that_have_no_effect_or_contradict_each_other_are_refused(options, settings, words):
    with pytest.raises(ValueError, match=words):
        build(options, settings)


@pytest.mark.parametrize(("options", "settings"), [
    (RewardCommand, {**MODEL, "use_margin": True, "center_rewards_coefficient": 0.1}),
    (RewardCommand, {**MODEL, "kind": "pairwise"}), (ScoreCommand, {**SCORE, **FUNCTION}),
    (ScoreCommand, {**SCORE, "model_name_or_path": "m"}),
    (ScoreCommand, {**SCORE, "kind": "pairwise", "model_name_or_path": "m", "method": "knock_out"}),
    (PairOptions, {"length_penalty": 0.001, "length_unit": "tokens"}),
    (LoopOptions, {"data_policy": "window", "window": 3}), (LoopOptions, {"method": "raft"}),
    (LoopOptions, {"reference": "ema", "ref_model_mixup_alpha": 0.5}),
    (ExperimentConfig, {**START, **DIRECTED, "scorer": {**SUM, "scorer": FUNCTION}}),
    (ExperimentConfig, {**REWARDED, "baselines": ["offline_dpo"],
                        "reward": {"data": {**DATA, "min_gap": 1.0}, "train": RATED}}),
    (ScoreCommand, {**SCORE, **SUM}), (RewardCommand, {**MODEL, **RATED}),
    (SftOptions, {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_rate": 0.2}),
    (PreferenceOptions, {"label_smoothing": 0.1}),
    (ExperimentConfig, {**RUN, "scratch": {"tokenizer": "t"}, "sft": {"data": DATA}}),
    (ExperimentConfig, {**START, "chat_template_path": "plain", "sft": {"data": DATA}}),
    (ExperimentConfig, {**REWARDED, "reward": {"data": OTHER, "eval_data": DATA, "init": "m"}}),
    (EvaluateCommand, {"output_dir": "o", "scorer": {"model_name_or_path": "m", "chat_template_path": "plain"}}),
    (EvaluateCommand, {**ON_TASKS, "max_samples": 4, "num_fewshot": 0, "allow_code_execution": True}),
])
def test_the_combinations_those_errors_advise_are_accepted(options, settings):
    build(options, settings)


def test_loss_options_reach_the_loss_and_adapters_the_training():
    options = build(PreferenceOptions, {"loss_type": "ipo", "beta": 0.3, "use_peft": True, "lora_r": 4})
    assert (options.loss.loss_types, options.loss.beta) == (("ipo",), 0.3)
    assert (options.lora.use_peft, options.lora.lora_r) == (True, 4)
    assert not PreferenceOptions().lora.use_peft


def test_duplicates_are_dropped_from_the_prompts_of_the_loop_alone_unless_the_config_says_otherwise():
    tree = {**START, "evaluation": {"data": DATA}}
    run = build(ExperimentConfig, tree)
    assert run.prompts.rows.drop_duplicate_prompts
    assert not run.evaluation.data.rows.drop_duplicate_prompts
    assert not DataOptions().rows.drop_duplicate_prompts
    tree["prompts"] = {**DATA, "drop_duplicate_prompts": False}
    assert not build(ExperimentConfig, tree).prompts.rows.drop_duplicate_prompts


def test_a_data_set_name_may_be_one_or_several():
    assert build(DataOptions, {"dataset_name": "a.jsonl"}).rows.sources == ("a.jsonl",)
    assert build(DataOptions, {"dataset_name": ["a.jsonl", "b.jsonl"]}).rows.sources == ("a.jsonl", "b.jsonl")
    assert DataOptions().rows.sources == ()


def test_sources_of_a_mix_are_names_or_objects_and_come_back():
    tree = {**MIX, "sources": ["a.jsonl", {"name": "b.jsonl", "columns": {"prompt": "q"}, "max_rows": 3}]}
    command = build(DataCommand, tree)
    assert command.sources == (SourceOptions(name="a.jsonl"),
                               SourceOptions(name="b.jsonl", columns={"prompt": "q"}, max_rows=3))
    assert flattened(command)["sources"][1]["max_rows"] == 3
    assert build(DataCommand, flattened(command)) == command
    assert build(DataCommand, {**MIX, "sources": "a.jsonl"}) == build(DataCommand, MIX)


def test_what_is_not_given_keeps_the_default_of_its_place():
    """TRL's learning rates differ by trainer; one that is given replaces them and nothing else does."""
    kinds = SftOptions, BradleyTerryOptions, PreferenceOptions
    rates = [build(kind, {"seed": 1}).train.learning_rate for kind in kinds]
    assert rates == [2e-5, 5e-6, 5e-7]
    assert build(SftOptions, {"learning_rate": 0.5}).train.learning_rate == 0.5


@pytest.mark.parametrize("tree", [{"raft": None}, {"pairs": None, "dpo": None}, {"loop": None}])
def test_null_takes_back_a_section_that_another_file_gave(tree):
    assert build(ExperimentConfig, {**START, **tree}) == build(ExperimentConfig, START)


def test_options_are_written_as_a_user_gives_them_and_read_back():
    tree = {**START, "dpo": {"beta": 0.3, "learning_rate": 1e-5}, "evaluation": {"data": DATA}}
    config = build(ExperimentConfig, tree)
    assert flattened(config)["dpo"]["beta"] == 0.3
    assert build(ExperimentConfig, flattened(config)) == config


def test_a_changed_option_takes_with_it_what_has_no_effect_any_more():
    loop = LoopOptions(data_policy="window", window=3, reference="ema", ref_model_mixup_alpha=0.5)
    assert replaced(loop, data_policy="fresh", reference="sft") == LoopOptions()
    assert replaced(loop, method="raft") == LoopOptions(data_policy="window", window=3, method="raft")


ALL = {verb: named(row.options) for verb, row in VERBS.items()}


def holds_numbers(hint):
    return hint in (int, float) or any(map(holds_numbers, typing.get_args(hint)))


FIELDS = {(owner, field.name): field for options in ALL.values() for _, owner, field in keys(options)}
NUMBERS = [place for place, field in FIELDS.items() if not field.kinds and holds_numbers(field.hint)]


@pytest.mark.parametrize(("owner", "name"), NUMBERS, ids=lambda x: getattr(x, "__name__", x))
def test_every_number_declares_its_range_and_refuses_what_is_no_number_in_it(owner, name):
    field = next(f for f in declared(owner) if f.name == name)
    assert field.range is not None, "declare a range at the field"
    below = min(x for x in (field.range.low, field.range.also) if x is not None) - 1
    for value in (math.nan, math.inf, -math.inf, 2**63, below):
        with pytest.raises(ValueError, match=f"{name} = .*; it must be"):
            check_range(field, value)
    if not field.required:
        check_range(field, field.default)


@pytest.mark.parametrize(("owner", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_a_key_that_takes_no_null_refuses_it_by_name(owner, name):
    field = FIELDS[owner, name]
    if type(None) in typing.get_args(field.hint):
        check_null(field, None)
    else:
        with pytest.raises(ValueError, match=f"^{name} is null; "):
            check_null(field, None)


def test_there_are_numbers_to_look_at():
    assert len(NUMBERS) > 60


@pytest.mark.parametrize("verb", VERBS)
def test_no_key_of_a_verb_stands_in_two_of_its_groups(verb):
    """Alternatives of one kind aside, a flat key has one owner; else which of them it sets would be a guess."""
    def look(options, prefix=""):
        owners = {}
        for field in declared(options):
            for kind in field.kinds or (options,):
                names = [f.name for f in declared(kind) if not f.flat] if field.flat else [field.name]
                for name in names if field.flat else [field.name]:
                    owner = owners.setdefault(name, field.name)
                    assert owner == field.name, f"{verb} {prefix}{name}"
            for kind in field.kinds:
                look(kind, f"{prefix}{field.name}.")

    look(ALL[verb])


def other_values(field):
    """Values of the field's type that are not its default."""
    if typing.get_origin(field.hint) is typing.Literal:
        return [value for value in typing.get_args(field.hint) if value != field.default]
    if field.hint is bool:
        return [not field.default]
    if field.range is not None:
        inside = [v for v in (1, 2, 0.5, 3, 0.25) if field.range.holds(v) and v != field.default]
        return [v for v in inside if isinstance(v, int) or holds_float(field.hint)]
    alternatives = [v for part in typing.get_args(field.hint) for v in (
        typing.get_args(part) if typing.get_origin(part) is typing.Literal else ())]
    return alternatives or ["x"]


def holds_float(hint):
    return hint is float or any(map(holds_float, typing.get_args(hint)))


class RefusedByName(Exception):
    """Options were refused, and the message names the key."""


@contextlib.contextmanager
def refused_by(key):
    try:
        yield
    except ValueError as error:
        if key not in str(error):
            raise
        raise RefusedByName from error


COMPLETE = {
    "quickstart": START, "iterate": START, "sweep": EVALUATED, "worth": EVALUATED,
    "sft": {**MODEL, **DATA}, "reward": {**MODEL, **DATA},
    "dpo": {**MODEL, **DATA}, "generate": {**MODEL, **DATA}, "score": {**SCORE, "model_name_or_path": "m"},
    "pairs": SCORE, "evaluate": {**JUDGED, **DATA}, "compare": {**JUDGED, **MODEL, **DATA, "baseline_model": "b"},
    "export": MODEL, "inspect": {"model_name_or_path": "m"}, "doctor": {"model_name_or_path": "m"},
    "benchmark": {"name": "mt_bench", "data_dir": "d", **MODEL, "judge": {"url": "http://h", "model": "j"}},
    "features": {**MODEL, **DATA}, "probe": {**MODEL, "ratings": "f", "pairs": "p"},
    "steps": {**MODEL, **DATA}, "selftrain": {**MODEL, **DATA, "unlabelled_dataset_name": "u"},
    "plan": {"accelerator": "cpu-8"}, "report": {"run": "r"},
    "data": {"sources": ["a.jsonl"], "output_dir": "o"},
    "agreement": {"verdicts": ["a", "b"], "output_dir": "o"}, "verify": {"data": "d"},
    "watch": {"run": "r"}, "convert": {"file": "f", "verb": "dpo"},
}
"""verb -> a config that it takes."""


@pytest.mark.longer
@pytest.mark.parametrize("verb", VERBS)
def test_setting_any_key_of_a_verb_changes_what_is_run_or_is_refused_by_name(verb):
    before = flattened(build(ALL[verb], COMPLETE[verb]))
    for key, _, field in keys(ALL[verb]):
        if field.kinds or "." in key:
            continue
        for value in other_values(field)[:2]:
            with contextlib.suppress(RefusedByName):
                with refused_by(key):
                    after = flattened(build(ALL[verb], {**COMPLETE[verb], key: value}))
                assert {k for k in before if before[k] != after.get(k)} == {key}, (key, value)


def attributes(tree):
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_option_is_read_by_what_runs():
    """An option that nothing but its own check reads does nothing, whatever it is set to."""
    read = {knob for loss in LOSSES.values() for knob in loss.knobs}
    for path in Path(rlhf_jax.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        if path.parent.name != "config":
            read |= attributes(tree)
        else:  # properties and the like, which others call
            read |= {name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "conflicts"
                     for name in attributes(node)}
    assert sorted({name for _, name in FIELDS} - read) == []


@pytest.mark.parametrize("verb", [SftCommand, RewardCommand, DpoCommand])
def test_held_out_rows_are_not_those_that_are_trained_on(verb):
    given = {"model_name_or_path": "m", "output_dir": "o", "dataset_name": "saved", "split": "train"}
    with pytest.raises(ValueError, match=r"'saved' holds the rows that are trained on \(split = train\).*eval_split"):
        build(verb, {**given, "eval_dataset_name": "saved"})
    with pytest.raises(ValueError, match="holds the rows that are trained on"):
        build(verb, {**given, "eval_dataset_name": ["other", "saved"], "eval_split": "train"})
    with pytest.raises(ValueError, match="eval_split = 'test' has no effect without eval_dataset_name"):
        build(verb, {**given, "eval_split": "test"})
    assert build(verb, {**given, "eval_dataset_name": "saved", "eval_split": "test"}).eval_split == "test"
    assert build(verb, {**given, "eval_dataset_name": "saved[90%:]"}).eval_split is None
    with pytest.raises(ValueError, match="holds the rows that are trained on"):
        build(verb, {**given, "split": None, "eval_dataset_name": "./saved", "eval_split": "train"})
    command = build(verb, {**given, "max_samples": 5, "eval_dataset_name": "held_out.jsonl"})
    held_out = command.data.rows.held_out(command.eval_dataset_name, command.eval_split)
    assert (held_out.sources, held_out.split, held_out.max_samples) == (("held_out.jsonl",), None, None)


@pytest.mark.parametrize(("key", "value", "here"), [
    ("loss_type", "dpo", "sigmoid"), ("loss_type", ["dpo", "sft"], ("sigmoid", "sft")),
    ("lora_target_modules", ["all-linear"], None)])
def test_values_of_others_are_taken_in_lists_too(key, value, here):
    given = {"model_name_or_path": "m", "output_dir": "o", "dataset_name": "d", "use_peft": True}
    found = flattened(build(DpoCommand, {**given, key: value}).options)
    assert found[key] == (flattened(build(DpoCommand, given).options)[key] if here is None else here)


@pytest.mark.parametrize("value", [[[]], [{}], [["dpo"]], [1, "dpo"], {"dpo": 1}])
def test_values_of_any_shape_are_refused_in_words(value):
    with pytest.raises(ValueError, match="loss_type"):
        build(DpoCommand, {"model_name_or_path": "m", "output_dir": "o", "dataset_name": "d", "loss_type": value})
