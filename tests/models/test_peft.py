"""Adapters as PEFT itself writes them: read exactly, or refused by the name of the setting."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.models import (
    CheckpointError,
    adapter_base,
    init_lora,
    load_adapter,
    load_params,
    merge_lora,
    packed_forward,
    save_adapter,
    save_hf,
    vocab_logits,
)
from rlhf_jax.parallel import make_mesh
from rlhf_jax.workflow.checkpoint import Checkpoint

PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
TOKENS = np.arange(2 * 12).reshape(2, 12).astype(np.int32)


@pytest.fixture
def base(tiny, weights, tmp_path):
    config = tiny(eos_token_ids=(5,))
    save_hf(tmp_path / "base", weights(config), config)
    return config, tmp_path / "base"


def logits_of(params, config):
    places = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
    hidden = packed_forward(params, config, TOKENS, places, np.ones_like(places), np.zeros_like(places))
    return np.asarray(vocab_logits(params, config, hidden))


def pefts(folder, base, settings):
    """An adapter with no zero in it, saved by PEFT; its logits."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("more", [
    {}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": False}, {"use_dora": True}, {"use_dora": True, "use_rslora": True},
    {"lora_dropout": 0.3}, {"task_type": "CAUSAL_LM", "revision": "main"}], ids=str)
def test_what_is_read_computes_what_peft_computes(more, base, exact_matmul, tmp_path):
    config, folder = base
    expected = pefts(tmp_path / "adapter", folder, PLAIN | more)
    adapter = load_adapter(tmp_path / "adapter", config)
    params = jax.tree.map(jnp.asarray, load_params(folder, config))
    plain = logits_of(params, config)
    found = logits_of(merge_lora(params, adapter.params, adapter.lora.scale), config)
    assert np.abs(plain - expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("more", "named"), [
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"), ({"bias": "lora_only"}, "bias = 'lora_only'"),
    ({"lora_bias": True}, "lora_bias = True"), ({"modules_to_save": ["norm"]}, "modules_to_save = .'norm'"),
    ({"layers_to_transform": [1]}, "layers_to_transform"), ({"fan_in_fan_out": True}, None),
    ({"layer_replication": [(0, 2), (0, 2)]}, "layer_replication"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"), ({"target_modules": ["lm_head"]}, "lm_head"),
    ({"target_modules": r".*q_proj"}, "q_proj"), ({"exclude_modules": ["model.layers.0.self_attn.q_proj"]}, "exclude"),
], ids=str)
def test_settings_of_peft_that_compute_something_else_are_refused_by_name(more, named, base, tmp_path):
    config, folder = base
    expected = pefts(tmp_path / "adapter", folder, PLAIN | more)
    if named is None:  # PEFT takes the setting back by itself
        adapter = load_adapter(tmp_path / "adapter", config)
        params = merge_lora(jax.tree.map(jnp.asarray, load_params(folder)), adapter.params, adapter.lora.scale)
        np.testing.assert_allclose(logits_of(params, config), expected, atol=1e-4)
        return
    with pytest.raises(CheckpointError, match=named):
        load_adapter(tmp_path / "adapter", config)


@pytest.mark.torch
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"]], ids=" ".join)
def test_embeddings_that_an_adapter_of_peft_brings_replace_those_of_the_base(saved, tiny, weights, exact_matmul,
                                                                            tmp_path):
    """As those do that were trained with new tokens. The weights are moved, so that the base's own would be seen."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    config = tiny(eos_token_ids=(5,), tie_embeddings=False)
    save_hf(tmp_path / "base", weights(config), config)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
                                peft.LoraConfig(**PLAIN, modules_to_save=saved))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        expected = model.eval()(torch.tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path / "adapter")
    checkpoint = Checkpoint.find(tmp_path / "adapter", base_model=str(tmp_path / "base"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    lone = checkpoint.params(mesh)
    shared = checkpoint.over(checkpoint.base_params(mesh), mesh)
    for params in (lone, shared):
        np.testing.assert_allclose(logits_of(params, checkpoint.config)[..., : config.vocab_size], expected,
                                   atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_one_side_of_tied_embeddings_is_refused(name, adapter, base):
    tied = dataclasses.replace(base[0], tie_embeddings=True)
    with pytest.raises(CheckpointError, match=f"modules_to_save = .'{name}'.*does not tie them"):
        load_adapter(adapter(modules_to_save=[name]), tied)


@pytest.mark.torch
def test_a_reward_adapter_of_peft_brings_its_head(base, tiny, weights, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    config = tiny(num_labels=1)
    save_hf(tmp_path / "rm", weights(config), config)
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm"),
                                peft.LoraConfig(**PLAIN, task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    head = model.base_model.model.score.modules_to_save["default"].weight
    np.testing.assert_array_equal(load_adapter(tmp_path / "adapter", config).score, head.detach().numpy())
    assert torch.is_tensor(head)


@pytest.fixture
def adapter(base, tmp_path):
    """A folder with an adapter of ours, and a function that changes a setting of it."""
    config, folder = base
    lora = LoraConfig(True, 4, 6.0, ("down_proj", "q_proj"))
    save_adapter(tmp_path / "own", init_lora(jax.random.key(0), config, lora), config, lora, str(folder))
    path = tmp_path / "own" / "adapter_config.json"
    raw = json.loads(path.read_text())

    def change(**settings):
        path.write_text(json.dumps({k: v for k, v in (raw | settings).items() if v != "absent"}))
        return tmp_path / "own"

    return change


@pytest.mark.parametrize(("settings", "named"), [
    ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"), ({"init_lora_weights": "lora_ga"}, "'lora_ga'"),
    ({"init_lora_weights": "corda"}, "'corda'"), ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
    ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow = 3"), ({"bias": "all"}, "bias = 'all'"),
    ({"use_qalora": True}, "use_qalora"), ({"modules_to_save": ["norm"]}, "modules_to_save"),
    ({"modules_to_save": "score"}, "modules_to_save"), ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"r": "4"}, "r is '4'"), ({"r": True}, "r is True"), ({"r": "absent"}, "lacks r"),
    ({"target_modules": None}, "target_modules is None"), ({"target_modules": [["q_proj"]]}, "adapts"),
    ({"target_modules": []}, "adapts"), ({"lora_alpha": None}, "lora_alpha is None"), ({"r": 2}, r"shape \(4, 16\)"),
], ids=str)
def test_a_setting_that_is_not_known_to_be_harmless_is_refused_by_name(settings, named, adapter, base):
    with pytest.raises(CheckpointError, match=named):
        load_adapter(adapter(**settings), base[0])


def test_settings_that_are_not_set_are_no_settings(adapter, base):
    folder = adapter(a_setting_of_tomorrow=None, another={}, third=False, fourth=[], peft_version="9.9")
    assert load_adapter(folder, base[0]).lora == LoraConfig(True, 4, 6.0, ("down_proj", "q_proj"))


def test_rank_stabilised_updates_are_scaled_by_alpha_over_the_root_of_the_rank(adapter, base):
    assert load_adapter(adapter(use_rslora=True), base[0]).lora.scale == pytest.approx(6 / 4**0.5)


def test_a_rank_stabilised_adapter_of_ours_is_one_for_peft_too(base, tmp_path):
    config, folder = base
    lora = LoraConfig(True, 4, 6.0, ("down_proj", "q_proj"), use_rslora=True)
    save_adapter(tmp_path / "own", init_lora(jax.random.key(0), config, lora), config, lora, str(folder))
    assert json.loads((tmp_path / "own/adapter_config.json").read_text())["use_rslora"] is True
    assert load_adapter(tmp_path / "own", config).lora == lora


def test_the_base_of_an_adapter_has_its_revision(adapter, base):
    assert adapter_base(adapter(base_model_name_or_path="owner/name", revision="abc")) == "owner/name@abc"
    assert adapter_base(adapter(base_model_name_or_path="owner/name", revision=None)) == "owner/name"
    assert adapter_base(adapter(revision="main")) == str(base[1])
    assert adapter_base(adapter(base_model_name_or_path=None)) is None
    assert adapter_base(base[1]) is None
