"""Logits and scores against transformers' own models, both directions. Needs torch; skipped without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import (
    as_classifier,
    init_params,
    load_params,
    output_head,
    packed_forward,
    read_config,
    save_hf,
    score_heads,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
MODELS = {
    "llama": ("Llama", {}),
    "llama3_tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral_window": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral_full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen2_window_of_no_layer": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}
TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24)).astype(np.int32)


@pytest.fixture(autouse=True)
def exact_matmul():
    with jax.default_matmul_precision("highest"):
        yield


def hidden_of(params, config, tokens=TOKENS):
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return packed_forward(jax.tree.map(jnp.asarray, params), config, tokens, places, np.ones_like(tokens),
                          np.zeros_like(tokens))


def ours(folder):
    config = read_config(folder)
    params = load_params(folder, config)
    hidden = hidden_of(params, config)
    if config.is_classifier:
        return np.asarray(score_heads(params, hidden)[:, -1])
    return np.asarray(hidden @ output_head(params).T)


def theirs(folder, kind):
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, dtype=torch.float32,
                                                                        attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


def theirs_random(name, kind, folder, **changes):
    prefix, switches = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**SIZES | switches | changes)
    model = getattr(transformers, f"{prefix}For{kind}")(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_their_language_model_gives_the_same_logits_here_and_ours_the_same_there(name, tmp_path):
    theirs_random(name, "CausalLM", tmp_path / "theirs")
    expected = theirs(tmp_path / "theirs", "CausalLM")
    np.testing.assert_allclose(ours(tmp_path / "theirs"), expected, atol=1e-4)
    assert np.abs(expected).max() > 1.0
    config = read_config(tmp_path / "theirs")
    save_hf(tmp_path / "ours", load_params(tmp_path / "theirs"), config)
    assert read_config(tmp_path / "ours") == config
    np.testing.assert_allclose(theirs(tmp_path / "ours", "CausalLM"), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "qwen2", "qwen3"])
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_their_classifier_gives_the_same_scores_here_and_ours_the_same_there(name, labels, tmp_path):
    theirs_random(name, "SequenceClassification", tmp_path / "theirs", num_labels=labels)
    expected = theirs(tmp_path / "theirs", "SequenceClassification")
    assert expected.shape == (2, labels)
    np.testing.assert_allclose(ours(tmp_path / "theirs"), expected, atol=1e-4)
    save_hf(tmp_path / "ours", load_params(tmp_path / "theirs"), read_config(tmp_path / "theirs"))
    np.testing.assert_allclose(theirs(tmp_path / "ours", "SequenceClassification"), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_fresh_model_of_ours_loads_there(family, tiny, tmp_path):
    config = tiny(family, eos_token_ids=(2, 3), bos_token_id=1, pad_token_id=0, vocab_size=96,
                  window=4 if family != "llama" else None)
    save_hf(tmp_path / "lm", init_params(jax.random.key(0), config), config)
    np.testing.assert_allclose(ours(tmp_path / "lm"), theirs(tmp_path / "lm", "CausalLM"), atol=1e-4)
    scored = tiny(family, num_labels=1, vocab_size=96, pad_token_id=0)
    params = as_classifier(init_params(jax.random.key(0), config), jax.random.key(1), scored)
    save_hf(tmp_path / "rm", params, scored)
    np.testing.assert_allclose(ours(tmp_path / "rm"), theirs(tmp_path / "rm", "SequenceClassification"), atol=1e-4)


def test_bfloat16_checkpoints_are_read(tmp_path):
    theirs_random("llama", "CausalLM", tmp_path / "wide")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    expected = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(load_params(tmp_path / "narrow")["embed"], expected)


def test_sharded_checkpoints_are_read(tmp_path):
    theirs_random("qwen3", "CausalLM", tmp_path / "one")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "many",
                                                                                        max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "many"), load_params(tmp_path / "one"))
