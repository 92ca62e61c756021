"""A dry run shows what a command would work on, ends as the command would that cannot begin, and writes nothing."""

import json
import sys

import pytest

JUDGE = ["--kind", "function", "--function", "rlhf_jax.data.world:gold_judge"]
SCORER = [word.replace("--", "--scorer.") for word in JUDGE]


def begun(verb, world, sampled):
    """A command line that can begin."""
    base, rows = ["--model_name_or_path", world / "base"], "--dataset_name"
    return {
        "sft": [*base, rows, world / "sft.jsonl"],
        "reward": [*base, rows, world / "preference.jsonl"],
        "dpo": [*base, rows, world / "preference.jsonl"],
        "generate": [*base, rows, world / "prompts.jsonl", "--max_new_tokens", "8"],
        "score": ["--input", sampled, *JUDGE],
        "pairs": ["--input", sampled],
        "evaluate": [*SCORER, rows, world / "preference_eval.jsonl"],
        "compare": [*base, "--baseline_model", world / "base", *SCORER, rows, world / "eval_prompts.jsonl",
                    "--sampling.max_new_tokens", "8"],
        "export": base,
        "iterate": [*base, *SCORER, "--prompts.dataset_name", world / "prompts.jsonl",
                    "--sampling.max_new_tokens", "8", "--evaluation.data.dataset_name", world / "eval_prompts.jsonl",
                    "--evaluation.sampling.max_new_tokens", "8"],
    }[verb]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Two prompts with two scored responses."""
    folder = tmp_path_factory.mktemp("sampled")
    answers = [{"ids": [6] * len(text), "text": text, "scores": {"proxy": len(text)}} for text in ("a", "bb")]
    rows = [{"prompt_id": f"p{n}", "prompt": "say", "prompt_ids": [5], "responses": answers} for n in range(2)]
    (folder / "shard-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("verb", "shown"), [
    ("sft", "response 0"), ("reward", "response 1"), ("dpo", "response 1"), ("generate", "kept               8"),
    ("score", "read          2"), ("pairs", "kept               2"), ("evaluate", "kept             100"),
    ("compare", "kept               8"), ("export", "parameters"), ("iterate", "kept               8")])
def test_a_dry_run_of_every_verb_shows_what_it_would_work_on_and_keeps_nothing(verb, shown, world, sampled, rlhf_jax,
                                                                              tmp_path):
    status, out, err = rlhf_jax(verb, *begun(verb, world, sampled), "--dry-run", "--output_dir", tmp_path / "none")
    assert status == 0, err
    assert shown in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("verb", "change", "said"), [
    ("iterate", [*SCORER[:2], "--scorer.function", "nowhere:judge"], "cannot be imported"),
    ("iterate", ["--scorer.kind", "bradley_terry", "--scorer.function", "null", "--scorer.model_name_or_path", "BASE"],
     "this checkpoint is a language model"),
    ("iterate", ["--evaluation.data.dataset_name", "[]"], "set evaluation.data.dataset_name to"),
    ("iterate", ["--evaluation.data.dataset_name", "[]", "--prompts.dataset_name", "[]"],
     "set prompts.dataset_name and evaluation.data.dataset_name to"),
    ("iterate", ["--evaluation.data.dataset_name", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    ("iterate", ["--sampling.max_new_tokens", "250"], "passes the model's 256 positions"),
    ("iterate", ["--evaluation.sampling.max_new_tokens", "250"], "evaluation.sampling: the longest prompt"),
    ("iterate", ["--evaluation.sampling.slots", "7"], "slots = 7 must be a multiple of the 8 ways"),
    ("iterate", ["--sampling.slots", "12"], "cuts a batch; take 16"),
    ("iterate", ["--report_to", "wandb"], "pip install"),
    ("iterate", ["--loop.rounds", "9"], "asks for prompts"),
    ("sft", ["--report_to", "wandb"], "pip install"),
    ("sft", ["--row_length", "8"], "raise row_length"),
    ("sft", ["--mesh.fsdp", "3"], "3"),
    ("sft", ["--eval_dataset_name", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    ("sft", ["--output_dir", "FILE/out"], "cannot be written to"),
    ("reward", ["--use_margin", "true"], "have no margins"),
    ("dpo", ["--reference_model", "nowhere"], "'nowhere' is neither a folder"),
    ("generate", ["--max_new_tokens", "250"], "passes the model's 256 positions"),
    ("generate", ["--slots", "7"], "slots = 7 must be a multiple of the 8 ways"),
    ("compare", ["--sampling.max_new_tokens", "250"], "passes the model's 256 positions"),
    ("compare", ["--sampling.slots", "7"], "slots = 7 must be a multiple of the 8 ways"),
    ("score", ["--function", "nowhere:judge"], "cannot be imported"),
    ("score", ["--input", "nowhere"], "holds no shard"),
    ("pairs", ["--scorer", "gold"], "no response has a score 'gold'"),
    ("evaluate", ["--scorer.function", "nowhere:judge"], "cannot be imported"),
    ("compare", ["--gold.kind", "function", "--gold.function", "nowhere:judge"], "cannot be imported"),
    ("compare", ["--baseline_model", "nowhere"], "'nowhere' is neither a folder"),
    ("evaluate", ["--dataset_name", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    ("export", ["--base_model", "BASE"], "needs no base_model"),
])
def test_a_dry_run_ends_as_the_command_would_that_cannot_begin(verb, change, said, world, sampled, rlhf_jax, tmp_path,
                                                              monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "file").touch()
    change = [word.replace("BASE", str(world / "base")).replace("FILE", str(tmp_path / "file")) for word in change]
    for dry in (["--dry-run"], []):
        status, _, err = rlhf_jax(verb, *begun(verb, world, sampled), "--output_dir", tmp_path / "none", *change, *dry)
        assert status == 1
        assert said in err
        assert "Traceback" not in err


def test_a_dry_run_names_no_quarantine_file_that_is_not_kept(world, rlhf_jax, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    for verb, key in (("sft", "--dataset_name"), ("iterate", "--prompts.dataset_name"), ("evaluate", "--dataset_name")):
        status, _, err = rlhf_jax(verb, *begun(verb, world, None), key, tmp_path / "bad.jsonl", "--dry-run",
                                  "--output_dir", tmp_path / "none")
        assert status == 1
        assert "1 of 1 rows cannot be used" in err
        assert "quarantine" not in err


def test_a_dry_run_shows_the_mask_and_writes_nothing(world, rlhf_jax, tmp_path):
    status, out, err = rlhf_jax("dpo", "--dry-run", "--model_name_or_path", world / "base", "--dataset_name",
                                world / "preference.jsonl", "--output_dir", tmp_path / "none")
    assert status == 0, err
    assert "parameters" in out
    assert "kept" in out
    assert out.count("prompt pair-") == 3
    assert "<|end|>]" in out
    assert not (tmp_path / "none").exists()
