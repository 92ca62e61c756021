import dataclasses
import json

import pytest

from rlhf_jax.models import DecoderConfig, Rope, config_from_hf, config_to_hf

SCALED = Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
LLAMA31_OLD = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 128256,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}
MISTRAL_OLD = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2_OLD = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}
QWEN3_OLD = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 151936,
}
EXPECTED = {
    "llama": (LLAMA31_OLD, DecoderConfig(
        "llama", 128256, 4096, 32, 32, 8, 128, 14336, 1e-5, SCALED, 131072, bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009))),
    "mistral": (MISTRAL_OLD, DecoderConfig("mistral", 32000, 4096, 32, 32, 8, 128, 14336, 1e-5, Rope(10000.0), 32768,
                                           window=4096, bos_token_id=1, eos_token_ids=(2,))),
    "qwen2": (QWEN2_OLD, DecoderConfig("qwen2", 151936, 896, 24, 14, 2, 64, 4864, 1e-6, Rope(1e6), 32768, True,
                                       qkv_bias=True, bos_token_id=151643, eos_token_ids=(151645,))),
    "qwen3": (QWEN3_OLD, DecoderConfig("qwen3", 151936, 1024, 28, 16, 8, 128, 3072, 1e-6, Rope(1e6), 40960, True,
                                       qk_norm="head", bos_token_id=151643, eos_token_ids=(151645,))),
}


def in_new_layout(raw):
    """transformers 5: one `rope_parameters` in place of `rope_theta` and `rope_scaling`, dtype without "torch_"."""
    new = {k: v for k, v in raw.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    rope = {"rope_type": "default", **(raw.get("rope_scaling") or {}), "rope_theta": raw["rope_theta"]}
    return new | {"rope_parameters": rope, "dtype": "bfloat16"}


@pytest.mark.longer
@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("layout", [dict, in_new_layout])
def test_published_configs_are_read_in_both_layouts(family, layout):
    raw, expected = EXPECTED[family]
    assert config_from_hf(layout(raw)) == expected


@pytest.mark.longer
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("changes", [
    {}, {"rope": SCALED}, {"num_labels": 1}, {"num_labels": 2}, {"num_labels": 7},
    {"num_labels": 1, "score_at": "end_of_turn"},
    {"tie_embeddings": True}, {"eos_token_ids": (3, 4)}, {"eos_token_ids": (3,), "bos_token_id": 1, "pad_token_id": 0},
    {"window": None}, {"window": 9}, {"norm_eps": 1e-6, "max_position": 77, "initializer_range": 0.5},
    {"heads": 3, "kv_heads": 1, "head_dim": 4, "mlp": 24, "layers": 5, "vocab_size": 33, "embed": 24},
])
def test_what_is_written_reads_back_as_the_same_config(family, changes, tiny):
    if family == "llama" and changes.get("window"):
        pytest.skip("llama has no window")
    config = tiny(family, **changes)
    raw = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(raw) == config
    doubled = ("rope_theta", "torch_dtype", "num_labels")
    assert config_from_hf({k: v for k, v in raw.items() if k not in doubled}) == config


@pytest.mark.parametrize(("family", "change", "message"), [
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("llama", {"attention_bias": True}, "attention_bias = True"),
    ("llama", {"mlp_bias": True}, "mlp_bias = True"),
    ("qwen3", {"attention_bias": True}, "attention_bias = True"),
    ("llama", {"model_type": "stablelm", "use_qkv_bias": False}, r"'stablelm'.*closest.*'llama'.*use_qkv_bias"),
    ("llama", {"architectures": ["LlamaForTokenClassification"]}, r"LlamaForTokenClassification.*LlamaForCausalLM"),
    ("llama", {"model_type": None}, "model_type None"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "rope type 'yarn'"),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "'default' and gives no rope_theta"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": None}}, "'linear' and gives no factor"),
    ("mistral", {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": None}},
     "'default' and gives no rope_theta"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"], "rlhf_jax_score_at": "first"},
     "rlhf_jax_score_at = 'first'; known are last_token, end_of_turn"),
    ("llama", {"num_key_value_heads": 5}, "heads = 32 is no multiple of kv_heads = 5"),
])
def test_what_the_decoder_cannot_do_is_refused_by_name(family, change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(EXPECTED[family][0] | change)


@pytest.mark.parametrize(("change", "window", "full"), [
    ({"use_sliding_window": False}, None, ()),
    ({"use_sliding_window": True}, 32768, tuple(range(21))),  # slides from layer 21 of 24 on
    ({"use_sliding_window": True, "max_window_layers": 0}, 32768, ()),
    ({"use_sliding_window": True, "max_window_layers": 24}, None, ()),  # from layer 24 of 24 on: nowhere
    ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, None, ()),
    ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 24}, 32768, ()),
    ({"use_sliding_window": True, "layer_types": ["full_attention"] * 24}, None, ()),
    ({"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 12}, 32768,
     tuple(range(0, 24, 2))),
])
def test_which_layers_of_qwen_attend_through_the_window(change, window, full):
    config = config_from_hf(QWEN2_OLD | change)
    assert (config.window, config.full_layers) == (window, full)
    assert config.local_layers == tuple(window is not None and i not in full for i in range(24))
    assert config_from_hf(config_to_hf(config)) == config


def test_absent_keys_mean_what_transformers_takes_them_to_mean():
    bare = {"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 8}
    config = config_from_hf(bare)
    assert (config.kv_heads, config.head_dim, config.norm_eps, config.rope.theta) == (4, 4, 1e-6, 10_000.0)
    assert (config.tie_embeddings, config.eos_token_ids, config.num_labels) == (False, (2,), 0)
    classifier = bare | {"architectures": ["LlamaForSequenceClassification"]}
    assert config_from_hf(classifier).num_labels == 2
    assert config_from_hf(classifier | {"id2label": {"0": "LABEL_0"}}).num_labels == 1
    assert config_from_hf(bare | {"model_type": "mistral", "num_key_value_heads": 2}).window == 4096
    assert config_from_hf(bare | {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}}).rope.theta == 7.0


def test_outputs_are_called_what_id2label_calls_them():
    raw = {"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
           "intermediate_size": 8, "architectures": ["LlamaForSequenceClassification"], "num_labels": 2}
    config = config_from_hf(raw | {"id2label": {"0": "length", "1": "quality"}})
    assert config.output_names == ("length", "quality")
    assert config_from_hf(config_to_hf(config)) == config
    for names in ({"0": "LABEL_0", "1": "LABEL_1"}, None):
        plain = config_from_hf(raw | {"id2label": names})
        assert (plain.labels, plain.output_names) == ((), ("0", "1"))
        assert config_from_hf(config_to_hf(plain)) == plain
    for names in ({"0": "same", "1": "same"}, {"0": "", "1": "b"}):
        with pytest.raises(ValueError, match=r"id2label.*each output has a name of its own"):
            config_from_hf(raw | {"id2label": names})
    gated = raw | {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": 2}
    assert config_from_hf(gated | {"id2label": {"0": "help", "1": "verbosity"}}).output_names == ("help", "verbosity")


def test_configs_hash_and_compare_by_value(tiny):
    config = tiny(rope=SCALED)
    assert hash(config) == hash(dataclasses.replace(config))
    assert config != dataclasses.replace(config, rope=Rope())
