import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.config.lora import LoraConfig
from rlhf_jax.models import (
    init_lora,
    init_params,
    load_params,
    merge_lora,
    packed_forward,
    save_adapter,
    save_hf,
    with_dropout,
    with_lora,
)
from rlhf_jax.models.linear import dense
from rlhf_jax.models.lora import TARGETS, Dropout, LoraWeight, lora_specs

LORA = LoraConfig(use_peft=True, lora_r=3, lora_alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 48, (2, 7)).astype(np.int32)


def hidden(params, config):
    ones = np.ones_like(TOKENS)
    return packed_forward(params, config, TOKENS, np.cumsum(ones, 1) - 1, ones, 0 * ones)


def trained_adapter(config, lora=LORA, seed=0):
    adapter = init_lora(jax.random.key(seed), config, lora)
    return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed + 1), x.shape), adapter)


pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.fixture(scope="module")
def model(tiny, weights):
    config = tiny("qwen2")
    return config, weights(config)


@pytest.mark.longer
def test_a_fresh_adapter_changes_nothing_to_the_bit(model):
    config, params = model
    adapter = init_lora(jax.random.key(0), config, LORA)
    assert set(adapter) == set(TARGETS)
    np.testing.assert_array_equal(hidden(with_lora(params, adapter, LORA.scale), config), hidden(params, config))
    merged = merge_lora(params, adapter, LORA.scale)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_dropout_scales_what_it_keeps_and_touches_the_update_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    base, a, b = (jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
                  for i, shape in enumerate([(4, 6), (4, 2), (2, 6)]))
    keys, rate = jax.random.split(jax.random.key(1), 3), 0.4
    dropout = Dropout(keys, jnp.float32(rate))
    kept = np.asarray(dropout(jnp.ones_like(x)) > 0)
    assert 20 < kept.sum() < 50
    found = dense(x, LoraWeight(base, a, b, jnp.float32(2.0), dropout))
    expected = x @ base + 2.0 * (np.where(kept, x, 0) / 0.6) @ a @ b
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.longer
def test_layers_modules_and_rows_drop_different_places_and_none_on_average(model):
    config, params = model
    adapted = with_lora(params, trained_adapter(config), LORA.scale)
    keys = jax.random.split(jax.random.key(0), 64)
    dropped = with_dropout(adapted, keys, 0.3)
    found = [w.dropout.keys for w in jax.tree.leaves(dropped, is_leaf=lambda x: isinstance(x, LoraWeight))
             if isinstance(w, LoraWeight)]
    data = np.concatenate([jax.random.key_data(k).reshape(-1, 2) for k in found])
    assert len(np.unique(data, axis=0)) == len(data) == len(TARGETS) * config.layers * 64
    ones = np.ones((64, 40), np.float32)
    kept = [found[0][0], found[-1][-1]]
    shares = [float((Dropout(k, jnp.float32(0.3))(ones) > 0).mean()) for k in kept]
    np.testing.assert_allclose(shares, 0.7, atol=0.03)
    np.testing.assert_allclose([float(Dropout(k, jnp.float32(0.3))(ones).mean()) for k in kept], 1.0, atol=0.04)
    none = with_dropout(adapted, keys[:2], 0.0)
    np.testing.assert_allclose(hidden(none, config), hidden(adapted, config), rtol=1e-6, atol=1e-6)


def test_a_starts_with_variance_one_over_fan_in_and_modules_differ(tiny):
    config = tiny(embed=64, mlp=128)
    adapter = init_lora(jax.random.key(0), config, LoraConfig(use_peft=True, lora_r=64))
    for module, fan_in in (("q_proj", 64), ("o_proj", 32), ("down_proj", 128)):
        assert float(jnp.std(adapter[module]["a"])) == pytest.approx(fan_in**-0.5, rel=0.05)
        assert not adapter[module]["b"].any()
    assert not np.array_equal(adapter["q_proj"]["a"], adapter["k_proj"]["a"])
    assert not np.array_equal(adapter["q_proj"]["a"][0], adapter["q_proj"]["a"][1])


@pytest.mark.longer
def test_b_may_start_random_instead_with_variance_one_over_the_rank(model):
    config, params = model
    lora = LoraConfig(use_peft=True, lora_r=64, lora_init="b")
    adapter = init_lora(jax.random.key(0), config, lora)
    assert float(jnp.std(adapter["down_proj"]["b"])) == pytest.approx(64**-0.5, rel=0.05)
    assert not any(pair["a"].any() for pair in adapter.values())
    np.testing.assert_array_equal(hidden(with_lora(params, adapter, lora.scale), config), hidden(params, config))
    grads = jax.grad(lambda x: jnp.sum(hidden(with_lora(params, x, lora.scale), config) ** 3))(adapter)
    assert grads["q_proj"]["a"].any()  # the first step moves the factor that is zero, and that alone
    assert not grads["q_proj"]["b"].any()


@pytest.mark.longer
@pytest.mark.parametrize("targets", [tuple(TARGETS), *((name,) for name in TARGETS)])
def test_merged_weights_equal_the_two_matmuls(targets, model):
    config, params = model
    lora = LoraConfig(True, 3, 6.0, targets)
    adapter = trained_adapter(config, lora)
    two, one = with_lora(params, adapter, lora.scale), merge_lora(params, adapter, lora.scale)
    np.testing.assert_allclose(hidden(two, config), hidden(one, config), atol=1e-5)
    assert np.abs(hidden(one, config) - hidden(params, config)).max() > 1e-2
    for module, (room, name) in TARGETS.items():
        moved = not np.array_equal(one["layers"][room][name], params["layers"][room][name])
        assert moved == (module in targets)


@pytest.mark.longer
def test_the_update_is_alpha_over_r_times_a_times_b(model):
    config, params = model
    adapter = trained_adapter(config)
    merged = merge_lora(params, adapter, LORA.scale)
    for module, sizes in (("q_proj", (16, 32)), ("o_proj", (32, 16)), ("down_proj", (32, 16))):
        room, name = TARGETS[module]
        for layer in range(2):
            a, b = (np.asarray(adapter[module][x][layer]) for x in "ab")
            update = (merged["layers"][room][name] - params["layers"][room][name])[layer]
            np.testing.assert_allclose(update.reshape(sizes), 2.0 * a.reshape(sizes[0], 3) @ b.reshape(3, sizes[1]),
                                       atol=1e-5)


@pytest.mark.longer
def test_magnitudes_are_the_lengths_of_the_merged_columns(model):
    """Of DoRA; `forward` has no form of it that is not merged, so an adapter with them is not taken for a plain one."""
    config, params = model
    adapter = trained_adapter(config)
    specs = lora_specs(config, LORA, magnitudes=True)
    dora = {module: {**pair, "m": 1 + jax.random.uniform(jax.random.key(9), specs[module]["m"].shape)}
            for module, pair in adapter.items()}
    plain, merged = merge_lora(params, adapter, LORA.scale), merge_lora(params, dora, LORA.scale)
    for module, (room, name) in TARGETS.items():
        inputs = 2 if module == "o_proj" else 1
        one, other = (np.asarray(tree["layers"][room][name], np.float64) for tree in (merged, plain))
        lengths = np.sqrt((one**2).sum(axis=tuple(range(1, 1 + inputs))))
        np.testing.assert_allclose(lengths, dora[module]["m"], rtol=1e-5)
        assert (np.sign(one) == np.sign(other)).all()
    with pytest.raises(TypeError, match="'m'"):
        with_lora(params, dora, LORA.scale)


@pytest.mark.longer
def test_gradients_flow_to_a_and_b_alone(model):
    config, params = model
    adapter = trained_adapter(config)
    kept = jax.tree.map(np.array, params)
    grads = jax.grad(lambda x: jnp.sum(hidden(with_lora(params, x, LORA.scale), config) ** 3))(adapter)
    assert jax.tree.structure(grads) == jax.tree.structure(adapter)
    for grad in jax.tree.leaves(grads):
        assert float(jnp.abs(grad).max()) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    by_merge = jax.grad(lambda x: jnp.sum(hidden(merge_lora(params, x, LORA.scale), config) ** 3))(adapter)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), grads, by_merge)


def test_names_and_shapes_on_disk_are_pefts(model, tmp_path):
    config, params = model
    adapter = trained_adapter(config)
    save_adapter(tmp_path, adapter, config, LORA, base="some/model")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rooms = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
             "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
    assert set(tensors) == {f"base_model.model.model.layers.{i}.{room}.{module}.lora_{x}.weight"
                            for i in range(2) for module, room in rooms.items() for x in "AB"}
    save_hf(tmp_path / "merged", merge_lora(params, adapter, LORA.scale), config)
    save_hf(tmp_path / "base", params, config)
    merged, base = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base"))
    for module, room in rooms.items():  # PEFT: weight + alpha / r * B @ A
        stem = f"model.layers.1.{room}.{module}"
        a, b = (tensors[f"base_model.model.{stem}.lora_{x}.weight"] for x in "AB")
        np.testing.assert_allclose(merged[stem + ".weight"], base[stem + ".weight"] + 2.0 * b @ a, atol=1e-5)
    raw = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (raw["peft_type"], raw["task_type"], raw["r"], raw["lora_alpha"]) == ("LORA", "CAUSAL_LM", 3, 6.0)
    assert (sorted(raw["target_modules"]), raw["base_model_name_or_path"]) == (sorted(TARGETS), "some/model")
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "base"), jax.device_get(params))


@pytest.mark.longer
def test_the_adapter_follows_the_dtype_of_the_base(model, tiny):
    config, _ = model
    params = init_params(jax.random.key(0), config, jnp.bfloat16)
    adapter = trained_adapter(config)
    assert hidden(with_lora(params, adapter, LORA.scale), config).dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(merge_lora(params, adapter, 1.0))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("bad", "message"), [
    ({"lora_r": 0}, "lora_r = 0"), ({"lora_target_modules": ("q_proj", "lm_head")}, r"\['lm_head'\]"),
    ({"lora_target_modules": ()}, "no entry"),
])
def test_values_that_cannot_work_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(use_peft=True, **bad)


def test_scale_is_alpha_over_r_or_over_its_root():
    assert math.isclose(LoraConfig(use_peft=True, lora_r=8, lora_alpha=4.0).scale, 0.5)
    assert math.isclose(LoraConfig(use_peft=True, lora_r=16, lora_alpha=4.0, use_rslora=True).scale, 1.0)
