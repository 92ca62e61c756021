"""A reward model of ours is read by transformers, TRL and vLLM as by us, and one of TRL's by us as by transformers.

Every chat template we know, a padding token that is the stop token or another, trained here or by TRL's RewardTrainer.
"""

import gzip
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.config.build import build
from rlhf_jax.config.scorer import BradleyTerryScoring
from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.templates import TEMPLATES
from rlhf_jax.data.tokenizer import end_of_turn
from rlhf_jax.models import DecoderConfig, read_config, save_hf
from rlhf_jax.scoring.base import scores_in
from rlhf_jax.workflow.kinds import open_scorer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("exact_matmul")]

REAL = {"smollm2": None, "llama-3": None, "llama-3.1": None, "gpt2": "plain"}
"""Tokenizers of ../shared/data, and the template of one that has none."""
CASES = [*TEMPLATES, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)]
QUESTIONS = ["What is JAX?", "Name a colour.", "And 2 + 2?"]
ANSWERS = ["A library.", "Red, I think.", "It is 4, of course.", "No idea!"]
CONVERSATIONS = [([{"role": "user", "content": QUESTIONS[i]}, {"role": "assistant", "content": ANSWERS[3 - i]},
                   {"role": "user", "content": QUESTIONS[(i + 1) % 3]}][: 1 + 2 * (i % 2)], ANSWERS[i:] + ANSWERS[:i])
                 for i in range(3)]


def real_tokenizer(name, folder):
    shared = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tokenizers"
    if not shared.is_dir():
        pytest.skip("the folder ../shared/data with real tokenizers is not there")
    folder.mkdir()
    shutil.copy(shared / name / "tokenizer_config.json", folder)
    with gzip.open(shared / name.replace("-3.1", "-3") / "tokenizer.json.gz") as packed:
        (folder / "tokenizer.json").write_bytes(packed.read())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATES[REAL[name]]
    return tokenizer


@pytest.fixture
def make_start(tmp_path, weights, tiny_tokenizer):
    """make_start(case, pad): folder of a tiny random model, its padding token the stop token or another."""

    def make(case, pad, **special):
        tokenizer = tiny_tokenizer(case, **special) if case in TEMPLATES else real_tokenizer(case, tmp_path / "real")
        stop = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer).stop_id)
        spare = [token for token in ("<pad>", "<|endoftext|>", "<|reserved_special_token_0|>")
                 if token in tokenizer.get_vocab() and token != stop]
        if pad == "apart" and not spare:
            pytest.skip("every special token of this tokenizer ends a conversation")
        tokenizer.pad_token = stop if pad == "stop" else spare[0]
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        config = DecoderConfig("llama", len(tokenizer), 16, 2, 2, 1, 8, 32, max_position=512, initializer_range=0.3,
                               bos_token_id=tokenizer.bos_token_id, eos_token_ids=(tokenizer.eos_token_id,),
                               pad_token_id=tokenizer.pad_token_id)
        save_hf(tmp_path / "start", jax.device_get(weights(config)), config, tokenizer_from=tmp_path / "tokenizer")
        return tmp_path / "start"

    return make


@pytest.fixture
def train_here(do_verb, tmp_path):
    """train_here(start, name): two steps of `rlhf-jax reward`; the model's folder."""

    def train(start, name="here"):
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in preferences()))
        do_verb("reward", tmp_path / name, model_name_or_path=str(start), learning_rate=1e-3, dataset_name=str(rows),
                train_batch_size=2, max_steps=2)
        return tmp_path / name / "model"

    return train


def preferences():
    return [{"prompt": prompt, "chosen": [{"role": "assistant", "content": answers[i]}],
             "rejected": [{"role": "assistant", "content": answers[i + 1]}]}
            for prompt, answers in CONVERSATIONS for i in (0, 2)]


def train_by_trl(start, folder):
    """Two steps of TRL's RewardTrainer from `start`, saved as it saves."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    options = trl.RewardConfig(output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, use_cpu=True,
                               bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
                               learning_rate=1e-3, disable_tqdm=True)
    trainer = trl.RewardTrainer(model=model, args=options, processing_class=tokenizer,
                                train_dataset=datasets.Dataset.from_list(preferences()))
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def ours(folder, mesh, **options):
    """[conversations, answers] scores of the folder's model as a scorer; the groups carry text and foreign ids."""
    groups = [PromptGroup(str(i), np.array([1]), tuple(Response(np.array([1]), np.ones(1, bool), text=answer)
                                                       for answer in answers), prompt)
              for i, (prompt, answers) in enumerate(CONVERSATIONS)]
    options = build(BradleyTerryScoring, {"model_name_or_path": str(folder), **options})
    return np.array(scores_in(open_scorer(options, mesh, "proxy").score(groups)))


def theirs(folder, batched=False, last=False, model=None):
    """The same of AutoModelForSequenceClassification on `apply_chat_template`, one by one or as a padded batch.

    last: at the last token whatever it is, as vLLM's pooler. model: in the place of the folder's.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = model or transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    conversations = [[*prompt, {"role": "assistant", "content": answer}] for prompt, answers in CONVERSATIONS
                     for answer in answers]
    with torch.no_grad():
        if batched:
            found = model(**tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True, padding=True,
                                                          return_tensors="pt")).logits
        else:
            ids = [torch.tensor([tokenizer.apply_chat_template(c, tokenize=True, return_dict=False)])
                   for c in conversations]
            found = torch.cat([model.score(model.model(x).last_hidden_state[:, -1]) if last else model(x).logits
                               for x in ids])
    return found.numpy().reshape(3, 4)


@pytest.mark.parametrize("pad", ["stop", "apart"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_trained_here_is_read_alike_by_transformers_trl_and_vllm(case, pad, make_start, train_here, lone_mesh):
    model = train_here(make_start(case, pad))
    scores = ours(model, lone_mesh)
    assert np.std(scores) > 1e-2
    np.testing.assert_allclose(scores, theirs(model), atol=1e-4)
    np.testing.assert_allclose(scores, theirs(model, batched=True), atol=1e-4)
    np.testing.assert_allclose(scores, theirs(model, last=True), atol=1e-4)
    config, tokenizer = read_config(model), transformers.AutoTokenizer.from_pretrained(model)
    assert config.pad_token_id == tokenizer.pad_token_id  # TRL reads by the tokenizer's
    assert json.loads((model / "config.json").read_text())["rlhf_jax_score_at"] == "last_token"
    assert f"The padding id is {config.pad_token_id}" in (model / "README.md").read_text()


def test_where_every_special_token_ends_a_conversation_the_head_is_read_before_it_as_by_transformers(
        make_start, train_here, lone_mesh):
    """As TRL has it with GPT-2, whose only special token is EOS; here with a template that ends with it."""
    model = train_here(make_start("mistral", "stop", special=["</s>"], bos="</s>"))
    scores = ours(model, lone_mesh)
    np.testing.assert_allclose(scores, theirs(model), atol=1e-4)
    np.testing.assert_allclose(scores, theirs(model, batched=True), atol=1e-4)
    assert np.abs(scores - theirs(model, last=True)).max() > 1e-2


@pytest.mark.parametrize("pad", ["stop", "apart"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_trained_by_trl_is_read_as_transformers_reads_it(case, pad, make_start, train_here, do_verb, lone_mesh,
                                                                tmp_path):
    model = train_by_trl(make_start(case, pad), tmp_path / "trl")
    expected = theirs(model)
    assert np.std(expected) > 1e-2
    np.testing.assert_allclose(ours(model, lone_mesh), expected, atol=1e-4)
    do_verb("export", tmp_path / "again", model_name_or_path=str(model), dtype="float32")
    np.testing.assert_allclose(theirs(tmp_path / "again" / "model", batched=True), expected, atol=1e-4)
    further = train_here(model, "further")
    np.testing.assert_allclose(ours(further, lone_mesh), theirs(further, batched=True), atol=1e-4)


def test_an_adapter_of_peft_with_a_head_over_a_language_model_is_exported_as_what_it_computes(make_start, do_verb,
                                                                                             lone_mesh, tmp_path):
    peft = pytest.importorskip("peft")
    start = make_start("chatml", "apart")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"],
                                                       task_type="SEQ_CLS"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.normal_(std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    expected = theirs(start, model=model)
    assert np.std(expected) > 1e-2
    do_verb("export", tmp_path / "out", model_name_or_path=str(tmp_path / "adapter"), base_model=str(start),
            dtype="float32")
    exported = tmp_path / "out" / "model"
    np.testing.assert_allclose(ours(exported, lone_mesh), expected, atol=1e-4)
    np.testing.assert_allclose(theirs(exported, batched=True), expected, atol=1e-4)
