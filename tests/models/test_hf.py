import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import CheckpointError, as_classifier, cast, find_model, load_params, read_config, save_hf
from rlhf_jax.models.hf import stored_tensors, tensor_shapes
from rlhf_jax.models.params import count_params, param_specs
from rlhf_jax.models.save import hf_tensors

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def saved(tiny, weights, tmp_path):
    config = tiny("qwen3")
    save_hf(tmp_path, weights(config), config)
    return config, tmp_path


@pytest.mark.longer
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"num_labels": 3}])
@pytest.mark.parametrize("shard", [10**9, 3000])
def test_saving_and_loading_is_the_identity_to_the_bit(family, changes, shard, tiny, weights, tmp_path):
    config = tiny(family, eos_token_ids=(5,), pad_token_id=0, **changes)
    params = weights(config)
    save_hf(tmp_path, params, config, max_shard_bytes=shard)
    assert read_config(tmp_path) == config
    same(load_params(tmp_path), jax.device_get(params))
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(load_params(tmp_path)))
    assert count_params(config) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.longer
def test_shards_keep_their_size_and_the_index_names_every_tensor(tiny, weights, tmp_path):
    config = tiny()
    save_hf(tmp_path, weights(config), config, max_shard_bytes=5000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [f.name for f in files] == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert set(index["weight_map"]) == set(tensor_shapes(param_specs(config)))
    assert index["metadata"]["total_size"] == 4 * count_params(config)
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 5000
        assert all(index["weight_map"][name] == file.name for name in tensors)


def test_names_and_layout_are_huggingfaces(tiny, weights):
    config = tiny("qwen2")
    params = weights(config)
    tensors = dict(hf_tensors(params, param_specs(config)))
    attention = jax.tree.map(lambda x: x[1], params["layers"]["attention"])
    x, y = np.random.default_rng(0).normal(size=16), np.random.default_rng(1).normal(size=(4, 8))
    for name in "qkv":
        expected = np.einsum("d,dhe->he", x, attention[name]) + attention[name + "_bias"]
        stem = f"model.layers.1.self_attn.{name}_proj."
        np.testing.assert_allclose(tensors[stem + "weight"] @ x + tensors[stem + "bias"], expected.ravel(), rtol=1e-5)
    np.testing.assert_allclose(tensors["model.layers.1.self_attn.o_proj.weight"] @ y.ravel(),
                               np.einsum("he,hed->d", y, attention["o"]), rtol=1e-5)
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], params["layers"]["mlp"]["down"][0].T)
    assert tensors["lm_head.weight"].shape == (48, 16)


def test_bfloat16_files_are_written_and_read(tiny, weights, tmp_path):
    config = tiny()
    params = cast(weights(config), jnp.bfloat16)
    save_hf(tmp_path, params, config)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == ml_dtypes.bfloat16
    same(load_params(tmp_path, dtype=jnp.bfloat16), jax.device_get(params))
    same(load_params(tmp_path), jax.device_get(cast(params, jnp.float32)))


def test_stop_ids_of_the_generation_config_take_precedence(saved):
    config, folder = saved
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert read_config(folder) == dataclasses.replace(config, eos_token_ids=(7, 8))
    (folder / "generation_config.json").write_text("{}")
    assert read_config(folder) == config


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (-np.inf, "bfloat16"), (1e5, "float16")])
def test_weights_that_are_not_finite_are_never_published(value, dtype, tiny, weights, tmp_path):
    config = tiny()
    params = weights(config)
    params["final_norm"] = params["final_norm"].at[3].set(value)
    with pytest.raises(CheckpointError, match=rf"1 tensors hold NaN or infinity .*model.norm.weight, {dtype}"):
        save_hf(tmp_path / "model", cast(params, jnp.dtype(dtype)), config)
    assert not list((tmp_path / "model").glob("*.safetensors*"))


def test_whatever_lies_beside_the_weights_comes_along_unless_the_new_model_has_its_own(tiny, weights, tmp_path):
    kept = ["tokenizer.json", "chat_template.jinja", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model",
            "LICENSE", "additional_chat_templates/tool_use.jinja"]
    left = ["pytorch_model.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.py",
            "adapter_config.json", "optimizer.pt", "onnx/config.json", "checkpoint-5/config.json", ".gitattributes"]
    for name in kept + left:
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    (tmp_path / "from" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 40}))
    save_hf(tmp_path / "to", weights(tiny()), tiny(eos_token_ids=(5,)), tokenizer_from=tmp_path / "from")
    copied = {str(p.relative_to(tmp_path / "to")) for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert copied == {*kept, "config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((tmp_path / "to" / "generation_config.json").read_text()) == {
        "temperature": 0.6, "top_p": 0.9, "do_sample": True, "bos_token_id": None, "eos_token_id": [5],
        "pad_token_id": None}


def test_a_template_that_takes_the_place_of_the_own_leaves_no_named_ones(tiny, weights, tmp_path):
    (tmp_path / "from" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "from" / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    save_hf(tmp_path / "to", weights(tiny()), tiny(), tokenizer_from=tmp_path / "from", chat_template="new")
    assert not (tmp_path / "to" / "additional_chat_templates").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_that_the_umask_gives(umask, tiny, weights, tmp_path):
    before = os.umask(umask)
    try:
        save_hf(tmp_path, weights(tiny()), tiny(), max_shard_bytes=5000)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("source", [{}, {"chat_template": "old"}, {"chat_template": [{"name": "default"}]}], ids=str)
def test_a_chat_template_takes_the_place_of_the_tokenizers_own(source, tiny, weights, tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "chat_template.jinja").write_text("old")
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps({**source, "eos_token": "</s>"}))
    save_hf(tmp_path / "to", weights(tiny()), tiny(), tokenizer_from=tmp_path / "from", chat_template="é\n")
    assert (tmp_path / "to" / "chat_template.jinja").read_text() == "é\n"
    written = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "</s>", **({"chat_template": "é\n"} if source else {})}
    assert (tmp_path / "from" / "chat_template.jinja").read_text() == "old"


def test_a_missing_tensor_is_named(saved):
    rewrite(saved[1], lambda t: t.pop("model.layers.1.self_attn.q_norm.weight"))
    with pytest.raises(CheckpointError, match=r"qwen3 language model: 1 missing.*layers.1.self_attn.q_norm.weight"):
        load_params(saved[1])


def test_an_unexpected_tensor_is_named(saved):
    rewrite(saved[1], lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(CheckpointError, match=r"0 missing \[\], 1 unexpected.*layers.2.mlp.up_proj.weight"):
        load_params(saved[1])


def test_old_rotary_buffers_and_a_tied_head_are_let_pass(tiny, weights, tmp_path):
    config = tiny(tie_embeddings=True)
    save_hf(tmp_path, weights(config), config)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    rewrite(tmp_path, lambda t: t.update(extra | {"lm_head.weight": t["model.embed_tokens.weight"]}))
    same(load_params(tmp_path), jax.device_get(weights(config)))


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[:-1], lambda x: np.concatenate([x[:-1], x[:1]])])
def test_an_output_embedding_that_a_tied_model_would_not_use_is_refused(change, tiny, weights, tmp_path):
    """transformers leaves such a model untied, and computes with it."""
    config = tiny(tie_embeddings=True)
    save_hf(tmp_path, weights(config), config)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": change(t["model.embed_tokens.weight"])}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the input.*tie_word_embeddings to false"):
        load_params(tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_one_file_comes_before_an_old_index_beside_it(complete, tiny, weights, tmp_path):
    config = tiny()
    save_hf(tmp_path, weights(config, 1), config, max_shard_bytes=4000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards[: None if not complete else 0]:
        shard.unlink()
    save_hf(tmp_path, weights(config), config)
    same(load_params(tmp_path), jax.device_get(weights(config)))


@pytest.mark.parametrize(("given", "pad", "bos"), [({"bos_token_id": 40, "pad_token_id": 43}, 43, 40),
                                                   ({"pad_token_id": None}, 5, 4), ({}, 5, 4)])
def test_generation_config_keeps_the_padding_and_bos_of_its_source(given, pad, bos, tiny, weights, tmp_path):
    config = tiny(bos_token_id=4, pad_token_id=5, eos_token_ids=(2, 3))
    (tmp_path / "from").mkdir()
    (tmp_path / "from/generation_config.json").write_text(json.dumps({"top_p": 0.9, **given}))
    save_hf(tmp_path / "to", weights(config), config, generation_from=tmp_path / "from")
    found = json.loads((tmp_path / "to/generation_config.json").read_text())
    assert found == {"top_p": 0.9, "bos_token_id": bos, "pad_token_id": pad, "eos_token_id": [2, 3]}


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight",
                                  "model.layers.1.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
@pytest.mark.parametrize("change", [lambda x: np.ascontiguousarray(x.T), lambda x: x[:-1], lambda x: x.reshape(-1)])
def test_a_wrong_shape_is_an_error_even_with_the_right_number_of_values(name, change, saved):
    shape = load_file(saved[1] / "model.safetensors")[name].shape
    assert shape[0] != shape[1]
    rewrite(saved[1], lambda t: t.update({name: change(t[name])}))
    with pytest.raises(CheckpointError, match=rf"{name}.*config.json implies \({shape[0]}, {shape[1]}\)"):
        load_params(saved[1])


@pytest.mark.parametrize(("written", "asked"), [("llama", "qwen2"), ("qwen2", "llama"), ("qwen3", "mistral")])
def test_another_architecture_is_refused(written, asked, tiny, weights, tmp_path):
    save_hf(tmp_path, weights(tiny(written)), tiny(written))
    with pytest.raises(CheckpointError, match=f"does not hold the tensors of a {asked} language model"):
        load_params(tmp_path, tiny(asked))


def test_a_language_model_is_no_reward_model_and_back(tiny, weights, tmp_path):
    config, scored = tiny(), tiny(num_labels=1)
    save_hf(tmp_path / "lm", weights(config), config)
    save_hf(tmp_path / "rm", as_classifier(weights(config), jax.random.key(0), scored), scored)
    with pytest.raises(CheckpointError, match=r"reward model.*1 missing \['score.weight'\], 1 unexpected"):
        load_params(tmp_path / "lm", scored)
    with pytest.raises(CheckpointError, match=r"language model.*1 missing \['lm_head.weight'\], 1 unexpected"):
        load_params(tmp_path / "rm", config)


@pytest.fixture
def sharded(tiny, weights, tmp_path):
    save_hf(tmp_path, weights(tiny()), tiny(), max_shard_bytes=5000)
    return tmp_path


def test_a_missing_shard_is_named(sharded):
    first, *others = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the {len(others) + 1} files .*: {first.name}; copy"):
        load_params(sharded)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors", "a/../../b", "..",
                                  "linked/model.safetensors", "", 5])
def test_an_index_that_points_out_of_its_folder_is_refused(file, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = file
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index.json says that model.norm.weight lies in"):
        stored_tensors(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"].values()))
    index["weight_map"] = dict.fromkeys(index["weight_map"], first)
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"lm_head.weight is not in {first}, where the index says it is"):
        load_params(sharded)


@pytest.mark.parametrize(("dtype", "name"), [(np.int32, "I32"), (np.int8, "I8"), (np.bool_, "BOOL")])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype, name, saved):
    rewrite(saved[1], lambda t: t.update({"model.norm.weight": np.ones(16, dtype)}))
    with pytest.raises(CheckpointError, match=rf"model.norm.weight in model.safetensors is stored as {name}"):
        load_params(saved[1])


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "[" * 100_000, '{"vocab_size": %s}' % ("9" * 5000)])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_file_that_is_no_json_object_is_named(file, text, saved):
    (saved[1] / file).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{file}"):
        read_config(saved[1])


@pytest.mark.parametrize(("key", "value"), [
    ("vocab_size", "48"), ("vocab_size", 48.0), ("vocab_size", -1), ("vocab_size", True), ("vocab_size", None),
    ("num_hidden_layers", 0), ("num_hidden_layers", 10**9), ("num_hidden_layers", [2]), ("hidden_size", {}),
    ("num_attention_heads", 3), ("head_dim", "8"), ("rms_norm_eps", "small"), ("rms_norm_eps", float("nan")),
    ("rope_parameters", 5), ("rope_parameters", {"rope_type": ["l"]}), ("rope_parameters", {"rope_type": "llama3"}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "big"}), ("eos_token_id", "</s>"),
    ("eos_token_id", [5, None]), ("eos_token_id", -3), ("bos_token_id", [1, {}]), ("architectures", 5),
    ("architectures", [["Qwen3ForCausalLM"]]), ("model_type", None), ("model_type", ["qwen3"]), ("layer_types", "full"),
    ("sliding_window", -4), ("hidden_act", 7), ("tie_word_embeddings", "yes"), ("id2label", [1]),
    ("max_position_embeddings", 10**40), ("num_key_value_heads", "2"), ("initializer_range", -1)], ids=str)
def test_a_config_that_no_model_has_is_refused_with_its_name(key, value, saved):
    raw = json.loads((saved[1] / "config.json").read_text())
    (saved[1] / "config.json").write_text(json.dumps(raw | {key: value}))
    (saved[1] / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_params(saved[1])


def test_folders_that_hold_no_model_say_so(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        read_config(tmp_path / "nothing")
    whole = (saved[1] / "model.safetensors").read_bytes()
    (saved[1] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .* copy or download it again"):
        load_params(saved[1])
    (saved[1] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*index.json"):
        load_params(saved[1])


def test_a_name_that_is_neither_folder_nor_on_the_hub_says_both(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"neither a folder on this machine nor a hub name"):
        find_model(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"'./missing' is neither a folder on this machine nor a hub name"):
        find_model("./missing")
    with pytest.raises(CheckpointError, match=r"'nobody/nothing' is no folder on this machine, and the hub"):
        find_model("nobody/nothing")


@pytest.mark.parametrize(("name", "own"), [("model", "config.json"), ("policy", "adapter_config.json")])
def test_an_output_folder_says_where_its_model_is(tmp_path, name, own):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is an output folder; its model is {tmp_path}/{name}"):
        find_model(tmp_path)
    assert find_model(tmp_path / name) == tmp_path / name
    (tmp_path / own).write_text("{}")
    assert find_model(tmp_path) == tmp_path


@pytest.mark.parametrize(("asked", "revision"), [("owner/name", None), ("owner/name@main", "main"),
                                                 ("owner/na.me@refs/pr/3", "refs/pr/3"), ("owner/name@0ab1", "0ab1")])
def test_a_hub_name_may_carry_its_revision_and_no_code_is_fetched(asked, revision, monkeypatch, tmp_path):
    def fetch(name, *, revision, ignore_patterns):
        calls.append((name, revision, ignore_patterns))
        return str(tmp_path)

    calls = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert find_model(asked) == find_model(asked, weights=False) == tmp_path
    assert [call[:2] for call in calls] == [(asked.split("@")[0], revision)] * 2
    assert "*.py" in calls[0][2]
    assert ("*.safetensors" in calls[0][2], "*.safetensors" in calls[1][2]) == (False, True)


@pytest.mark.parametrize("name", ["owner/name@", "owner/name@a b", "owner@main", "@main", "owner/name@-x"])
def test_a_revision_that_is_none_is_no_name(name):
    with pytest.raises(CheckpointError, match="nor a hub name"):
        find_model(name)
