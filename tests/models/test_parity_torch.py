"""Against transformers' own models, live and in both directions. Needs torch; skipped without it."""

import json

import jax
import numpy as np
import pytest

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.models import (
    as_classifier,
    init_lora,
    init_params,
    load_adapter,
    load_params,
    merge_lora,
    read_config,
    save_adapter,
    save_hf,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("exact_matmul")]

TASKS = {"lm": "CausalLM", "rm": "SequenceClassification"}


def test_what_they_write_computes_the_same_here_and_what_we_write_the_same_there(golden_name, models, ours, tmp_path):
    models.make(golden_name, tmp_path)
    np.testing.assert_array_equal(ours.greedy(tmp_path / "lm"), models.greedy(tmp_path / "lm"))
    for kind, task in TASKS.items():
        expected = models.logits(tmp_path / kind, task)
        np.testing.assert_allclose(ours.output(tmp_path / kind), expected, atol=1e-4)
        config, out = read_config(tmp_path / kind), tmp_path / f"{kind}_out"
        save_hf(out, load_params(tmp_path / kind), config)
        assert read_config(out) == config
        np.testing.assert_array_equal(models.logits(out, task), expected)
        theirs, written = models.load(tmp_path / kind, task).state_dict(), models.load(out, task).state_dict()
        assert theirs.keys() == written.keys()
        assert all(torch.equal(value, written[key]) for key, value in theirs.items())


@pytest.mark.parametrize("labels", [1, 3])
def test_classifiers_of_any_number_of_outputs(labels, models, ours, tmp_path):
    models.make("llama2", tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=labels)
    model.save_pretrained(tmp_path / "some")
    expected = models.logits(tmp_path / "some", TASKS["rm"])
    assert expected.shape == (2, labels)
    np.testing.assert_allclose(ours.output(tmp_path / "some"), expected, atol=1e-4)


def test_a_fresh_model_of_ours_loads_there(golden_name, models, ours, tmp_path):
    models.make(golden_name, tmp_path)
    config, scored = read_config(tmp_path / "lm"), read_config(tmp_path / "rm")
    params = init_params(jax.random.key(0), config)
    save_hf(tmp_path / "our_lm", params, config)
    save_hf(tmp_path / "our_rm", as_classifier(params, jax.random.key(1), scored), scored)
    for kind, task in TASKS.items():
        folder = tmp_path / f"our_{kind}"
        np.testing.assert_allclose(ours.output(folder), models.logits(folder, task), atol=1e-4)


def test_bfloat16_checkpoints_are_read(models, tmp_path):
    models.make("llama2", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    expected = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(load_params(tmp_path / "narrow")["embed"], expected)


@pytest.mark.parametrize("name", ["qwen3", "phi3", "mixtral"])
def test_sharded_checkpoints_are_read(name, models, tmp_path):
    models.make(name, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    model.save_pretrained(tmp_path / "many", max_shard_size="6KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "many"), load_params(tmp_path / "lm"))


def test_the_text_part_of_a_multimodal_gemma_is_read_and_the_rest_passed_over(models, ours, tmp_path):
    models.make("gemma3", tmp_path)
    raw = json.loads((tmp_path / "lm" / "config.json").read_text())
    tensors = {f"language_model.{name}": value for name, value in models.tensors(tmp_path / "lm").items()}
    tensors["vision_tower.encoder.weight"] = np.ones((2, 2), np.float32)
    (tmp_path / "both").mkdir()
    transformers.Gemma3Config(text_config=raw).save_pretrained(tmp_path / "both")
    models.save(tensors, tmp_path / "both")
    np.testing.assert_array_equal(ours.output(tmp_path / "both"), ours.output(tmp_path / "lm"))


def multimodal(models, folder):
    """A folder of a Gemma 3 with an eye over the text model of `folder`/lm, its embeddings not tied."""
    text = transformers.AutoConfig.for_model("gemma3_text", **models.SIZES | models.MODELS["gemma3"][1]).to_dict()
    eye = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 28, "patch_size": 14}
    torch.manual_seed(1)
    model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(
        text_config=text, vision_config=eye, mm_tokens_per_image=4, tie_word_embeddings=False,
        image_token_index=7, boi_token_index=8, eoi_token_index=9))
    model.save_pretrained(folder)
    return folder


def test_an_untied_multimodal_gemma_has_its_own_output_embedding(models, ours, tmp_path):
    folder = multimodal(models, tmp_path / "both")
    assert not read_config(folder).tie_embeddings
    np.testing.assert_allclose(ours.output(folder), models.logits(folder, "CausalLM"), atol=1e-4)


def test_adapters_over_a_multimodal_gemma_work_there_and_here(models, ours, tmp_path):
    """PEFT calls the modules by the whole model's names, and finds none of an adapter that does not."""
    peft = pytest.importorskip("peft")
    folder = multimodal(models, tmp_path / "both")
    config, lora = read_config(folder), LoraConfig(True, 2, 4.0, ("q_proj", "up_proj"), lora_init="a")
    adapter = jax.tree.map(lambda x: x + 0.3, init_lora(jax.random.key(0), config, lora))
    save_adapter(tmp_path / "ours", adapter, config, lora, str(folder))
    merged = merge_lora(load_params(folder), adapter, lora.scale)
    save_hf(tmp_path / "merged", merged, config)

    def theirs(adapter):
        base = models.load(folder, "CausalLM")
        with torch.no_grad():
            ids = torch.tensor(models.TOKENS, dtype=torch.long)
            return peft.PeftModel.from_pretrained(base, adapter).eval()(ids).logits.numpy()

    np.testing.assert_allclose(theirs(tmp_path / "ours"), ours.output(tmp_path / "merged"), atol=1e-4)
    assert np.abs(ours.output(tmp_path / "merged") - ours.output(folder)).max() > 0.1
    again = load_adapter(tmp_path / "ours", config)
    jax.tree.map(np.testing.assert_array_equal, again.params, jax.device_get(adapter))

    wrapped = peft.get_peft_model(models.load(folder, "CausalLM"), peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    wrapped.save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", config)
    save_hf(tmp_path / "read", merge_lora(load_params(folder), read.params, read.lora.scale), config)
    np.testing.assert_allclose(theirs(tmp_path / "theirs"), ours.output(tmp_path / "read"), atol=1e-4)
