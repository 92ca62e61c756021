"""The public Python API: its numbers are those of one sequence at a time, its samples and scores those of the verbs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import rlhf_jax
from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.world import write_world
from rlhf_jax.models import DecoderConfig, init_lora, load_params, read_config, save_adapter, save_hf

LORA = LoraConfig(True, 2, 4.0, ("q_proj", "down_proj"))
MESSAGES = [{"role": "user", "content": "tell me of a fox"}]
PROMPTS = ["the cat", "a dog went to the wood and", MESSAGES]
RESPONSES = [" sat.", " came home in the evening, very tired.", "There was a fox."]


@pytest.fixture(scope="module")
def world(tmp_path_factory, weights):
    """A micro world, a policy `base`, a reward model `rm`, and adapters of the policy: `adapter`, and `judge` with a
    classifier's head beside it."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldConfig(sft_rows=8, preference_rows=8, prompt_rows=6, eval_prompts=4))
    vocab = len(json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"])
    config = DecoderConfig("llama", vocab_size=vocab, embed=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=32,
                           max_position=256, tie_embeddings=True, bos_token_id=1, eos_token_ids=(4,), pad_token_id=0,
                           initializer_range=0.1)
    judge = DecoderConfig(**{**vars(config), "num_labels": 1, "tie_embeddings": False})
    for name, one in (("base", config), ("rm", judge)):
        save_hf(folder / name, jax.device_get(weights(one, 3)), one, tokenizer_from=folder / "tokenizer")
    for name, one, score in (("adapter", config, None), ("judge", judge, np.ones((1, 16), np.float32))):
        updates = jax.tree.map(lambda x: x + 0.1, init_lora(jax.random.key(1), one, LORA))
        save_adapter(folder / name, updates, one, LORA, str(folder / "base"), score)
    return folder


def alone(plain, params, config, model, prompt, response):
    """[n] log-probs of a response's tokens from one plain forward pass over one sequence."""
    (group,) = model.groups([prompt], [response])
    ids, answer = np.concatenate([group.prompt_ids, group.responses[0].ids]), group.responses[0]
    head = params["embed"][: config.vocab_size]
    logps = jax.nn.log_softmax(plain(params, config, ids) @ head.T)[np.arange(len(ids) - 1), ids[1:]]
    return logps[len(group.prompt_ids) - 1 :][answer.loss_mask]


@pytest.mark.longer
@pytest.mark.parametrize("mesh", [{}, {"data": 4, "tensor": 2, "fsdp": 1}], ids=str)
def test_logps_are_those_of_one_sequence_at_a_time_on_any_mesh(world, mesh, plain, exact_matmul):
    model = rlhf_jax.load(world / "base", mesh=mesh)
    params, config = load_params(world / "base"), read_config(world / "base")
    found = model.token_logps(PROMPTS, RESPONSES)
    for prompt, response, values in zip(PROMPTS, RESPONSES, found, strict=True):
        np.testing.assert_allclose(values, alone(plain, params, config, model, prompt, response), atol=1e-5)
    np.testing.assert_allclose(model.logps(PROMPTS, RESPONSES), [values.sum() for values in found], rtol=1e-6)
    assert model.logps([], []).shape == (0,)


@pytest.mark.longer
def test_an_adapter_is_merged_and_other_weights_can_be_set(world, plain, exact_matmul, lone_mesh):
    base, model = (rlhf_jax.load(world / name, mesh=lone_mesh) for name in ("base", "adapter"))
    before, after = base.logps(PROMPTS, RESPONSES), model.logps(PROMPTS, RESPONSES)
    assert (np.abs(before - after) > 1e-3).all()
    np.testing.assert_allclose(base.with_params(model.params).logps(PROMPTS, RESPONSES), after, atol=1e-5)
    values = alone(plain, jax.device_get(model.params), model.config, model, PROMPTS[0], RESPONSES[0])
    np.testing.assert_allclose(model.token_logps(PROMPTS[:1], RESPONSES[:1])[0], values, atol=1e-5)


@pytest.mark.longer
def test_samples_are_those_of_the_verb(world, tmp_path):
    keys = {"max_new_tokens": 6, "seed": 5, "slots": 8, "temperature": 0.8}
    rows = [json.loads(line) for line in (world / "prompts.jsonl").read_text().splitlines()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    report = rlhf_jax.run("generate", model_name_or_path=world / "base", dataset_name=tmp_path / "prompts.jsonl",
                          output_dir=tmp_path / "sampled", num_generations=2, **keys)
    ours = rlhf_jax.load(world / "base").generate([row["prompt"] for row in rows], n=2, **keys)
    theirs = rlhf_jax.read_groups(tmp_path / "sampled/shard-00000.jsonl")
    assert report["responses"] == 2 * len(ours) == 2 * len(rows)
    for a, b in zip(ours, theirs, strict=True):
        assert [r.ids.tolist() for r in a.responses] == [r.ids.tolist() for r in b.responses]
        assert [r.text for r in a.responses] == [r.text for r in b.responses]


@pytest.mark.longer
@pytest.mark.parametrize("name", ["rm", pytest.param("judge", marks=pytest.mark.slow)])
def test_scores_are_those_of_the_verb(world, tmp_path, name):
    groups = rlhf_jax.load(world / "base").generate(PROMPTS, n=2, max_new_tokens=6)
    (tmp_path / "sampled").mkdir()
    rlhf_jax.write_groups(tmp_path / "sampled/shard-00000.jsonl", groups)
    (tmp_path / "sampled/stage.json").write_text("{}")
    rlhf_jax.run("score", model_name_or_path=world / name, input=tmp_path / "sampled", output_dir=tmp_path / "scored")
    theirs = rlhf_jax.read_groups(tmp_path / "scored/shard-00000.jsonl")
    judge = rlhf_jax.load(world / name)
    ours = judge.scored(groups)
    expected = [r.scores["proxy"] for group in theirs for r in group.responses]
    assert [r.scores["proxy"] for group in ours for r in group.responses] == pytest.approx(expected, abs=1e-6)
    chats = [([*group.prompt, {"role": "assistant", "content": r.text}]) for group in ours[2:] for r in group.responses]
    assert judge.score(chats) == pytest.approx(expected[4:], abs=1e-5)


@pytest.mark.longer
def test_a_score_is_the_head_at_the_last_token_of_one_sequence(world, plain, exact_matmul, lone_mesh):
    judge = rlhf_jax.load(world / "rm", mesh=lone_mesh)
    ids = judge.tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": "A fox."}],
                                              return_dict=False)
    params = load_params(world / "rm")
    expected = plain(params, judge.config, np.asarray(ids))[-1] @ params["score"].T
    assert judge.score([(MESSAGES, "A fox."), [*MESSAGES, {"role": "assistant", "content": "A fox."}]]) == (
        pytest.approx([float(expected[0])] * 2, abs=1e-5))
    assert judge.score(["once upon a time", ("once upon", " a time")])[0] is not None
    better, worse = judge.score([(MESSAGES, "A fox."), (MESSAGES, "No.")])
    assert judge.prefers([MESSAGES], ["A fox."], ["No."]) == pytest.approx([1 / (1 + np.exp(worse - better))])


def test_scores_follow_other_weights(world, lone_mesh):
    judge = rlhf_jax.load(world / "rm", mesh=lone_mesh)
    (before,) = judge.score([(MESSAGES, "A fox.")])
    doubled = {**judge.params, "score": 2 * judge.params["score"]}
    assert judge.with_params(doubled).score([(MESSAGES, "A fox.")]) == pytest.approx([2 * before], rel=1e-5)
    assert judge.score([(MESSAGES, "A fox.")]) == [before]


def test_a_preference_model_is_asked_in_both_orders(world):
    model = rlhf_jax.load(world / "base")
    answers = ("A fox.", "No.")
    (p,), (q,) = (model.prefers([MESSAGES], [a], [b], kind="pairwise") for a, b in (answers, answers[::-1]))
    assert (p is None and q is None) or p + q == pytest.approx(1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, j: m.logps(["a"], []), "1 prompts and 0 responses"),
    (lambda m, j: m.logps(["a", ""], ["b", "c"]), r"responses\[1\]: the prompt is empty"),
    (lambda m, j: m.logps(["a"], ["word " * 300]), r"responses\[0\]: .*response_too_long"),
    (lambda m, j: j.logps(["a"], ["b"]), "is a sequence classifier"),
    (lambda m, j: m.generate(["a", 3]), r"prompts\[1\]: "),
    (lambda m, j: m.generate(["a"], temprature=1.0), "temprature"),
    (lambda m, j: j.generate(["a"]), "is a sequence classifier"),
    (lambda m, j: m.score([("a", "b")]), "is a language model"),
    (lambda m, j: m.score([("a", "b")], kind="pairwise"), "compares answers"),
    (lambda m, j: j.score([[*MESSAGES, *MESSAGES]]), r"conversations\[0\]: .*turns must alternate"),
    (lambda m, j: j.score([("a", "b")], kind="function"), "kind = 'function' is no kind of model"),
    (lambda m, j: rlhf_jax.load("nowhere"), "neither a folder on this machine nor a hub name"),
    (lambda m, j: rlhf_jax.load(m.checkpoint.folder, mesh={"data": 3}), "asks for 3 devices"),
    (lambda m, j: rlhf_jax.load(m.checkpoint.folder, dtype="fp16"), "dtype = 'fp16'; choose from float32, bfloat16"),
    (lambda m, j: rlhf_jax.run("smaple"), "no verb 'smaple'"),
    (lambda m, j: rlhf_jax.run("dpo", learning_rat=1), "did you mean 'learning_rate'"),
    (lambda m, j: rlhf_jax.run("compare", **{"scorer.kind": "function"}), r"sections are mappings: scorer=\{'kind': "),
])
def test_what_cannot_be_done_is_said(world, call, message):
    with pytest.raises(ValueError, match=message):
        call(rlhf_jax.load(world / "base"), rlhf_jax.load(world / "rm"))


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, j: m.generate("cat"), r"prompts is one string; give a list: generate\(\[\"the cat\"\]\)"),
    (lambda m, j: m.generate(MESSAGES), r"prompts\[0\] is one chat message; a prompt is a string or a list"),
    (lambda m, j: m.generate({"prompt": "a"}), "prompts is one mapping of prompt; give a list"),
    (lambda m, j: m.generate([{"prompt": "a"}]), r"prompts\[0\] is a mapping of prompt; a prompt is a string"),
    (lambda m, j: m.generate(None), "prompts is of type NoneType; give a list"),
    (lambda m, j: m.logps("cat", "dog"), "prompts is one string; give a list: logps"),
    (lambda m, j: m.logps(["cat"], "dog"), "responses is one string; give a list: logps"),
    (lambda m, j: m.logps(["cat"], [{"role": "assistant", "content": "a"}]), r"responses\[0\] is one chat message"),
    (lambda m, j: m.groups("cat", "dog"), "prompts is one string; give a list: groups"),
    (lambda m, j: j.score("cat"), "conversations is one string; give a list: score"),
    (lambda m, j: j.score(("a", "b")), r"conversations is one pair \(prompt, response\); give a list: score"),
    (lambda m, j: j.score((MESSAGES, "b")), r"conversations is one pair \(prompt, response\)"),
    (lambda m, j: j.score([{"prompt": "a", "response": "b"}]), r"conversations\[0\] is a mapping of prompt, response"),
    (lambda m, j: j.score([*MESSAGES, {"role": "assistant", "content": "b"}]),
     r"conversations\[0\] is one chat message; a conversation is a list of them: score\(\[\[\.\.\.\]\]\)"),
    (lambda m, j: j.score([3]), r"conversations\[0\] is of type int; give a string"),
    (lambda m, j: j.score(m.groups(["a"], ["b"])), r"groups are scored by scored\(groups\)"),
    (lambda m, j: j.scored(["a cat"]), r"groups\[0\] is of type str; give PromptGroups"),
    (lambda m, j: j.scored(m.groups(["a"], ["b"])[0]), "groups is one PromptGroup; give a list"),
    (lambda m, j: j.prefers("ab", "cd", "ef"), "prompts is one string; give a list: prefers"),
    (lambda m, j: j.prefers(["a"], ["b", "c"], ["d"]), "1 prompts, 2 first, 1 second; give as many of each"),
    (lambda m, j: m.prefers(["a"], ["b"], [], kind="pairwise"), "1 prompts, 1 first, 0 second"),
])
def test_arguments_of_another_shape_are_refused_by_name(world, call, message):
    with pytest.raises(ValueError, match=message):
        call(rlhf_jax.load(world / "base"), rlhf_jax.load(world / "rm"))


def test_generators_and_scalars_of_numpy_are_taken(world, lone_mesh):
    policy, judge = (rlhf_jax.load(world / name, mesh=lone_mesh) for name in ("base", "rm"))
    listed = policy.generate(["a", "b"], n=2, temperature=0.5, max_new_tokens=3)
    given = policy.generate((text for text in "ab"), n=np.int64(2), temperature=np.float32(0.5), max_new_tokens=3)
    assert [r.text for g in given for r in g.responses] == [r.text for g in listed for r in g.responses]
    assert judge.score(iter([("a", "b")])) == judge.score([("a", "b")])
    assert policy.logps(iter(["a"]), iter(["b"])) == policy.logps(["a"], ["b"])


@pytest.mark.parametrize(("key", "value", "words"), [
    ("model_name_or_path", lambda m: m, "is of type Model, which is no plain value; give the folder of the model"),
    ("dataset_name", lambda m: {"rows": range(2)}, "rows is of type range, .* write the rows to a .jsonl file"),
    ("function", lambda m: len, 'name the function, "module:function"'),
    ("dtype", lambda m: jax.numpy.bfloat16, 'give its name, such as "bfloat16"'),
    ("dataset_name", lambda m: ["a", object()], r"dataset_name\[1\] is of type object, .* give text, a number"),
])
def test_objects_are_not_taken_for_their_names(world, key, value, words):
    with pytest.raises(ValueError, match=words):
        rlhf_jax.run("score", **{key: value(rlhf_jax.load(world / "base"))})


@pytest.mark.longer
def test_importing_the_package_costs_nothing_and_its_losses_jax_alone():
    code = ("import sys, rlhf_jax; assert 'jax' not in sys.modules; from rlhf_jax import losses; "
            "print(sorted({'flax', 'optax', 'transformers', 'datasets', 'safetensors'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_are_there_and_documented():
    for name in rlhf_jax.__all__:
        assert getattr(rlhf_jax, name).__doc__
    assert set(rlhf_jax.__all__) <= set(dir(rlhf_jax))
    with pytest.raises(AttributeError, match="no attribute 'lode'; it has Model"):
        _ = rlhf_jax.lode


@pytest.mark.slow
def test_the_page_runs_as_printed(world, tmp_path, monkeypatch):
    """Every block of docs/python.md, one after the other."""
    page = (Path(__file__).parent.parent / "docs/python.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, folder in (("base", "runs/sft/model"), ("rm", "runs/rm/model")):
        (tmp_path / folder).parent.mkdir(parents=True)
        (tmp_path / folder).symlink_to(world / name)
    (tmp_path / "pairs.jsonl").write_text((world / "preference_eval.jsonl").read_text())
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert names["report"]["pairs"] > 0


@pytest.mark.torch
def test_a_reward_adapter_over_a_language_model_scores_as_in_peft(world, tmp_path, lone_mesh, exact_matmul):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    pad = rlhf_jax.load(world / "base").tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1, pad_token_id=pad)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    judge = rlhf_jax.load(tmp_path / "adapter", mesh=lone_mesh)
    chats = [[*MESSAGES, {"role": "assistant", "content": text}] for text in ("A fox.", "There once was one, red.")]
    with torch.no_grad():
        theirs = [float(adapted(input_ids=torch.tensor([judge.tokenizer.apply_chat_template(chat, return_dict=False)])
                                ).logits) for chat in chats]
    assert judge.score(chats) == pytest.approx(theirs, abs=1e-5)
    assert theirs[0] != pytest.approx(theirs[1], abs=1e-3)
