"""Tasks end to end through lm-evaluation-harness, with a model that says what a script says; no network, no torch."""

import gzip
import json
import subprocess
import sys
import textwrap

import pytest

lm_eval = pytest.importorskip("lm_eval", reason='needs the extra: pip install "rlhf_jax[lm-eval]"')

from lm_eval.api.model import LM  # noqa: E402

from rlhf_jax.data.jsonl import SourceError  # noqa: E402
from rlhf_jax.evaluation.harness.choice import PAPER, choose  # noqa: E402
from rlhf_jax.evaluation.harness.run import estimates, run_tasks  # noqa: E402


class Scripted(LM):
    """Says `answers(question)`; of choices the shortest is the most likely."""

    def __init__(self, answers=None):
        super().__init__()
        self.answers, self.asked = answers, []

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        self.asked += [request.args for request in requests]
        return [self.answers(request.args[0]) for request in requests]


def write(folder, name, rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path):
    """Two subjects of MMLU, ARC without a train file, MBPP."""
    folder = tmp_path / "data"
    subjects = [path.stem.removeprefix("mmlu_") for path in sorted(
        (folder.__class__(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml"))]
    rows = [{"subject": subject, "question": f"Q{i}", "choices": ["w", "x", "y", "z"], "answer": "ABCD"[i % 4]}
            for subject in subjects for i in range(4)]
    for split in ("dev", "test"):
        write(folder, f"mmlu/{split}.jsonl", rows)
    write(folder, "arc-challenge/test.jsonl", [{"question": "q", "choices": {"A": "long one", "B": "short"},
                                                "answer": answer} for answer in "AB"])
    write(folder, "mbpp/mbpp.jsonl", [{"task_id": i, "text": f"write f{i}", "code": f"def f{i}(): return {i}",
                                       "test_list": [f"assert f{i}() == {i}"] * 3} for i in (11, 12)])
    return folder


@pytest.fixture
def gsm8k(shared):
    """A model that solves GSM8K and breaks the mark of every fourth answer, and the folder of its rows."""
    with gzip.open(shared / "eval/gsm8k/test.jsonl.gz") as stream:
        rows = [json.loads(line) for line in stream]
    said = {row["question"]: row["answer"].replace("####", "####" if i % 4 else "So") for i, row in enumerate(rows)}
    return Scripted(lambda text: said[text.rpartition("Question: ")[2].removesuffix("\nAnswer:")]), shared / "eval"


@pytest.mark.longer
@pytest.mark.parametrize(("limit", "count", "right", "error"), [
    (40, 40, 30, 0.0693375245), pytest.param(None, 1319, 989, 0.0119303344, marks=pytest.mark.slow)])
def test_gsm8k_is_scored_strictly_and_flexibly_as_the_harness_does(limit, count, right, error, gsm8k, tmp_path):
    model, folder = gsm8k
    results = run_tasks(model, choose(["gsm8k"], folder), tmp_path, label="org/scripted", num_fewshot=0, limit=limit)
    found = estimates(results)
    strict, flexible = found["gsm8k/exact_match,strict-match"], found["gsm8k/exact_match,flexible-extract"]
    assert (strict.value, flexible.value, strict.count) == (right / count, 1.0, count)
    assert strict.standard_error == pytest.approx(error)
    assert results["n-shot"] == {"gsm8k": 0}
    (official,) = tmp_path.glob("lm_eval/org__scripted/results_*.json")
    assert json.loads(official.read_text())["results"]["gsm8k"]["exact_match,strict-match"] == right / count
    (samples,) = tmp_path.glob("lm_eval/org__scripted/samples_gsm8k_*.jsonl")
    assert len(samples.read_text().splitlines()) == 2 * count  # one for each of the two filters


@pytest.mark.longer
def test_torch_is_not_imported_by_a_whole_run(gsm8k, tmp_path):
    program = f"""
        import sys
        from lm_eval import evaluator
        from lm_eval.api.model import LM
        from rlhf_jax.evaluation.harness.choice import choose
        from rlhf_jax.evaluation.harness.run import run_tasks
        from rlhf_jax.evaluation.harness.model import HarnessModel
        class Silent(LM):
            def loglikelihood(self, requests): return [(-1.0, False)] * len(requests)
            loglikelihood_rolling = generate_until = loglikelihood
        evaluator.add_env_info = lambda storage: None  # the harness's own: imports torch where it is installed
        run_tasks(Silent(), choose(["arc_challenge"], {str(gsm8k[1])!r}), __import__("pathlib").Path({str(tmp_path)!r}),
                  label="silent", limit=2)
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.longer
def test_a_group_of_tasks_reads_the_users_rows_and_is_averaged_by_size(data, tmp_path):
    model = Scripted()
    results = run_tasks(model, choose(["mmlu"], data), tmp_path, label="m", num_fewshot=2, limit=2)
    found = estimates(results)
    assert found["mmlu/acc,none"].value == 0.5  # equal likelihoods: A is taken, which the first of two rows has
    assert found["mmlu/acc,none"].count == 2 * 57
    assert found["mmlu_stem/acc,none"].value == found["mmlu_virology/acc,none"].value == 0.5
    assert model.asked[0][0].startswith("The following are multiple choice questions (with answers) about")
    assert model.asked[0][0].count("Answer:") == 3
    assert len(list((tmp_path / "tasks").iterdir())) == 57


@pytest.mark.longer
def test_programs_are_run_where_that_is_allowed_and_nowhere_else(data, tmp_path):
    model = Scripted(lambda text: "def f11(): return 11\ndef f12(): return 13")
    choice = choose(["mbpp"], data)
    with pytest.raises(ValueError, match="mbpp runs programs that the model wrote; set allow_code_execution: true"):
        run_tasks(model, choice, tmp_path, label="m")
    assert not model.asked
    results = run_tasks(model, choice, tmp_path, label="m", allow_code=True)
    assert estimates(results)["mbpp/pass_at_1,none"].value == 0.5
    assert model.asked[0][0].count("[BEGIN]") == 4
    assert model.asked[0][0].count("[DONE]") == 3


@pytest.mark.longer
def test_examples_that_are_not_there_are_missed_before_anything_is_asked(data, tmp_path):
    model, choice = Scripted(), choose(["arc_challenge"], data)
    with pytest.raises(ValueError, match=r"arc_challenge is to show 3 examples, and .* holds no train or validation"):
        run_tasks(model, choice, tmp_path, label="m", num_fewshot=3)
    found = estimates(run_tasks(model, choice, tmp_path, label="m"))
    assert found["arc_challenge/acc,none"].value == 0.5


@pytest.mark.parametrize(("names", "words"), [
    (["gsm8"], "no task 'gsm8' that reads data_dir, did you mean gsm8k"),
    (["mmlu", "mmlu"], "tasks names mmlu twice"), (["paper", "gsm8k"], "tasks names gsm8k twice"),
    (["truthfulqa_gen"], "truthfulqa_gen reads truthfulqa/truthful_qa, which data_dir cannot replace"),
])
def test_names_that_cannot_be_meant_are_refused(names, words, data):
    with pytest.raises(ValueError, match=words):
        choose(names, data)


def test_missing_rows_are_named(data, tmp_path):
    with pytest.raises(SourceError, match="holds no gsm8k/train"):
        choose(["gsm8k"], data)
    with pytest.raises(ValueError, match="is no folder; give the one that holds gsm8k/"):
        choose(["gsm8k"], tmp_path / "nowhere")


@pytest.mark.longer
def test_the_papers_set_shows_the_examples_that_it_says(shared, tmp_path):
    names = [name for name in PAPER if name not in ("hendrycks_math", "humaneval_plus")]  # whose rows are not at hand
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (shared / "eval").iterdir():
        (folder / path.name).symlink_to(path)
    write(folder, "math/test.jsonl", [{"problem": "p", "solution": "s", "type": "Algebra"}])
    with pytest.raises(SourceError, match="holds no humaneval/HumanEvalPlus"):
        choose(["paper"], folder)
    (folder / "humaneval").unlink()
    (folder / "humaneval").mkdir()
    for name in ("HumanEval.jsonl.gz", "HumanEvalPlus.jsonl.gz"):
        (folder / "humaneval" / name).symlink_to(shared / "eval/humaneval/HumanEval.jsonl.gz")
    choice = choose(["paper"], folder)
    assert {leaf.name: leaf.num_fewshot for leaf in choice.leaves if leaf.name in PAPER} == {
        name: count for name, count in PAPER.items() if name not in ("mmlu", "hendrycks_math")}
    assert {leaf.num_fewshot for leaf in choice.leaves if leaf.name.startswith("mmlu_")} == {5}
    with pytest.raises(ValueError, match=r"arc_challenge is to show 25 examples|hendrycks_math_algebra is to show 4"):
        choice.check(None, allow_code=True)
    choice.write(tmp_path / "tasks")
    assert "num_fewshot: 8\n" in (tmp_path / "tasks/gsm8k_cot_llama.yaml").read_text()
    assert {leaf.num_fewshot for leaf in choose(names, folder).leaves} == {None}
