"""Academic tasks put to a policy: the adapter's contract with lm-evaluation-harness, and the stage around it."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.evaluation.harness import check_installed
from rlhf_jax.workflow.checkpoint import Checkpoint

REASON = 'needs the extra: pip install "rlhf_jax[lm-eval]"'


def asked(*args):
    return [SimpleNamespace(args=one) for one in args]


@pytest.fixture
def adapter(start, lone_mesh):
    """adapter(**changes): the tiny policy as the harness asks it."""
    pytest.importorskip("lm_eval", reason=REASON)
    from rlhf_jax.evaluation.harness.model import HarnessModel, Subject

    def make(checkpoint=start, **changes):
        return HarnessModel(Subject("tiny", checkpoint.config, checkpoint.tokenizer, checkpoint.params(lone_mesh),
                                    lone_mesh, jnp.float32, checkpoint.stop_ids, checkpoint.decode_text,
                                    **{"slots": 4, "max_new_tokens": 6, **changes}))

    return make


@pytest.fixture
def rows(tmp_path):
    """Folder of a few rows of GSM8K and ARC, in the words of the world."""
    for name, some in {
        "gsm8k/train": [{"question": "how many", "answer": "two #### 2"}],
        "gsm8k/test": [{"question": f"tell me {i}", "answer": f"#### {i}"} for i in range(5)],
        "arc-challenge/test": [{"question": f"what is {i}", "choices": {"A": "the fox", "B": "a tree and more"},
                                "answer": "AB"[i % 2]} for i in range(6)],
    }.items():
        path = tmp_path / "rows" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return tmp_path / "rows"


def test_a_context_is_given_with_one_bos_and_its_last_space_goes_to_the_continuation(adapter):
    model = adapter()
    bos = model.tokenizer.bos_token
    (plain,), (spaced,), (opened,) = (model.loglikelihood(asked((context, continuation))) for context, continuation in (
        ("the fox", " ran"), ("the fox ", "ran"), (f"{bos}the fox", " ran")))
    assert plain == spaced
    if model.tok_encode("the fox")[0] == model.prefix_token_id:  # the tokenizer adds BOS to plain text
        assert plain == opened
    assert model.tok_encode(f"{bos}the fox").count(model.prefix_token_id) == 1
    (empty,) = model.loglikelihood(asked(("", "the fox")))
    (whole,) = model.loglikelihood_rolling(asked(("the fox",)))
    assert empty[0] == whole


def test_a_long_text_is_predicted_in_windows_each_token_once(adapter):
    model = adapter()
    ids = model.tok_encode("the fox ran and the bird sang " * 24, add_special_tokens=False)
    text = model.tokenizer.decode(ids)
    ids = model.tok_encode(text, add_special_tokens=False)
    assert 256 < len(ids) < 512
    windows = [(None, [model.prefix_token_id], ids[:256]), (None, ids[len(ids) - 257:256], ids[256:])]
    expected = sum(logp for logp, _ in model._loglikelihood_tokens(windows))
    assert model.loglikelihood_rolling(asked((text,)))[0] == pytest.approx(expected, abs=1e-3)
    assert model.loglikelihood_rolling(asked(("",))) == [0.0]


@pytest.mark.longer
def test_answers_end_before_the_first_stop_string_and_are_those_of_generate(adapter, start):
    import rlhf_jax

    model, prompt = adapter(max_new_tokens=12), "the fox"
    greedy = {"do_sample": False, "until": []}
    (whole,) = model.generate_until(asked((prompt, greedy)))
    policy = rlhf_jax.load(start.folder)
    group = policy.generate([prompt], n=1, temperature=0.0, max_new_tokens=12)[0]
    if group.prompt_ids.tolist() == model.tok_encode(prompt):
        assert whole == group.responses[0].text
    stop = whole[len(whole) // 2:][:2]
    (cut,) = model.generate_until(asked((prompt, {"do_sample": False, "until": [stop]})))
    assert cut == whole.split(stop)[0]


@pytest.mark.longer
def test_a_greedy_answer_is_made_once_and_of_others_as_many_are_drawn_as_are_asked(adapter, monkeypatch):
    model, drawn = adapter(), []
    sampled = model._sampled
    monkeypatch.setattr(model, "_sampled", lambda sampler, prompts: drawn.append(
        (sampler.sampling.num_generations, len(prompts))) or sampled(sampler, prompts))
    prompts = ["the fox", "the bird", "the fox"]
    one, _, same = model.generate_until(asked(*((p, {"do_sample": False}) for p in prompts)))
    assert one == same
    hot = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 9}
    first, _, second = model.generate_until(asked(*((p, hot) for p in prompts)))
    assert first != second
    assert drawn == [(1, 2), (1, 1), (2, 1)]


def test_what_our_sampler_cannot_do_is_said(adapter):
    with pytest.raises(ValueError, match="asks to generate with num_beams, which our sampler does not have"):
        adapter().generate_until(asked(("the fox", {"num_beams": 4})))
    with pytest.raises(ValueError, match=r"answers of up to 256 tokens and the model has 256 positions .* set pol"):
        adapter(max_new_tokens=None).generate_until(asked(("the fox", {})))


def test_a_conversation_is_rendered_by_the_template_and_can_be_left_open(adapter):
    model = adapter()
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "The answer is "}]
    asked_for = model.apply_chat_template(turns[:1])
    left_open = model.apply_chat_template(turns, add_generation_prompt=False)
    assert left_open.startswith(asked_for)
    assert left_open.rstrip().endswith("The answer is")
    assert model.chat_template(True) == model.tokenizer.chat_template


@pytest.mark.torch
def test_log_likelihoods_and_greedy_flags_are_those_of_the_harnesss_own_backend(adapter, start, exact_matmul):
    pytest.importorskip("torch")
    pytest.importorskip("lm_eval", reason=REASON)
    pytest.importorskip("accelerate", reason="the harness's backend imports it")
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(start.folder), tokenizer=start.tokenizer, dtype="float32", device="cpu", batch_size=2)
    requests = asked(*((context, continuation) for context in ("the fox", "the bird sang to the fox over the hill", "a")
                       for continuation in (" ran", " and the bird", " to it and sang over a hill")),
                     ("", "the fox"), ("the fox " * 200, "ran"))
    ours, expected = adapter().loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([x for x, _ in ours], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]


@pytest.mark.longer
def test_the_verb_writes_metrics_and_official_files_and_is_done_once(do_verb, model, rows, tmp_path):
    pytest.importorskip("lm_eval", reason=REASON)
    options = {"tasks": "arc_challenge,gsm8k", "data_dir": str(rows), "num_fewshot": 0, "max_samples": 4,
               "policy": {"model_name_or_path": str(model), "max_new_tokens": 4, "label": "tiny"}}
    done = do_verb("evaluate", tmp_path / "out", **options)
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["numbers"]
    assert set(numbers) == {"arc_challenge/acc,none", "arc_challenge/acc_norm,none",
                            "gsm8k/exact_match,strict-match", "gsm8k/exact_match,flexible-extract"}
    assert numbers["arc_challenge/acc,none"]["count"] == 4
    assert done.report["numbers"] == numbers
    official = {path.name.split("_2")[0] for path in (tmp_path / "out/lm_eval/tiny").iterdir()}
    assert official == {"results", "samples_arc_challenge", "samples_gsm8k"}
    assert not (tmp_path / "out/answers").exists()
    assert do_verb("evaluate", tmp_path / "out", **options).reused


@pytest.mark.longer
def test_a_killed_evaluation_continues_and_ends_with_the_same_numbers(do_verb, model, rows, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason=REASON)
    from rlhf_jax.evaluation.harness import model as adapters

    options = {"tasks": ["arc_challenge", "gsm8k"], "data_dir": str(rows), "num_fewshot": 0,
               "policy": {"model_name_or_path": str(model), "max_new_tokens": 4, "slots": 4}}
    whole = do_verb("evaluate", tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(adapters.HarnessModel, "_sampled", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            do_verb("evaluate", tmp_path / "killed", **options)
    assert len(list((tmp_path / "killed/answers").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_jax.training.evaluate.PackedMap.__call__", None)  # nothing is computed again
        assert do_verb("evaluate", tmp_path / "killed", **options).report["numbers"] == whole.report["numbers"]


@pytest.mark.longer
def test_what_cannot_be_run_is_said_before_weights_are_read(do_verb, model, rows, tmp_path, monkeypatch):
    policy = {"model_name_or_path": str(model)}
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_jax.evaluation.harness.PACKAGE", "no_such_package")
        with pytest.raises(ValueError, match=r'harness, which is not installed; pip install "rlhf_jax\[lm-eval'):
            check_installed()
        with pytest.raises(ValueError, match="not installed"):
            do_verb("evaluate", tmp_path / "a", tasks="gsm8k", policy=policy)
    pytest.importorskip("lm_eval", reason=REASON)
    monkeypatch.setattr(Checkpoint, "params", None)
    for options, words in (({"tasks": "gsm9k", "data_dir": str(rows)}, "did you mean gsm8k"),
                           ({"tasks": "mmlu", "data_dir": str(rows)}, "holds no mmlu/dev"),
                           ({"tasks": "humaneval", "data_dir": str(rows)}, "holds no humaneval/HumanEval")):
        with pytest.raises(ValueError, match=words):
            do_verb("evaluate", tmp_path / "b", policy=policy, **options)


@pytest.mark.longer
def test_the_same_numbers_come_of_one_device_and_of_eight(start, adapter):
    from rlhf_jax.config.mesh import MeshConfig
    from rlhf_jax.evaluation.harness.model import HarnessModel, Subject
    from rlhf_jax.parallel import make_mesh

    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), jax.devices())
    many = HarnessModel(Subject("tiny", start.config, start.tokenizer, start.params(mesh), mesh, jnp.float32,
                                start.stop_ids, start.decode_text, 6, 8))
    requests = asked(*((f"the fox {'ran ' * i}", continuation) for i in range(6) for continuation in ("and", "to it")))
    found, alone = many.loglikelihood(requests), adapter().loglikelihood(requests)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in alone], atol=1e-4)
    prompts = asked(*((f"the fox {'ran ' * i}", {"do_sample": False}) for i in range(3)))
    assert many.generate_until(prompts) == adapter().generate_until(prompts)


@pytest.mark.slow
def test_two_processes_are_one(launch, model, rows, tmp_path):
    pytest.importorskip("lm_eval", reason=REASON)
    config, found = tmp_path / "evaluate.yaml", []
    config.write_text(json.dumps({"tasks": ["arc_challenge", "gsm8k"], "data_dir": str(rows), "num_fewshot": 0,
                                  "policy": {"model_name_or_path": str(model), "max_new_tokens": 4, "slots": 4}}))
    for processes, devices in ((2, 2), (1, 1)):
        folder = tmp_path / f"by-{processes}"
        run = launch(config, folder, processes, devices, command=["evaluate", "--config", config])
        assert run.wait() == [0] * processes, run.output()
        found.append(json.loads((folder / "metrics.json").read_text())["numbers"])
    assert found[0] == found[1]
