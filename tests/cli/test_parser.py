import subprocess
import sys

import pytest
import yaml

from rlhf_jax.cli.parser import parse
from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.commands import CompareCommand, GenerateCommand, ScoreCommand, SftCommand
from rlhf_jax.config.evaluation import EvaluateCommand
from rlhf_jax.config.preference import DpoCommand
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.fields import keys

SFT = ["--model_name_or_path", "m", "--output_dir", "o", "--dataset_name", "d"]
RUN = {"output_dir": "o", "model_name_or_path": "m", "prompts": {"dataset_name": "p"},
       "scorer": {"kind": "bradley_terry", "model_name_or_path": "r"}}


def refused(command, args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command, "verb", args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_later_values_win_and_nested_keys_merge(tmp_path):
    for name, tree in (("a", {**RUN, "dpo": {"beta": 0.3, "learning_rate": 1e-5}}), ("b", {"dpo": {"beta": 0.2}})):
        (tmp_path / name).write_text(yaml.safe_dump(tree))
    config = parse(ExperimentConfig, "iterate", ["--config", str(tmp_path / "a"), "--config", str(tmp_path / "b"),
                                                 "--loop.rounds", "5", "--dpo.learning_rate=2e-5"])
    assert (config.dpo.loss.beta, config.dpo.train.learning_rate, config.loop.rounds) == (0.2, 2e-5, 5)


@pytest.mark.parametrize("text", ["Use Python. Explain with # comments", "Rule 1\nRule 2", "a  # b", " two  spaces ",
                                  "Be brief!"])
def test_a_text_is_taken_as_it_is_typed(text):
    """YAML would cut it at " #" and fold its lines."""
    assert parse(SftCommand, "sft", [*SFT, "--system_prompt", text]).data.render.system_prompt == text


def test_a_text_in_quotes_is_yaml():
    assert parse(SftCommand, "sft", [*SFT, "--system_prompt", '"a\\tb"']).data.render.system_prompt == "a\tb"
    assert parse(SftCommand, "sft", [*SFT, "--system_prompt", "'12'"]).data.render.system_prompt == "12"


def test_hyphens_stay_in_names_of_data_and_are_let_pass_in_keys():
    words = ["--input", "i", "--output-dir", "o", "--kind", "combine", "--weights.data/helpsteer-helpfulness", "1"]
    assert parse(ScoreCommand, "score", words).scorer.weights == {"data/helpsteer-helpfulness": 1.0}


def test_one_data_set_or_several_and_tuples_of_numbers():
    assert parse(SftCommand, "sft", SFT).data.rows.sources == ("d",)
    assert parse(SftCommand, "sft", [*SFT[:4], "--dataset_name", "[a, b]"]).data.rows.sources == ("a", "b")
    generate = parse(GenerateCommand, "generate", [*SFT, "--temperature", "[1.0, 0.7]"])
    assert generate.sampling.temperatures[::4] == (1.0, 0.7)


def test_an_unknown_flag_names_the_nearest_key(capsys):
    assert "learning_rate" in refused(SftCommand, [*SFT, "--learning_rat", "1"], capsys)


@pytest.mark.parametrize(("key", "said"), [
    ("disable_dropout", "models have no dropout, and adapters none unless"), ("use_dora", "adapters are plain LoRA"),
    ("dataset_test_split", "use eval_dataset_name"), ("packing_strategy", "no key has a similar name"),
    ("gamma_rays", "no key has a similar name"), ("lora_dropot", "did you mean 'lora_dropout'?"),
    ("max_seq_lenght", "did you mean 'max_seq_length'? (it is called max_length here)"),
    ("lr_scheduler", "did you mean 'lr_scheduler_type'?"),
    ("batch_size", "did you mean 'train_batch_size'?"), ("epochs", "did you mean 'num_train_epochs'?"),
    ("fsdp", "did you mean 'mesh.fsdp'?"), ("lora_rr", "did you mean 'lora_r'?"), ("see", "did you mean 'seed'?"),
])
def test_a_hint_names_a_key_that_is_meant_and_no_other(key, said, capsys):
    assert f"{key}: {said}" in refused(SftCommand, [*SFT, f"--{key}", "1"], capsys)


@pytest.mark.parametrize(("key", "meant"), [("model_name_or_path", "scorer.model_name_or_path"),
                                            ("unlabelled", "no key"), ("dtypee", "scorer.dtype")])
def test_of_keys_of_one_name_the_hint_names_the_one_that_lies_least_deep(key, meant, capsys):
    said = refused(EvaluateCommand, ["--dataset_name", "d", "--output_dir", "o", f"--{key}", "1"], capsys)
    assert f"did you mean {meant!r}" in said or f"{key}: {meant}" in said


def test_the_baseline_of_a_comparison_is_not_hinted_to_be_the_policy(capsys):
    with pytest.raises(SystemExit):
        parse(CompareCommand, "compare", ["--baseline.model_name_or_path", "m"])
    assert "baseline: did you mean 'baseline_model'?" in capsys.readouterr().err


def test_names_of_the_field_for_the_number_of_samples_are_taken(capsys):
    for name in ("n", "K", "num_return_sequences"):
        assert parse(GenerateCommand, "generate", [*SFT, f"--{name}", "2"]).sampling.num_generations == 2
        assert f"{name} is called num_generations here" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "name"), [
    ("model", "model_name_or_path"), ("pretrain", "model_name_or_path"), ("lr", "learning_rate"),
    ("save_path", "output_dir"), ("max_len", "max_length"), ("lora_rank", "lora_r"), ("data", "dataset_name"),
])
def test_short_and_foreign_names_are_taken_or_lead_to_the_key(key, name, capsys):
    given = {**dict(zip(SFT[::2], SFT[1::2], strict=True)), "--use_peft": "true", "--beta": "0.1"}
    given = {**given, f"--{key}": given.pop(f"--{name}", "1")}
    said = refused(SftCommand, [word for pair in given.items() for word in pair], capsys)
    assert f"{key} is called {name} here" in said or f"{key}: did you mean {name!r}?" in said


@pytest.mark.parametrize(("verb", "args", "said"), [
    ("compare", ["--policy", "m", "--x", "1"], "policy is called model_name_or_path here"),
    ("generate", ["--model", "m"], "model: did you mean 'model_name_or_path'?"),
    ("sft", ["--modle", "m"], "did you mean 'model'? (it is called model_name_or_path here)"),
    ("pairs", ["--model", "m"], "model: no key has a similar name"),
    ("dpo", ["--reward_model", "m"], "reward_model: answers are scored by `score`"),
    ("dpo", ["--input_key", "q"], "input_key: use columns, our name first: --columns.prompt NAME"),
    ("dpo", ["--micro_train_batch_size", "1"], "micro_train_batch_size: micro_rows is what"),
    ("dpo", ["--zero_stage", "3"], "zero_stage: sharding follows from mesh"),
    ("dpo", ["--wandb_project", "p"], "the environment variable WANDB_PROJECT"),
    ("dpo", ["--apply_chat_template", "true"], "for strings use text_as_chat: true"),
    ("generate", ["--use_vllm", "true"], "for vLLM give the section engine"),
    ("score", ["--scorer.model_name_or_path", "m"], "the keys of scorer are given without it: model_name_or_path"),
    ("sft", ["--train.learning_rate", "1", "--train.seed", "1"], "are given without it: learning_rate, seed"),
    ("iterate", ["--dpo.train.learning_rate", "1"], "the keys of train are given without it: dpo.learning_rate"),
    ("ppo", [], "no verb 'ppo'. It is not here; `iterate` does online DPO."),
    ("grpo", [], "no verb 'grpo'. It is not here; `iterate` does online DPO."),
    ("kto", [], "It is called dpo --loss_type kto here."),
])
def test_what_others_write_leads_to_what_is_here(verb, args, said, rlhf_jax):
    status, _, err = rlhf_jax(verb, *args)
    assert status == 2
    assert said in err


@pytest.mark.parametrize(("verb", "keys", "hinted"), [
    ("dpo", ["packing", "gradient_accumulation_steps"], True), ("sft", ["bf16", "deepspeed", "zzz"], True),
    ("dpo", ["packing", "zzz"], False), ("dpo", ["zero_stage", "input_key"], False),
    ("generate", ["packing", "gradient_accumulation_steps"], False),
])
def test_several_keys_of_trl_name_the_verb_that_translates_them(verb, keys, hinted, rlhf_jax):
    _, _, err = rlhf_jax(verb, *(word for key in keys for word in (f"--{key}", "3")))
    said = f"this looks like a TRL config: rlhf-jax convert FILE --verb {verb} --output ours.yaml"
    assert (said in err) is hinted


def test_of_many_unknown_keys_some_are_named_and_all_are_counted(capsys):
    message = refused(SftCommand, [*SFT, *(word for i in range(50) for word in (f"--zzz{i}", "1"))], capsys)
    assert "zzz0: no key has a similar name" in message
    assert "and 30 more" in message
    assert "zzz49" not in message


def test_an_unknown_nested_key_in_yaml_names_the_nearest_key(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**RUN, "dpo": {"betta": 0.1}}))
    assert "dpo.beta" in refused(ExperimentConfig, ["--config", str(tmp_path / "x.yaml")], capsys)


@pytest.mark.parametrize(("args", "words"), [
    (["--train_batch_size", "many"], "train_batch_size = 'many'; it must be a whole number\n"),
    (["--max_length", "None"], "max_length = 'None'; it must be a whole number or null\n"),
    (["--max_samples", "1.5"], "max_samples = 1.5; it must be a whole number or null\n"),
    (["--micro_rows", "few"], "micro_rows = 'few'; it must be a whole number or auto\n"),
    (["--max_bad_rows", "few"], "max_bad_rows = 'few'; it must be a number\n"),
    (["--use_peft", "3"], "use_peft = 3; it must be true or false\n"),
    (["--split", "[a]"], "split = ['a']; it must be text or null\n"),
    (["--output_dir", "5"], "output_dir = 5; it must be text, which 5 is in quotes of its own (--key '\"5\"')\n"),
    (["--dataset_name", "[1]"], "dataset_name = [1]; it must be text or a list of names\n"),
    (["--columns", "[a]"], "columns = ['a']; it must be a mapping of names to names\n"),
    (["--mesh", "four"], "mesh = 'four'; it must be auto, or keys of its own, such as mesh.data\n"),
    (["--lora_target_modules", "q_proj,v_proj"],
     "lora_target_modules = 'q_proj,v_proj'; give a list: [q_proj, v_proj]\n"),
    (["--lr_scheduler_type", "cosin"], "lr_scheduler_type = 'cosin'; it must be one of cosine, linear,"),
    (["--train_batch_size", "0"], "at least 1"),
    (["--packing", "true"], "always packed"),
    (["--gradient_accumulation_steps", "4"], "train_batch_size"),
    (["--bf16", "true"], "dtype: bfloat16"),
    (["--learning_rate"], "needs a value"),
    (["stray"], "not an option"),
    (["--config", "/nowhere.yaml"], "no such file"),
    (["--dataset_name", "null"], "dataset_name is null; leave it out, or give a value"),
    (["--model_name_or_path", "null"], "model_name_or_path is null; give a value"),
    (["--seed", "null"], "seed is null"),
    (["--mesh", "null"], "mesh"),
])
def test_what_cannot_work_says_what_to_do(args, words, capsys):
    assert words in refused(SftCommand, [*SFT, *args], capsys)


@pytest.mark.parametrize(("args", "words"), [
    (["--simpo_gamma", "1"], "no effect"),
    (["--loss_type", "sigmod"], "sigmoid"),
    (["--loss_type", "[sigmoid, sft]", "--loss_weights", "[1]"], "loss_weights"),
    (["--pairs", "x.jsonl"], "exactly one of"),
    (["--min_lr_rate", "0.5"], "no effect"),
    (["--loss_type", "null"], "loss_type is null"),
    (["--loss_weights", "[null]"], "loss_weights"),
])
def test_options_without_effect_or_in_conflict_are_errors(args, words, capsys):
    assert words in refused(DpoCommand, [*SFT, *args], capsys)


@pytest.mark.parametrize(("scorer", "said"), [
    ({"kind": ["function"]}, "scorer.kind = ['function']; "),
    ({"kind": {"function": 1}}, "scorer.kind = {'function': 1}; did you mean 'function'?"),
    ({"kind": None}, "scorer.kind = None; choose one of"),
    ({"kind": 1}, "scorer.kind = 1; choose one of"),
    ({"kind": "function", "function": None}, "scorer: function is null; give a value"),
])
def test_a_kind_and_what_it_needs_are_words(scorer, said, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**RUN, "scorer": scorer}))
    assert said in refused(ExperimentConfig, ["--config", str(tmp_path / "x.yaml")], capsys)


def test_other_names_of_a_value_are_taken():
    peft = ["--use_peft", "true", "--lora_target_modules"]
    assert parse(SftCommand, "sft", [*SFT, *peft, "all-linear"]) == parse(SftCommand, "sft", [*SFT, *peft[:2]])
    assert parse(DpoCommand, "dpo", [*SFT, "--loss_type", "dpo"]) == parse(DpoCommand, "dpo", SFT)


def test_old_names_are_accepted_and_said(capsys):
    assert parse(SftCommand, "sft", [*SFT, "--warmup_ratio", "0.1"]).options.train.warmup_steps == 0.1
    assert "warmup_steps" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n"])
def test_a_config_that_is_no_mapping_is_an_error(text, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    assert "x.yaml" in refused(SftCommand, ["--config", str(tmp_path / "x.yaml")], capsys)


def test_help_is_made_of_the_docstrings(rlhf_jax):
    status, out, _ = rlhf_jax("dpo", "--help")
    out = " ".join(out.split())
    assert status == 0
    assert "folder of the reference policy" in out
    assert "probability that a label is flipped" in out


def test_shipped_configs_are_valid():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "configs"
    paths = {"--model_name_or_path": "m", "--scorer.model_name_or_path": "r", "--prompts.dataset_name": "p",
             "--evaluation.data.dataset_name": "e"}
    args = [word for pair in paths.items() for word in pair]
    for name in ("chat/iterate.yaml", "chat/one_round_lora.yaml"):
        parse(ExperimentConfig, "iterate", ["--config", str(folder / name), *args])
    parse(ExperimentConfig, "iterate", ["--config", str(folder / "stories/iterate.yaml"), *args,
                                        "--gold.model_name_or_path", "g"])
    parse(ExperimentConfig, "quickstart", ["--config", str(folder / "quickstart.yaml")])
    for preset in ("paper", "repo-v1", "repo-v2"):
        parse(ExperimentConfig, "iterate", ["--config", str(folder / f"presets/{preset}.yaml"),
                                            "--config", str(folder / "chat/iterate.yaml"), *args])


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_says_something_of_every_key(verb, rlhf_jax):
    status, out, _ = rlhf_jax(verb, "--help")
    assert status == 0
    lines = out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  --"):
            assert lines[number + 1].startswith("      "), line
            assert lines[number + 1].strip()[0] != "[", f"no words for {line}"


def test_the_help_lists_a_verbs_own_keys_first_and_the_others_in_groups(rlhf_jax):
    _, shown, _ = rlhf_jax("dpo", "--help")
    words = ("--model_name_or_path", "Which rows", "--dataset_name", "Which preference losses", "--beta",
             "How to optimise", "--learning_rate")
    places = [shown.index(word) for word in words]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_only_keys_that_the_verb_has(verb, rlhf_jax):
    _, shown, _ = rlhf_jax(verb, "--help")
    listed = {line.split()[0][2:] for line in shown.splitlines() if line.startswith("  --")}
    assert listed == {key for key, _, _ in keys(named(VERBS[verb].options)) if "." not in key}


def test_help_says_what_a_verb_brings_along_and_whether_it_has_a_dry_run(rlhf_jax):
    _, shown, _ = rlhf_jax("quickstart", "--help")
    assert "[given by this verb: runs/quickstart]" in shown
    assert "required" not in shown
    _, shown, _ = rlhf_jax("quickstart", "--loop.help")
    assert "[given by this verb: 3; at least" in shown
    assert "[--dry-run]" in rlhf_jax("iterate", "--help")[1]
    assert "[required]" in rlhf_jax("iterate", "--help")[1]
    for verb in ("plan", "doctor", "inspect"):
        assert "--dry-run" not in rlhf_jax(verb, "--help")[1]


@pytest.mark.parametrize("verb", ["sft", "generate", "score", "pairs", "evaluate", "inspect", "export", "plan"])
def test_help_needs_neither_jax_nor_a_tokenizer(verb):
    code = f"import sys; sys.argv[1:] = [{verb!r}, '--help']; from rlhf_jax.cli.main import main\n" \
           "try: main()\nexcept SystemExit: pass\n" \
           "print([name for name in ('jax', 'transformers', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("verb", "args", "words"), [
    ("score", ["--kind", "function", "--function", "m:f", "--dtype", "bfloat16"], "dtype: has no effect on this kind"),
    ("score", ["--model_name_or_path", "m", "--method", "knock_out"], "it belongs to kind: pairwise"),
    ("score", ["--kind", "bradly_terry", "--model_name_or_path", "m"], "did you mean 'bradley_terry'"),
    ("reward", [*SFT, "--kind", "pairwise", "--use_margin", "true"], "it belongs to kind: bradley_terry"),
    ("sft", [*SFT, "--pair_rule", "all"], "pair_rule"),
    ("evaluate", ["--scorer.kind", "function", "--scorer.function", "m:f", "--max_length", "9"], "max_length"),
    ("evaluate", ["--scorer", "m"], "scorer = 'm'; it takes keys of its own"),
    ("score", ["--output_dir", "o", "--model_name_or_path", "m"], "give either input, a folder of shards, or"),
    ("evaluate", ["--input", "i", "--benchmark", "hhh"], "benchmark has no effect with input = 'i'"),
    ("evaluate", ["--input", "i", "--scorer.kind", "function", "--scorer.function", "m:f"], "give one of scorer"),
    ("evaluate", ["--dataset_name", "d"], "give one of scorer, to be evaluated"),
    ("evaluate", ["--scorer.kind", "function", "--scorer.function", "m:f", "--length_unit", "characters"],
     "length_unit = 'characters' has no effect with input = None"),
    ("score", ["--output_dir", "o"], "model_name_or_path is missing"),
    ("sft", [*SFT, "--lora_r", "4"], "lora_r = 4 has no effect with use_peft = False; set use_peft: true"),
])
def test_a_key_that_belongs_to_another_kind_or_verb_is_refused_by_name(verb, args, words, rlhf_jax):
    paths = [] if "--output_dir" in args else ["--output_dir", "o", *(["--input", "i"] if verb == "score" else [])]
    status, _, err = rlhf_jax(verb, *args, *paths)
    assert status == 2
    assert words in err


def test_foreign_keys_that_change_nothing_are_accepted_and_said(tmp_path, capsys):
    config = tmp_path / "x.yaml"
    config.write_text("push_to_hub: false\noptim: adamw_torch\ndataloader_num_workers: 4\n")
    assert parse(SftCommand, "sft", [*SFT, "--config", str(config)]) == parse(SftCommand, "sft", SFT)
    said = capsys.readouterr().err
    assert "changes nothing here: push_to_hub = False (nothing is uploaded;" in said
    assert "changes nothing here: dataloader_num_workers = 4" in said
    assert "push_to_hub: nothing is uploaded" in refused(SftCommand, [*SFT, "--push_to_hub", "true"], capsys)


def test_a_converted_config_is_a_config(tmp_path, rlhf_jax):
    (tmp_path / "trl.yaml").write_text("beta: 0.3\nuse_peft: true\noptim: adamw_torch\nneftune_noise_alpha: 5\n")
    status, out, err = rlhf_jax("convert", tmp_path / "trl.yaml", "--verb", "dpo", "--output", tmp_path / "ours.yaml")
    assert (status, out) == (0, "")
    for said in ("changes nothing here:\n  optim", "lora_dropout is 0: TRL switches",
                 "NO COUNTERPART:\n  neftune_noise_alpha: emb",
                 "still to be given:\n  model_name_or_path\n  dataset_name\n  output_dir"):
        assert said in err
    command = parse(DpoCommand, "dpo", ["--config", str(tmp_path / "ours.yaml"), *SFT])
    assert (command.options.loss.beta, command.options.lora.use_peft) == (0.3, True)
    status, out, err = rlhf_jax("convert", tmp_path / "trl.yaml", "--verb", "dpo")
    assert (status, out) == (0, (tmp_path / "ours.yaml").read_text())
    (tmp_path / "trl.yaml").write_text("beta: -1\n")
    status, _, err = rlhf_jax("convert", tmp_path / "trl.yaml", "--verb", "dpo")
    assert status == 1
    assert "beta = -1" in err
