"""Every verb, one after the other, as a user gives them; then bad input."""

import dataclasses
import json
import shutil
import sys

import pytest

from rlhf_jax.cli import run as run_module
from rlhf_jax.cli.verbs import VERBS
from rlhf_jax.config.build import build
from rlhf_jax.config.run import ExperimentConfig
from rlhf_jax.data.jsonl import read_groups
from rlhf_jax.workflow.progress import Noted, at_work
from rlhf_jax.workflow.stage import Run, Stage, hash_path

TRAIN = ["--train_batch_size", "8", "--micro_rows", "1", "--row_length", "160", "--learning_rate", "1e-3"]


@pytest.mark.longer
def test_the_verbs_chain_from_raw_rows_to_an_evaluated_policy(world, rlhf_jax, tmp_path):
    base = ["--model_name_or_path", world / "base"]
    steps = {
        "sft": [*base, "--dataset_name", world / "sft.jsonl", "--eval_dataset_name", f"{world / 'sft.jsonl'}[:8]",
                *TRAIN],
        "reward": [*base, "--dataset_name", world / "preference.jsonl", *TRAIN],
        "generate": ["--model_name_or_path", tmp_path / "sft/model", "--dataset_name", world / "prompts.jsonl",
                     "--num_generations", "2", "--max_new_tokens", "6", "--slots", "8", "--block", "4"],
        "score": ["--input", tmp_path / "generate", "--model_name_or_path", tmp_path / "reward/model"],
        "pairs": ["--input", tmp_path / "score"],
        "dpo": ["--model_name_or_path", tmp_path / "sft/model", "--pairs", tmp_path / "pairs/pairs.jsonl", *TRAIN],
        "evaluate": ["--scorer.model_name_or_path", tmp_path / "reward/model", "--dataset_name",
                     world / "preference_eval.jsonl"],
    }
    for verb, args in steps.items():
        status, out, err = rlhf_jax(verb, *args, "--output_dir", tmp_path / verb)
        assert status == 0, err
        assert f"{verb}: " in out
    pairs = read_groups(tmp_path / "pairs/pairs.jsonl")
    assert all(g.responses[0].scores["proxy"] > g.responses[1].scores["proxy"] for g in pairs)
    report = json.loads((tmp_path / "dpo/stage.json").read_text())["report"]
    assert report["train"]["loss"] == pytest.approx(0.6931, abs=0.05)
    assert 0 <= json.loads((tmp_path / "evaluate/stage.json").read_text())["report"]["accuracy"]["value"] <= 1
    status, out, _ = rlhf_jax("pairs", *steps["pairs"], "--output_dir", tmp_path / "pairs")
    assert status == 0
    assert "already done" in out
    status, _, err = rlhf_jax("pairs", *steps["pairs"], "--rule", "max_max", "--output_dir", tmp_path / "pairs")
    assert status == 1
    assert "options.rule" in err


@pytest.mark.longer
def test_turning_a_tracker_on_or_off_redoes_nothing(world, rlhf_jax, tmp_path):
    pytest.importorskip("tensorboardX")
    sft = ["sft", "--model_name_or_path", world / "base", "--dataset_name", world / "sft.jsonl", *TRAIN]
    status, _, err = rlhf_jax(*sft, "--report_to", "tensorboard", "--output_dir", tmp_path / "sft")
    assert status == 0, err
    assert len(list((tmp_path / "sft").glob("events.out.tfevents.*"))) == 1
    status, out, err = rlhf_jax(*sft, "--output_dir", tmp_path / "sft")
    assert status == 0, err
    assert "already done" in out


def test_a_missing_tracker_is_said_before_anything_is_made(world, rlhf_jax, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = rlhf_jax("sft", "--model_name_or_path", world / "base", "--dataset_name", world / "sft.jsonl",
                              "--report_to", "[wandb]", "--output_dir", tmp_path / "sft")
    assert status == 1
    assert 'pip install "rlhf_jax[wandb]"' in err
    assert not (tmp_path / "sft").exists()


@pytest.mark.longer
def test_a_pairwise_model_trains_and_scores(world, rlhf_jax, tmp_path):
    status, _, err = rlhf_jax("reward", "--kind", "pairwise", "--model_name_or_path", world / "base", "--dataset_name",
                              world / "preference.jsonl", *TRAIN, "--row_length", "256", "--num_train_epochs", "30",
                              "--learning_rate", "1e-2", "--output_dir", tmp_path / "pm")
    assert status == 0, err
    status, _, err = rlhf_jax("evaluate", "--scorer.kind", "pairwise", "--scorer.model_name_or_path",
                              tmp_path / "pm/model", "--dataset_name", world / "preference_eval.jsonl",
                              "--output_dir", tmp_path / "eval")
    assert status == 0, err
    report = json.loads((tmp_path / "eval/stage.json").read_text())["report"]
    assert report["pairs"] == 100  # after so few steps it answers with a letter, if not yet with the right one


def shorter(prompts, completions, **columns):
    return [-float(len(text)) for text in completions]


def three_at_most(prompts, completions, **columns):
    return [float(len(text)) if len(text) <= 3 else None for text in completions]


def test_a_benchmark_writes_its_numbers_and_its_authors_file(rlhf_jax, tmp_path):
    rows = [{"id": i, "prompt": f"q{i}", "chosen": ["a", "ab", "abc"], "rejected": ["b", "ba", "bac"],
             "domain": "chat"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("evaluate", "--benchmark", "rm_bench", "--dataset_name", tmp_path / "rows.jsonl", "--scorer.kind",
             "function", "--scorer.function", f"{__name__}:shorter")
    status, out, err = rlhf_jax(*asked, "--output_dir", tmp_path / "strict")
    assert status == 0, err
    assert "rm_bench has no Code, nor a number that Code is part of: no row of code was judged" in " ".join(out.split())
    metrics = json.loads((tmp_path / "strict/metrics.json").read_text())
    assert (metrics["benchmark"], metrics["tie_rule"]) == ("rm_bench", "strict")
    assert {name: metrics["numbers"][name]["value"] for name in ("hard", "normal", "easy")} == {
        "hard": 1.0, "normal": 0.0, "easy": 0.0}
    assert metrics["numbers"]["hard"]["count"] == 3
    official = json.loads((tmp_path / "strict/rm_bench.json").read_text())
    assert official[0] == {"id": "0", "domain": "chat", "score_chosen": [-1, -2, -3], "score_rejected": [-1, -2, -3]}
    assert len((tmp_path / "strict/rows.jsonl").read_text().splitlines()) == 27
    status, _, err = rlhf_jax(*asked, "--tie_rule", "half", "--output_dir", tmp_path / "half")
    assert status == 0, err
    assert json.loads((tmp_path / "half/metrics.json").read_text())["numbers"]["normal"]["value"] == 0.5
    status, _, err = rlhf_jax(*asked, "--converter", "hh_rlhf", "--output_dir", tmp_path / "no")
    assert status == 2
    assert "converter has no effect with benchmark = 'rm_bench'" in " ".join(err.split())
    asked = (*asked[:2], "rm_bnch", *asked[3:])
    status, _, err = rlhf_jax(*asked, "--dry-run", "--output_dir", tmp_path / "no")
    assert status == 1
    assert "there is no benchmark 'rm_bnch', did you mean rm_bench?" in " ".join(err.split())


def test_a_benchmark_of_which_rows_fell_says_so_aloud_and_in_its_file(rlhf_jax, tmp_path):
    rows = [{"id": i, "prompt": f"q{i}", "chosen": ["a", "ab", "abc"], "rejected": ["b", "ba", "bac" if i else "bacd"],
             "domain": "chat"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, out, err = rlhf_jax("evaluate", "--benchmark", "rm_bench", "--dataset_name", tmp_path / "rows.jsonl",
                                "--scorer.kind", "function", "--scorer.function", f"{__name__}:three_at_most",
                                "--output_dir", tmp_path / "out")
    assert status == 0, err
    said = " ".join(out.split())
    assert "warning: not all rows of rm_bench were judged in full" in said
    assert "(2 of 3 rows). Responses or comparisons without a verdict: no_score 1" in said
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["numbers"]
    assert [numbers[name]["rows"] for name in ("Chat", "accuracy")] == [{"judged": 2, "of": 3}] * 2


@pytest.mark.longer
def test_scored_samples_are_probed_for_length(rlhf_jax, tmp_path):
    rows = [{"prompt": f"q{i}", "responses": [{"text": "x" * n, "score": 0} for n in sizes]}
            for i, sizes in enumerate(((1, 2, 3), (5, 3, 4), (2, 2, 2)))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, _, err = rlhf_jax("score", "--dataset_name", tmp_path / "rows.jsonl", "--kind", "function", "--function",
                              f"{__name__}:shorter", "--output_dir", tmp_path / "scored")
    assert status == 0, err
    asked = ("evaluate", "--input", tmp_path / "scored", "--output_dir", tmp_path / "bias")
    status, _, err = rlhf_jax(*asked, "--length_unit", "characters")
    assert status == 0, err
    found = json.loads((tmp_path / "bias/metrics.json").read_text())
    assert (found["correlation"]["value"], found["correlation"]["count"], found["left_out"]) == (-1.0, 2, 1)
    assert len((tmp_path / "bias/rows.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "bias/figures/length_bias.png").is_file()
    status, _, err = rlhf_jax(*asked[:3], "--output_dir", tmp_path / "tokens")
    assert status == 1
    assert "those that were read as text have characters and no tokens" in " ".join(err.split())


@pytest.mark.longer
def test_a_policy_is_evaluated_against_a_baseline(world, rlhf_jax, tmp_path):
    base = world / "base"
    status, _, err = rlhf_jax(
        "compare", "--model_name_or_path", base, "--baseline_model", base, "--dataset_name",
        world / "eval_prompts.jsonl", "--scorer.kind", "function", "--scorer.function",
        "rlhf_jax.data.world:gold_judge", "--sampling.num_generations", "2", "--sampling.max_new_tokens", "5",
        "--sampling.slots", "8", "--output_dir", tmp_path / "policy")
    assert status == 0, err
    assert (tmp_path / "policy/report.html").is_file()
    results = json.loads((tmp_path / "policy/results.json").read_text())
    assert [p["win_rate"]["value"] for p in results["policies"]] == [0.5, 0.5]
    status, _, err = rlhf_jax("report", "--run", tmp_path / "policy")
    assert status == 0, err


def other_ids(folder):
    """Two letters change places in a tokenizer's vocabulary."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|user|>", "<|user|>Q"))


@pytest.mark.longer
@pytest.mark.parametrize(("change", "words"), [
    (other_ids, "different vocabularies: 2 tokens differ, such as 'a'"),
    (other_template, "writes 8 of 8 prompts in other tokens"),
])
def test_a_policy_of_other_tokens_than_its_baseline_is_not_evaluated(change, words, world, rlhf_jax, tmp_path):
    shutil.copytree(world / "base", tmp_path / "other")
    change(tmp_path / "other")
    args = ["--model_name_or_path", tmp_path / "other", "--baseline_model", world / "base", "--dataset_name",
            world / "eval_prompts.jsonl", "--scorer.kind", "function", "--scorer.function",
            "rlhf_jax.data.world:gold_judge", "--sampling.num_generations", "2", "--sampling.max_new_tokens", "5",
            "--sampling.slots", "8", "--output_dir", tmp_path / "policy"]
    status, _, err = rlhf_jax("compare", *args)
    assert status == 1
    assert words in err
    status, _, err = rlhf_jax("compare", *args, "--chat_template_path", world / "base")
    assert status == (1 if change is other_ids else 0), err


@pytest.mark.longer
def test_a_reference_of_another_shape_is_run_as_what_it_is(world, rlhf_jax, tmp_path):
    """The same weights under another config: what the reference says is what it says of itself as the policy."""
    other = tmp_path / "other"
    shutil.copytree(world / "base", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    said = []
    for policy in (other, world / "base"):
        out = tmp_path / f"dpo-of-{policy.name}"
        status, _, err = rlhf_jax("dpo", "--model_name_or_path", policy, "--reference_model", other, "--dataset_name",
                                  world / "preference.jsonl", *TRAIN, "--output_dir", out)
        assert status == 0, err
        said.append({path.name: path.read_bytes() for path in (out / "reference_cache").iterdir()})
    assert said[0] == said[1]
    other_ids(other)
    status, _, err = rlhf_jax("dpo", "--model_name_or_path", world / "base", "--reference_model", other,
                              "--dataset_name", world / "preference.jsonl", *TRAIN, "--output_dir", tmp_path / "none")
    assert status == 1
    assert "different vocabularies: 2 tokens differ" in err


def test_a_model_is_inspected_examined_and_exported_without_a_flag_before_its_name(world, rlhf_jax, tmp_path):
    status, out, err = rlhf_jax("inspect", world / "base", "--devices", "8", "--mesh.tensor", "2")
    assert status == 0, err
    assert "LlamaForCausalLM" in out
    assert "fsdp 4, context 1, tensor 2 = 8 device(s)" in out
    status, out, _ = rlhf_jax("doctor", world / "base", "--dataset_name", world / "sft.jsonl")
    assert "is inside the loss" in out
    assert "rows; chance is" in " ".join(out.split())
    status, _, err = rlhf_jax("export", world / "base", "--dtype", "float32", "--output_dir", tmp_path / "out")
    assert status == 0, err
    assert hash_path(tmp_path / "out/model/model.safetensors") == hash_path(world / "base/model.safetensors")
    status, _, err = rlhf_jax("inspect", world / "base", "--dry-run")
    assert status == 1
    assert "leave it out" in err
    (tmp_path / "out/model/model.safetensors").unlink()
    status, _, err = rlhf_jax("inspect", tmp_path / "out/model")
    assert status == 1
    assert "neither model.safetensors nor" in err


def test_a_dry_run_and_an_error_write_out_the_escapes_of_the_data(world, rlhf_jax, tmp_path):
    row = {"prompt": [{"role": "user", "content": "a \x1b[31mred\x1b]0;title\x07 one"}],
           "completion": [{"role": "assistant", "content": "b\x1b[2J\r"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    command = ("sft", "--dry-run", "--model_name_or_path", world / "base", "--dataset_name", tmp_path / "rows.jsonl",
               "--output_dir", tmp_path / "none")
    status, out, err = rlhf_jax(*command)
    assert status == 0, err
    assert r"\x1b[31m" in out
    assert not set("\x1b\x07\r") & set(out + err)
    (tmp_path / "back\u202ewards").mkdir()
    status, _, err = rlhf_jax("inspect", tmp_path / "back\u202ewards")
    assert status == 1
    assert r"back\u202ewards holds no config.json" in err


def test_verbs_are_listed_and_a_misspelt_one_is_named(rlhf_jax):
    status, out, _ = rlhf_jax("--help")
    assert status == 0
    assert all(verb in out for verb in VERBS)
    status, _, err = rlhf_jax("itterate")
    assert status == 2
    assert "Did you mean 'iterate'" in err


@pytest.mark.parametrize(("content", "words"), [
    ("", "empty"),
    ('{"prompt": "a", "completion": "b"', "truncated_json"),
    ('{"prompt": "a"}\n', "missing_column"),
    ('{"prompt": "a", "completion": ""}\n', "empty_response"),
])
def test_bad_rows_end_in_one_clear_error(content, words, world, rlhf_jax, tmp_path):
    (tmp_path / "bad.jsonl").write_text(content)
    status, _, err = rlhf_jax("sft", "--model_name_or_path", world / "base", "--dataset_name", tmp_path / "bad.jsonl",
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "model").exists()


def test_a_checkpoint_of_another_architecture_is_refused(world, rlhf_jax, tmp_path):
    (tmp_path / "bert").mkdir()
    for file in (world / "base").iterdir():
        (tmp_path / "bert" / file.name).write_bytes(file.read_bytes())
    raw = json.loads((world / "base/config.json").read_text())
    (tmp_path / "bert/config.json").write_text(json.dumps({**raw, "model_type": "bert"}))
    status, _, err = rlhf_jax("sft", "--model_name_or_path", tmp_path / "bert", "--dataset_name", world / "sft.jsonl",
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert "'bert' is not supported; supported are" in err


def test_a_weights_file_that_was_cut_off_is_named(world, rlhf_jax, tmp_path):
    (tmp_path / "cut").mkdir()
    for file in (world / "base").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for verb in ("sft", "inspect"):
        more = ["--dataset_name", world / "sft.jsonl", "--output_dir", tmp_path / "out"] if verb == "sft" else []
        status, _, err = rlhf_jax(verb, "--model_name_or_path", tmp_path / "cut", *more)
        assert status == 1
        assert "not fully covered" in err
        assert "Traceback" not in err


@pytest.mark.longer
def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(world, rlhf_jax, tmp_path):
    status, _, err = rlhf_jax("evaluate", "--scorer.model_name_or_path", world / "base", "--dataset_name",
                              world / "preference_eval.jsonl", "--output_dir", tmp_path / "out")
    assert status == 1
    assert "sequence classifier" in err
    status, _, err = rlhf_jax("reward", "--model_name_or_path", world / "base", "--dataset_name",
                              world / "preference.jsonl", *TRAIN, "--max_steps", "1", "--output_dir", tmp_path / "rm")
    assert status == 0, err
    data = {"sft": "sft", "dpo": "preference", "generate": "prompts"}
    for verb, name in data.items():
        status, _, err = rlhf_jax(verb, "--model_name_or_path", tmp_path / "rm/model", "--dataset_name",
                                  world / f"{name}.jsonl", "--output_dir", tmp_path / verb)
        assert status == 1
        assert "needs a language model" in err


@pytest.mark.parametrize(("change", "said"), [
    (["--loop.rounds", "4"], "round 3 asks for prompts 8 to 12 and there are 8"),
    (["--evaluation.data.dataset_name", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    (["--gold.kind", "function", "--gold.function", "nowhere:judge"], "nowhere"),
    (["--gold.model_name_or_path", "nowhere"], "'nowhere' is neither a folder"),
    (["--prompts.dataset_name", "[]"], "no data is given"),
])
def test_what_a_late_stage_lacks_is_said_before_the_first_one_runs(change, said, world, rlhf_jax, tmp_path):
    status, out, err = rlhf_jax(
        "iterate", "--model_name_or_path", world / "base", "--scorer.kind", "function", "--scorer.function",
        "rlhf_jax.data.world:gold_judge", "--prompts.dataset_name", world / "prompts.jsonl", "--loop.prompts_per_round",
        "4", "--loop.rounds", "2", "--sampling.max_new_tokens", "8", "--evaluation.sampling.max_new_tokens", "8",
        "--evaluation.data.dataset_name", world / "eval_prompts.jsonl", *change,
        "--output_dir", tmp_path / "run")
    assert status == 1
    assert said in err
    assert "sample" not in out


def test_a_run_is_followed_from_another_terminal(rlhf_jax, tmp_path):
    status, _, err = rlhf_jax("watch", tmp_path)
    assert status == 1
    assert "holds no run" in err
    run = Run(tmp_path, {}, announce=lambda text: None)
    run.stage("online/round-1/score", {}, lambda folder: {"reward": 0.25, "prompts": 8})
    noted = Noted(tmp_path, lambda *told: None)
    noted("online/round-1/dpo", 3, 40, "loss 0.6931")
    status, out, err = rlhf_jax("watch", tmp_path, "--once", "true")
    assert status == 0, err
    assert "8 prompts, mean score 0.25" in out
    assert "at work: 3 of 40, loss 0.6931, seen 0:00:00 ago" in out
    assert "no command is at work" not in out
    noted.end()
    (tmp_path / "report.html").write_text("")
    status, out, _ = rlhf_jax("watch", tmp_path)
    assert f"no command is at work here; report: {tmp_path}" in out.replace("\n", "")


def test_two_finished_runs_are_compared(rlhf_jax, tmp_path):
    estimate = {"value": 1.0, "standard_error": 0.1, "low": 0.8, "high": 1.2, "count": 50}
    for name, beta in (("a", 0.1), ("b", 0.3)):
        policy = {"label": "online-1", "family": "online", "round": 1, "prompts": 50, "samples": 50, "proxy": estimate}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(
            {"title": name, "policies": [policy], "config": {"dpo": {"beta": beta}}}))
    status, out, err = rlhf_jax("report", tmp_path / "a", "--compare", tmp_path / "b")
    assert status == 0, err
    assert "0.00 (-0.28 to 0.28)" in out
    assert "| dpo.beta | 0.1 | 0.3 |" in out
    (tmp_path / "b" / "results.json").write_text(json.dumps({"title": "b"}))
    status, _, err = rlhf_jax("report", tmp_path / "a", "--compare", tmp_path / "b")
    assert status == 1
    assert f"the run {tmp_path / 'b'} compared no policies" in err


@dataclasses.dataclass(frozen=True)
class Looking(Stage):
    """A stage that looks at what others see of the run meanwhile."""

    number: int

    def run(self, folder, context):
        run = context.run.folder
        return {"steps": self.number, "page": (run / "report.html").read_text(), "at": at_work(run).stage}


def test_a_run_has_a_page_from_its_first_stage_on(tmp_path, capsys):
    config = build(ExperimentConfig, {"model_name_or_path": "m", "output_dir": str(tmp_path),
                                      "scorer": {"model_name_or_path": "m"}})
    for again in (False, True):
        with run_module.at_work(config, title="A run") as context:
            first, second = (context.do(f"stage-{i}", Looking(i)) for i in (1, 2))
        assert first.reused is again
        assert "at work on <b>stage-1</b>, after 0 finished stages" in first.report["page"]
        assert "at work on <b>stage-2</b>, after 1 finished stages" in second.report["page"]
        assert "<td class=\"text\">1 steps</td>" in second.report["page"]
        assert (first.report["at"], second.report["at"]) == ("stage-1", "stage-2")
        assert at_work(tmp_path) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "2 stages were done, the last of them stage-2" in said
    assert "stage-2: already done; 2 steps" in said
