import dataclasses
import json

import pytest

from rlhf_jax.models import CheckpointError, DecoderConfig, Rope, config_from_hf, config_to_hf, written_config

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
    for doubled in (("rope_theta", "rope_scaling", "torch_dtype", "num_labels"), ("rope_parameters", "dtype")):
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
    ("qwen2", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6, "factor": 4.0, "short_factor": [1.0],
                                   "long_factor": [4.0]}}, "rope type 'longrope'"),
    ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "truncate": False}},
     "truncate = False of rope type 'yarn'"),
    ("llama", {"is_causal": False}, "is_causal = False"),
    ("llama", {"partial_rotary_factor": 0.5},
     "partial_rotary_factor = 0.5, which transformers does not read for llama"),
    ("qwen3", {"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25, which"),
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


def like(family, **changes):
    """A config.json of a family, a small one."""
    return {"model_type": family, "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, **changes}


MIXED = ["sliding_attention", "full_attention"] * 2


@pytest.mark.parametrize("raw", [
    like("mistral", layer_types=MIXED, sliding_window=5, architectures=["MistralForCausalLM"]),
    like("ministral", layer_types=MIXED, sliding_window=5),
    like("gemma3_text", rope_parameters={kind: {"rope_type": "default", "rope_theta": 500.0}
                                         for kind in ("full_attention", "sliding_attention")}),
    like("olmo3", rope_theta=7000.0), like("olmo3", layer_types=["full_attention"] * 4),
    like("gemma2", layer_types=["full_attention"] * 4), like("gemma3_text", layer_types=["full_attention"] * 4),
    like("phi3", partial_rotary_factor=0.5, pad_token_id=3),
    like("qwen3", max_position_embeddings=128, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7,
        "mscale_all_dim": 1}),
], ids=lambda raw: raw["model_type"])
def test_what_can_be_read_can_be_written(raw):
    config = config_from_hf(raw)
    written = json.loads(json.dumps(written_config(config)))
    assert config_from_hf(written) == config
    if raw["model_type"] in ("gemma2", "gemma3_text", "olmo3"):
        assert written["sliding_window"]  # transformers computes nothing without one


def test_a_mistral_with_layer_types_is_a_ministral():
    found = config_from_hf(like("mistral", layer_types=MIXED, sliding_window=5, architectures=["MistralForCausalLM"]))
    assert (found.family, found.full_layers, found.window) == ("ministral", (1, 3), 5)
    assert config_to_hf(found)["architectures"] == ["MinistralForCausalLM"]


def test_a_config_that_cannot_be_written_is_refused_with_what_differs(tiny):
    with pytest.raises(CheckpointError, match=r"can be read and not written.*window = None instead of 5"):
        written_config(tiny("llama", window=5))


@pytest.mark.parametrize(("raw", "window"), [
    (like("mistral", use_sliding_window=False), 4096), (like("gemma2", use_sliding_window=False), 4096),
    (like("qwen3", use_sliding_window=False, sliding_window=9), None)])
def test_use_sliding_window_is_read_where_transformers_reads_it(raw, window):
    assert config_from_hf(raw).window == window


def test_layer_types_that_transformers_does_not_read_are_refused_where_they_would_matter():
    moe = like("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, layer_types=MIXED)
    assert config_from_hf(moe).window is None
    with pytest.raises(ValueError, match=r"layer_types of several kinds.*every layer has the window of 5"):
        config_from_hf({**moe, "use_sliding_window": True, "sliding_window": 5})


def test_keys_are_read_where_transformers_reads_them():
    assert config_from_hf(like("gemma3_text", attn_logit_softcapping=2.0)).attn_softcap is None
    assert config_from_hf(like("gemma2", attn_logit_softcapping=2.0)).attn_softcap == 2.0
    assert config_from_hf(like("llama", hidden_act="silu", hidden_activation="gelu_pytorch_tanh")).activation == "silu"
    assert config_from_hf(like("llama", hidden_act="swish")).activation == "silu"
    assert config_from_hf(like("llama", pad_token_id=-1)).pad_token_id is None
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old = like("llama", rope_scaling={**scaled, "original_max_position_embeddings": 32},
               original_max_position_embeddings=64)
    assert config_from_hf(old).rope.original_max_position == 64


@pytest.mark.parametrize(("whole", "tied"), [({}, True), ({"tie_word_embeddings": False}, False),
                                             ({"tie_word_embeddings": True}, True)])
def test_a_gemma_with_an_eye_ties_its_embeddings_by_the_key_of_the_whole(whole, tied):
    text = like("gemma3_text", tie_word_embeddings=not tied)
    assert config_from_hf({"model_type": "gemma3", "text_config": text, **whole}).tie_embeddings is tied


def test_reading_leaves_what_it_reads_as_it_is():
    raw = like("llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
    before = json.dumps(raw)
    config_from_hf(raw)
    assert json.dumps(raw) == before
