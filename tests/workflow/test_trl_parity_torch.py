"""Twenty steps of DPO, reward and SFT training by TRL itself and here: the same losses, the same final weights.

From one tiny checkpoint, on the same rows in the same order, in float32, at a constant learning rate. What differs on
purpose is measured at the end; docs/parity.md gives the numbers.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.load import load_examples
from rlhf_jax.data.loader import BatchPlan
from rlhf_jax.data.mismatch import with_mismatched
from rlhf_jax.data.render_all import render_all
from rlhf_jax.data.tokenizer import end_of_turn, load_tokenizer
from rlhf_jax.models import DecoderConfig, save_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.usefixtures("exact_matmul")]

STEPS, BATCH = 20, 4
RATES = {"sft": 3e-3, "dpo": 3e-4, "reward": 3e-3}
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and",
         "then", "it", "was", "very", "happy", "sad", "quick", "slow", "today")


def preferences():
    """Rows of every length, in the order in which this project trains on them."""
    draws = np.random.default_rng(0)

    def say(role, most):
        return [{"role": role, "content": " ".join(draws.choice(WORDS, draws.integers(1, most)))}]

    rows = [{"prompt": say("user", 9), "chosen": say("assistant", 12), "rejected": say("assistant", 12)}
            for _ in range(STEPS * BATCH)]
    plan = BatchPlan([None] * len(rows), BATCH, 1, 1)
    return rows, [rows[i] for step in range(STEPS) for i in plan.members(step)]


@pytest.fixture
def make_start(tmp_path, weights, tiny_tokenizer):
    """make_start(template, labels, pad): folder of a tiny random model whose padding token is `pad`."""

    def make(template, labels=0, pad="<pad>"):
        tokenizer = tiny_tokenizer(template)
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        config = DecoderConfig("llama", len(tokenizer), 16, 2, 2, 1, 8, 32, max_position=512, initializer_range=0.1,
                               bos_token_id=tokenizer.bos_token_id, eos_token_ids=(tokenizer.eos_token_id,),
                               pad_token_id=tokenizer.pad_token_id, num_labels=labels)
        save_hf(tmp_path / "start", jax.device_get(weights(config)), config, tokenizer_from=tmp_path / "tokenizer")
        return tmp_path / "start"

    return make


@pytest.fixture
def here(do_verb, tmp_path):
    """here(kind, start, **options): log rows and final tensors of this project's verb."""

    def train(kind, start, **options):
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} if kind == "sft" else row
                for row in preferences()[0]]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        do_verb(kind, tmp_path / f"here-{kind}", model_name_or_path=str(start), learning_rate=RATES[kind],
                dataset_name=str(tmp_path / "rows.jsonl"), train_batch_size=BATCH, max_steps=STEPS, warmup_steps=0,
                lr_scheduler_type="constant", logging_steps=1, **options)
        model = tmp_path / f"here-{kind}" / "model"
        log = json.loads((model / "trainer_state.json").read_text())["log_history"]
        return [row for row in log if "loss" in row], load_file(model / "model.safetensors")

    return train


@pytest.fixture
def by_trl(tmp_path):
    """by_trl(kind, start, behind_the_stop, **options): the same of TRL's trainer.

    behind_the_stop: whether it trains on what the template writes there, as TRL does and we do not.
    """

    def train(kind, start, behind_the_stop=False, **options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(start)
        head = "SequenceClassification" if kind == "reward" else "CausalLM"
        model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(start, dtype=torch.float32)
        settings, trainer = {"sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer),
                             "reward": (trl.RewardConfig, trl.RewardTrainer)}[kind]
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} if kind == "sft" else row
                for row in preferences()[1]]
        trainer = trainer(model=model, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows),
                          args=settings(output_dir=str(tmp_path / "trl"), max_steps=STEPS, learning_rate=RATES[kind],
                                        lr_scheduler_type="constant", logging_steps=1, use_cpu=True, bf16=False,
                                        train_sampling_strategy="sequential", report_to="none", save_strategy="no",
                                        disable_tqdm=True, **{"per_device_train_batch_size": BATCH, **options}))
        trailing = end_of_turn(tokenizer).trailing
        if trailing and not behind_the_stop and kind != "reward":
            trainer.train_dataset = trainer.train_dataset.map(lambda row: without(row, trailing))
        trainer.train()
        model.save_pretrained(tmp_path / "trl" / "model")
        rows = [row for row in trainer.state.log_history if "loss" in row]
        return rows, load_file(tmp_path / "trl" / "model" / "model.safetensors")

    return train


def without(row, trailing):
    """A row as TRL prepared it, its last tokens not trained on."""
    if "labels" in row:
        return {"labels": row["labels"][:-trailing] + [-100] * trailing}
    return {name: row[name][:-trailing] for name in ("chosen_ids", "rejected_ids")}


def column(rows, name):
    return np.array([row[name] for row in rows])


def norm(tensors):
    return np.sqrt(sum(np.sum(np.square(x.astype(np.float64))) for x in tensors.values()))


def distance(ours, theirs, start):
    """How far both ends lie apart, as a share of the way that TRL went."""
    assert ours.keys() == theirs.keys() == start.keys()
    return norm({k: ours[k] - theirs[k] for k in ours}) / norm({k: theirs[k] - start[k] for k in ours})


SAME = {
    "sft": ["loss", "grad_norm", "mean_token_accuracy", "entropy"],
    "dpo": ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
            "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy"],
    "reward": ["loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"],
}
"""Metrics of one name and meaning on both sides."""


@pytest.mark.parametrize("template", ["llama3", "chatml"])
@pytest.mark.parametrize("kind", RATES)
def test_twenty_steps_give_trls_losses_metrics_and_weights(kind, template, make_start, here, by_trl):
    start = make_start(template, labels=int(kind == "reward"))
    assert end_of_turn(transformers.AutoTokenizer.from_pretrained(start)).trailing == int(template == "chatml")
    (ours, weights), (theirs, expected) = here(kind, start), by_trl(kind, start)
    assert len(ours) == len(theirs) == STEPS
    assert np.ptp(column(theirs, "loss")) > 0.05
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=1e-5, atol=1e-5)
    for name in SAME[kind]:
        first = int(name == "rewards/accuracies")  # of step 1, where policy = reference, rounding decides
        np.testing.assert_allclose(column(ours, name)[first:], column(theirs, name)[first:], rtol=1e-5, atol=1e-4,
                                   err_msg=name)
    assert distance(weights, expected, load_file(start / "model.safetensors")) < 1e-3


def labelled():
    """The rows of `preferences`, the chosen or the rejected answer in turn, and the order in which they are trained on.
    """
    rows = [{"prompt": row["prompt"], "completion": row[("chosen", "rejected")[i % 2]], "label": i % 2 == 0}
            for i, row in enumerate(preferences()[0])]
    plan = BatchPlan([None] * len(rows), BATCH, 1, 1)
    return rows, [i for step in range(STEPS) for i in plan.members(step)]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_twenty_steps_of_kto_give_trls_losses_metrics_and_weights(loss, make_start, do_verb, tmp_path):
    """Both compare with the answers that this project pairs with other prompts; TRL would pair those of a batch."""
    start, (rows, order) = make_start("llama3"), labelled()
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.75}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = do_verb("dpo", tmp_path / "here", model_name_or_path=str(start), learning_rate=RATES["dpo"],
                   dataset_name=str(tmp_path / "rows.jsonl"), train_batch_size=BATCH, max_steps=STEPS, warmup_steps=0,
                   micro_rows=2 * BATCH, lr_scheduler_type="constant", logging_steps=1, loss_type=loss,
                   **weights).folder / "model"
    log = json.loads((made / "trainer_state.json").read_text())["log_history"]
    ours = [row for row in log if "loss" in row]
    model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    trainer = trl.KTOTrainer(
        model=model, processing_class=transformers.AutoTokenizer.from_pretrained(start),
        train_dataset=datasets.Dataset.from_list([rows[i] for i in order]),
        args=trl.KTOConfig(output_dir=str(tmp_path / "trl"), max_steps=STEPS, learning_rate=RATES["dpo"],
                           lr_scheduler_type="constant", logging_steps=1, use_cpu=True, bf16=False, report_to="none",
                           train_sampling_strategy="sequential", save_strategy="no", disable_tqdm=True,
                           per_device_train_batch_size=BATCH, loss_type=loss, **weights))
    if loss == "kto":
        examples, funnel = load_examples(str(tmp_path / "rows.jsonl"), "unpaired")
        groups = with_mismatched(render_all(examples, Renderer(load_tokenizer(str(start))), funnel), seed=0)
        other = [groups[i].responses[1].ids.tolist() for i in order]
        trainer.train_dataset = trainer.train_dataset.map(lambda row, i: {"KL_completion_ids": other[i]},
                                                          with_indices=True)
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(ours) == len(theirs) == STEPS
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=1e-5, atol=1e-5)
    for name in ("grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "entropy"):
        some = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) if name in b]
        np.testing.assert_allclose(*zip(*some, strict=True), rtol=1e-5, atol=1e-4, err_msg=name)
    if loss == "kto":
        np.testing.assert_allclose(np.maximum(column(ours, "kl"), 0), column(theirs, "kl"), atol=1e-4)
        assert column(theirs, "kl").max() > 0.01
    model.save_pretrained(tmp_path / "trl" / "model")
    assert distance(*(load_file(folder / "model.safetensors")
                      for folder in (made, tmp_path / "trl" / "model", start))) < 1e-3


def test_accumulation_changes_neither_side_and_our_metrics_are_means_over_the_whole_batch(make_start, here, by_trl):
    """TRL averages the metrics of micro-batches, whatever each of them weighs."""
    start = make_start("llama3")
    (ours, weights), (theirs, expected) = here("sft", start), by_trl(
        "sft", start, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH)
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=1e-5, atol=1e-5)
    assert distance(weights, expected, load_file(start / "model.safetensors")) < 1e-3
    assert 0.01 < np.abs(column(ours, "mean_token_accuracy") - column(theirs, "mean_token_accuracy")).max() < 0.1


def test_trl_counts_a_prompt_once_per_response_and_we_count_it_once(make_start, here, by_trl):
    start = make_start("llama3")
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    prompts = sum(len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
                  for row in preferences()[0])
    ours, theirs = here("dpo", start)[0], by_trl("dpo", start)[0]
    assert column(ours, "num_tokens").sum() + prompts == theirs[-1]["num_tokens"]


@pytest.mark.parametrize(("kind", "loss"), [("sft", 0.01), ("dpo", 5e-4)])
def test_trl_trains_on_what_the_template_writes_behind_the_stop_token_and_we_do_not(kind, loss, make_start, here,
                                                                                    by_trl):
    start = make_start("chatml")
    (ours, weights), (theirs, other) = here(kind, start), by_trl(kind, start, behind_the_stop=True)
    assert np.abs(column(ours, "loss") - column(theirs, "loss")).max() > loss
    assert 0.05 < distance(weights, other, load_file(start / "model.safetensors")) < 0.5


def test_with_the_stop_token_as_padding_the_head_is_trained_where_trl_reads_it(make_start, here, by_trl):
    """At the token before it. torch gives the padding token's embedding no gradient; here it is a token like others."""
    start = make_start("llama3", labels=1, pad="<|eot_id|>")
    (ours, weights), (theirs, expected) = here("reward", start), by_trl("reward", start)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], abs=1e-5)
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), atol=5e-3)
    stop = transformers.AutoTokenizer.from_pretrained(start).pad_token_id
    before, trained, frozen = (tensors["model.embed_tokens.weight"][stop] for tensors in (
        load_file(start / "model.safetensors"), weights, expected))
    np.testing.assert_array_equal(frozen, before)
    assert np.abs(trained - before).max() > 1e-3
