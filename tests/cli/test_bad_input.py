"""What goes wrong between the verbs ends with one clear message, an exit status and nothing half-made."""

import json
import math
import sys

import numpy as np
import pytest

from rlhf_jax.cli.parser import parse
from rlhf_jax.config.commands import SftCommand
from rlhf_jax.data.groups import STOP, PromptGroup, Response
from rlhf_jax.data.jsonl import read_groups, write_groups

SFT = ["--model_name_or_path", "m", "--output_dir", "o", "--dataset_name", "d"]


def some_not_finite(prompts, completions, **columns):
    return [math.nan if c == "b" else math.inf if c == "c" else float(len(c)) for c in completions]


def never_finite(prompts, completions, **columns):
    return [math.nan] * len(completions)


def too_few(prompts, completions, **columns):
    return [1.0]


def words(prompts, completions, **columns):
    return ["good"] * len(completions)


def has_a_bug(prompts, completions, **columns):
    return [{}["no such key"]]


@pytest.fixture(autouse=True)
def _my_rewards(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])


@pytest.fixture
def sampled(tmp_path):
    """A folder as `generate` leaves it, of two prompts with three responses."""
    def response(i, text):
        return Response(np.array([i, 4], np.int32), np.ones(2, bool), text, STOP)

    groups = [PromptGroup(f"p{n}", np.array([1], np.int32), tuple(response(i, t) for i, t in enumerate(texts)), "say")
              for n, texts in enumerate((("aaa", "b", "aa"), ("a", "c", "aaaa")))]
    write_groups(tmp_path / "sampled" / "shard-00000.jsonl", groups)
    return tmp_path / "sampled"


def score(rlhf_jax, sampled, out, function):
    return rlhf_jax("score", "--input", sampled, "--kind", "function", "--function", f"my_rewards:{function}",
                    "--output_dir", out)


def test_scores_that_are_not_finite_are_left_out_counted_and_make_no_pair(rlhf_jax, sampled, tmp_path):
    status, out, err = score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")
    assert status == 0, err
    assert '"non_finite_score": 2' in out
    status, _, err = rlhf_jax("pairs", "--input", tmp_path / "scored", "--output_dir", tmp_path / "pairs")
    assert status == 0, err
    pairs = read_groups(tmp_path / "pairs" / "pairs.jsonl")
    assert [[r.text for r in g.responses] for g in pairs] == [["aaa", "aa"], ["aaaa", "a"]]


@pytest.mark.parametrize(("function", "said"), [
    ("never_finite", "gave no score to any response"), ("too_few", "returned 1 scores for 6 completions"),
    ("words", "returned 'good', a str"), ("missing", "cannot be imported"),
])
def test_a_reward_function_that_gives_no_scores_is_an_error(rlhf_jax, sampled, tmp_path, function, said):
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", function)
    assert status == 1
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "scored" / "stage.json").exists()


def test_an_error_in_a_users_function_ends_with_its_traceback(rlhf_jax, sampled, tmp_path):
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "has_a_bug")
    assert status == 1
    assert 'return [{}["no such key"]]' in err
    assert err.rstrip().endswith("KeyError: 'no such key'")


def test_the_traceback_of_any_error_is_to_be_had(rlhf_jax, sampled, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_JAX_TRACEBACK", "1")
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "too_few")
    assert status == 1
    assert "Traceback" in err
    assert "returned 1 scores for 6 completions" in err


def test_a_shard_cut_off_in_the_middle_names_file_and_line(rlhf_jax, sampled, tmp_path):
    shard = sampled / "shard-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-30])
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")
    assert status == 1
    assert "shard-00000.jsonl, line 2" in err


@pytest.mark.parametrize("verb", ["score", "pairs"])
def test_an_input_that_holds_no_shards_is_an_error_and_not_an_empty_result(rlhf_jax, tmp_path, verb):
    kind = ["--kind", "function", "--function", "my_rewards:words"] if verb == "score" else []
    status, _, err = rlhf_jax(verb, "--input", tmp_path / "nowhere", *kind, "--output_dir", tmp_path / "out")
    assert status == 1
    assert "nowhere holds no shard-*.jsonl" in err
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_pairs_by_scores_that_are_not_there_name_those_that_are(rlhf_jax, sampled, tmp_path):
    score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")
    status, _, err = rlhf_jax("pairs", "--input", tmp_path / "scored", "--scorer", "gold", "--output_dir",
                              tmp_path / "pairs")
    assert status == 1
    assert "'gold'" in err
    assert "['proxy']" in err
    assert not (tmp_path / "pairs" / "pairs.jsonl").exists()


def test_a_second_run_with_other_options_says_which_and_changes_nothing(rlhf_jax, sampled, tmp_path):
    assert score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")[0] == 0
    assert rlhf_jax("pairs", "--input", tmp_path / "scored", "--output_dir", tmp_path / "pairs")[0] == 0
    before = (tmp_path / "pairs" / "pairs.jsonl").read_bytes()
    status, _, err = rlhf_jax("pairs", "--input", tmp_path / "scored", "--output_dir", tmp_path / "pairs",
                              "--length_penalty", "1")
    assert status == 1
    assert "options.length_penalty" in err
    assert (tmp_path / "pairs" / "pairs.jsonl").read_bytes() == before


def test_a_folder_without_a_model_is_refused(rlhf_jax, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    status, _, err = rlhf_jax("sft", "--model_name_or_path", tmp_path, "--dataset_name", tmp_path / "data.jsonl",
                              "--output_dir", tmp_path / "out")
    assert status == 1
    assert "holds no config.json" in err
    assert "Traceback" not in err


def refused(args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(SftCommand, "sft", [*SFT, *args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_flag_whose_value_is_no_yaml_is_an_error_that_names_it(capsys):
    assert "--converter [a: the value is not valid YAML" in refused(["--converter", "[a"], capsys)


def test_the_batch_of_evaluation_is_not_taken_for_the_batch_of_training(capsys):
    assert parse(SftCommand, "sft", [*SFT, "--per_device_eval_batch_size", "8"]) == parse(SftCommand, "sft", SFT)
    said = capsys.readouterr().err
    assert "nothing here: per_device_eval_batch_size = 8 (evaluation takes micro_rows packed rows per device" in said


def test_one_key_under_its_old_and_its_new_name_is_a_conflict(capsys):
    message = refused(["--warmup_ratio", "0.1", "--warmup_steps", "5"], capsys)
    assert "warmup_ratio and warmup_steps are one key" in message


@pytest.mark.parametrize("text", ["1e-5", "0.00001", "1.0e-5"])
def test_numbers_are_numbers_however_they_are_written(text):
    assert parse(SftCommand, "sft", [*SFT, "--learning_rate", text]).options.train.learning_rate == 1e-5


def test_the_mesh_is_set_axis_by_axis(capsys):
    assert parse(SftCommand, "sft", [*SFT, "--mesh.fsdp", "2", "--mesh.tensor=4"]).mesh.shape(8) == (1, 2, 1, 4)
    assert "mesh.tensor" in refused(["--mesh.tensro", "2"], capsys)


def test_all_unknown_keys_are_named_at_once_and_each_with_what_to_write_instead(capsys):
    message = refused(["--learning_rte", "1", "--bf16", "true", "--push_to_hub", "true", "--mesh.tensro", "2"], capsys)
    assert "learning_rte: did you mean 'learning_rate'?" in message
    assert "bf16: use dtype: bfloat16" in message
    assert "push_to_hub: nothing is uploaded" in message
    assert "mesh.tensro: did you mean 'mesh.tensor'?" in message
    assert "rlhf-jax sft --help" in message


def test_a_value_of_the_wrong_type_is_said_in_plain_words(capsys):
    assert "learning_rate = 'abc'; it must be a number" in refused(["--learning_rate", "abc"], capsys)
    assert "dtype = 'fp8'; it must be one of float32, bfloat16" in refused(["--dtype", "fp8"], capsys)


def test_a_config_that_gives_a_key_twice_is_refused(capsys, tmp_path):
    (tmp_path / "twice.yaml").write_text("mesh: {fsdp: 1}\nseed: 1\nseed: 2\n")
    assert "'seed' is given twice" in refused(["--config", str(tmp_path / "twice.yaml")], capsys)


def test_the_help_of_a_section_is_printed(rlhf_jax):
    status, out, _ = rlhf_jax("sft", "--mesh.help")
    assert status == 0
    assert "--mesh.tensor" in out


@pytest.mark.parametrize(("verb", "section"), [("report", "mesh"), ("pairs", "mesh"), ("sft", "seed"),
                                               ("iterate", "loop.rounds")])
def test_help_of_what_is_no_section_says_so(rlhf_jax, verb, section):
    status, _, err = rlhf_jax(verb, f"--{section}.help")
    assert status == 2
    assert f"there is no section {section!r}" in err


def test_an_interrupted_command_says_so_and_shows_no_traceback(rlhf_jax, sampled, tmp_path, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[__name__], "words", interrupt)
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "words")
    assert status == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_responses_without_scores_are_told_from_scores_that_give_no_pair(rlhf_jax, sampled, tmp_path):
    status, _, err = rlhf_jax("pairs", "--input", sampled, "--output_dir", tmp_path / "pairs")
    assert status == 1
    assert "no response has a score 'proxy'; there are no scores at all" in err


def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(rlhf_jax, sampled, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = score(rlhf_jax, sampled, tmp_path / "file" / "scored", "words")
    assert status == 1
    assert "cannot be written to (Not a directory)" in err


def test_a_damaged_record_is_named(rlhf_jax, sampled, tmp_path):
    assert score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")[0] == 0
    (tmp_path / "scored" / "stage.json").write_text('{"stage')
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")
    assert status == 1
    assert "scored/stage.json is damaged" in err


def test_an_unknown_tfds_name_is_answered_by_its_neighbours_and_not_by_all_names(tmp_path):
    from rlhf_jax.data.sources import SourceError, read_rows

    with pytest.raises(SourceError, match="did you mean imdb_reviews") as refusal:
        next(iter(read_rows("tfds:imdb_review")))
    assert len(str(refusal.value)) < 300


def test_two_commands_at_once_into_one_folder_are_one_too_many(rlhf_jax, sampled, tmp_path, monkeypatch):
    def inner(prompts, completions, **columns):
        return [float(n) for n in range(len(completions))] if second() else []

    def second():
        status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "never_finite")
        assert status == 1
        assert "another command is at work in" in err
        return True

    monkeypatch.setattr(sys.modules[__name__], "words", inner)
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "words")
    assert status == 0, err
    status, out, _ = score(rlhf_jax, sampled, tmp_path / "scored", "words")
    assert status == 0
    assert "already done" in out


@pytest.mark.parametrize(("content", "said"), [
    ("{", "JSONDecodeError"), ("[" * 100_000, "RecursionError"),
    ("[]", "results.json is not as a run writes it"), ("{}", "KeyError: 'title'"),
    ('{"policies": [{"label": 3}]}', "not as a run writes it"), ('{"policies": 1}', "not as a run writes it"),
    ('{"title": "t", "policies": [], "funnels": "x"}', "not as a run writes it"),
    ('{"title": "t", "policies": [], "funnels": {"sft": {"read": 3}}}', "not as a run writes it"),
    ('{"title": "t", "policies": [], "funnels": {"s": {"read": 3, "valid": 3, "kept": 3}}}', "not as a run"),
    ('{"title": "t", "policies": [], "versions": 3}', "not as a run writes it"),
    ('{"title": "t", "policies": [], "reward_model": {"accuracy": 1}}', "not as a run writes it"),
    ('{"title": "t", "policies": [], "samples": [{"prompt": "p", "answers": [{}]}]}', "not as a run writes it")])
def test_results_that_no_run_wrote_are_named(content, said, rlhf_jax, tmp_path):
    (tmp_path / "results.json").write_text(content)
    status, _, err = rlhf_jax("report", tmp_path)
    assert status == 1
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("change", "said"), [
    ({"report": 1}, "report is int"), ({"seconds": "1"}, "seconds is str"), ({"stage": None}, "stage is NoneType"),
    ({"inputs": []}, "inputs is list"), ({"key": 3}, "key is int"), (None, "maximum recursion depth")])
def test_a_record_of_another_shape_is_damaged(change, said, rlhf_jax, sampled, tmp_path):
    assert score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")[0] == 0
    path = tmp_path / "scored" / "stage.json"
    path.write_text("[" * 100_000 if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    status, _, err = score(rlhf_jax, sampled, tmp_path / "scored", "some_not_finite")
    assert status == 1
    assert f"stage.json is damaged ({said}" in err
