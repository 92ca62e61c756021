"""One DPO step against a plain torch implementation, every gradient tensor, dense and LoRA. Needs torch (and peft)."""

import dataclasses
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import (
    init_lora,
    load_adapter,
    load_params,
    merge_lora,
    param_specs,
    read_config,
    save_adapter,
    save_hf,
    with_lora,
)
from rlhf_jax.models.lora import lora_specs
from rlhf_jax.models.save import hf_tensors
from rlhf_jax.training.objectives import Compute, Preference
from rlhf_jax.training.step import make_grads, whole

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("exact_matmul")]
models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "models" / "make_golden.py")))
BETA = 0.3


@pytest.fixture
def data(make_groups, make_reference):
    def no_padding(ids):  # torch gives the padding token's embedding no gradient
        return np.maximum(ids, 1)

    groups = [dataclasses.replace(g, prompt_ids=no_padding(g.prompt_ids), responses=tuple(
        dataclasses.replace(r, ids=no_padding(r.ids)) for r in g.responses))
        for g in make_groups(5, 3, prompt=(2, 7), response=(2, 9))]
    return groups, make_reference(groups, 4)


def our_gradients(config, trained, frozen, assemble, data):
    groups, reference = data
    rows = pack_rows([group_length(g) for g in groups], 64)
    batch = pack(groups, rows, row_shape(groups, rows, 64), len(rows), reference)
    batch = jax.tree.map(lambda x: x[None], batch)
    objective = Preference(Compute(config), PreferenceLoss(beta=BETA))
    grads, loss, _ = jax.jit(make_grads(objective, assemble, jnp.float32))(trained, frozen, batch, np.int32(1))
    return grads, float(loss)


def torch_loss(model, data):
    """DPO written out: one response at a time behind its prompt, summed log-probs of the trained tokens."""
    losses = []
    for group, reference in zip(*data, strict=True):
        sums = []
        for response, known in zip(group.responses, reference, strict=True):
            ids = torch.tensor(np.concatenate([group.prompt_ids, response.ids])[None], dtype=torch.long)
            logps = torch.log_softmax(model(ids).logits[0, len(group.prompt_ids) - 1 : -1].float(), -1)
            logps = logps.gather(1, ids[0, len(group.prompt_ids) :, None])[:, 0]
            sums.append(logps[torch.tensor(response.loss_mask)].sum() - float(np.sum(known)))
        losses += [-torch.nn.functional.logsigmoid(BETA * (sums[chosen] - sums[rejected]))
                   for chosen, rejected in group.pairs]
    return torch.stack(losses).mean()


def compare(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = np.abs(gradient).max()
        assert scale > 0 or "lora_A" in name, name
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-3, atol=1e-3 * scale, err_msg=name)


@pytest.mark.parametrize("name", ["llama3_tied", "gemma2", "gemma3", "olmo2", "phi3", "qwen2_mixed", "qwen3_moe"])
def test_loss_and_every_gradient_of_full_training(name, data, tmp_path):
    models.make(name, tmp_path)
    config = read_config(tmp_path / "lm")
    params = jax.tree.map(jnp.asarray, load_params(tmp_path / "lm", config))
    grads, loss = our_gradients(config, params, {}, whole, data)
    model = models.load(tmp_path / "lm", "CausalLM")
    expected = torch_loss(model, data)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    with torch.no_grad():  # their gradients under the names of their files: saved as if they were the weights
        for weight in model.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    model.save_pretrained(tmp_path / "gradients")
    compare(dict(hf_tensors(grads, param_specs(config))), models.tensors(tmp_path / "gradients"))


@pytest.mark.parametrize("name", ["llama3_tied", "qwen3"])
def test_an_adapter_of_ours_loads_in_peft_with_the_same_loss_gradients_and_merge(name, data, tmp_path):
    peft = pytest.importorskip("peft")
    models.make(name, tmp_path)
    config, lora = read_config(tmp_path / "lm"), LoraConfig(True, 3, 6.0, ("q_proj", "o_proj", "down_proj"))
    params = jax.tree.map(jnp.asarray, load_params(tmp_path / "lm", config))
    adapter = init_lora(jax.random.key(0), config, lora)
    adapter = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
    grads, loss = our_gradients(config, {"lora": adapter}, params,
                                lambda trained, frozen: with_lora(frozen, trained["lora"], lora.scale), data)
    save_adapter(tmp_path / "adapter", adapter, config, lora, str(tmp_path / "lm"))
    model = peft.PeftModel.from_pretrained(models.load(tmp_path / "lm", "CausalLM"), tmp_path / "adapter",
                                           is_trainable=True)
    expected = torch_loss(model, data)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    theirs = {key.replace(".default", ""): weight.grad.numpy() for key, weight in model.named_parameters()
              if weight.requires_grad}
    compare(dict(hf_tensors(grads["lora"], lora_specs(config, lora))), theirs)
    save_hf(tmp_path / "merged", merge_lora(params, adapter, lora.scale), config)
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    merged, ours = models.tensors(tmp_path / "theirs"), models.tensors(tmp_path / "merged")
    assert merged.keys() == ours.keys()
    for key, value in merged.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-6, err_msg=key)


def test_an_adapter_written_by_peft_loads_here(tmp_path):
    peft = pytest.importorskip("peft")
    models.make("llama3_tied", tmp_path)
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(models.load(tmp_path / "lm", "CausalLM"), settings)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight))
    model.save_pretrained(tmp_path / "adapter")
    config = read_config(tmp_path / "lm")
    adapter = load_adapter(tmp_path / "adapter", config)
    assert (adapter.lora, adapter.score) == (LoraConfig(True, 2, 8, ("up_proj", "v_proj")), None)
    params = jax.tree.map(jnp.asarray, load_params(tmp_path / "lm", config))
    save_hf(tmp_path / "merged", merge_lora(params, adapter.params, adapter.lora.scale), config)
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    ours = models.tensors(tmp_path / "merged")
    for key, value in models.tensors(tmp_path / "theirs").items():
        np.testing.assert_allclose(ours[key], value, atol=1e-6, err_msg=key)


def test_the_adapter_of_a_reward_model_brings_its_head_to_peft(ours_scores, tmp_path):
    peft = pytest.importorskip("peft")
    models.make("llama2", tmp_path)
    config, lora = read_config(tmp_path / "rm"), LoraConfig(True, 2, 4.0, ("q_proj",))
    adapter = init_lora(jax.random.key(0), config, lora)
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    params = jax.tree.map(jnp.asarray, load_params(tmp_path / "rm", config))
    score = params["score"] + 1.0
    save_adapter(tmp_path / "adapter", adapter, config, lora, str(tmp_path / "rm"), score)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=2)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(models.TOKENS, dtype=torch.long)).logits.numpy()
    merged = {**merge_lora(params, adapter, lora.scale), "score": score}
    np.testing.assert_allclose(ours_scores(merged, config), theirs, atol=1e-4)
    found = load_adapter(tmp_path / "adapter", config)
    np.testing.assert_array_equal(found.score, score)


@pytest.fixture
def ours_scores():
    from rlhf_jax.models import packed_forward, score_heads

    def scores(params, config):
        places = np.broadcast_to(np.arange(models.TOKENS.shape[1], dtype=np.int32), models.TOKENS.shape)
        forward = jax.jit(partial(packed_forward, config=config))
        hidden = forward(params, tokens=models.TOKENS, positions=places, group_ids=np.ones_like(places),
                         branch_ids=np.zeros_like(places))
        return np.asarray(score_heads(params, hidden)[:, -1])

    return scores
