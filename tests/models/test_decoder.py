import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import (
    REMAT_POLICIES,
    Rope,
    as_classifier,
    cast,
    init_params,
    output_head,
    packed_forward,
    param_specs,
    score_heads,
)
from rlhf_jax.models.params import map_specs, merged, unstacked
from rlhf_jax.models.rope import frequencies, rope_tables, rotate

TOKENS = np.random.default_rng(0).integers(0, 48, (2, 9)).astype(np.int32)


def hidden(params, config, tokens=TOKENS, **options):
    ones = np.ones_like(tokens)
    return packed_forward(params, config, tokens, np.cumsum(ones, 1) - 1, ones, 0 * ones, **options)


pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.mark.longer
@pytest.mark.parametrize(("family", "changes"), [
    ("llama", {}), ("qwen2", {}), ("gemma3_text", {}), ("qwen3_moe", {"experts": 4, "experts_per_token": 2})])
def test_layers_apart_and_products_merged_change_no_hidden_state(family, changes, tiny, weights):
    """Grouped heads with biases, local layers with norms of queries and keys, and experts, which stay apart."""
    config = tiny(family, **changes)
    params = weights(config)
    expected, apart = hidden(params, config), unstacked(params)
    np.testing.assert_allclose(hidden(apart, config), expected, atol=1e-5)
    one = merged(apart)["layers"][0]
    assert not set(one["attention"]) & set("qkv")
    assert ("gate_up" in one["mlp"]) == ("experts" not in changes)
    np.testing.assert_allclose(hidden(merged(apart), config), expected, atol=1e-5)


@pytest.mark.longer
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_hidden_states_equal_the_decoder_written_out_plainly(family, tiny, weights, plain):
    config = tiny(family)
    params = weights(config)
    expected = jax.vmap(lambda row: plain(params, config, row))(TOKENS)
    np.testing.assert_allclose(hidden(params, config), expected, atol=2e-5)


@pytest.mark.longer
def test_the_window_matters_from_the_first_token_beyond_it_on(tiny, weights):
    params = weights(tiny())
    full, near = hidden(params, tiny()), hidden(params, tiny(window=4))
    np.testing.assert_allclose(near[:, :4], full[:, :4], atol=1e-6)
    assert np.abs(near[:, 4:] - full[:, 4:]).max(-1).min() > 1e-4


@pytest.mark.longer
def test_what_is_recomputed_changes_neither_values_nor_gradients(tiny, weights):
    config = tiny("qwen3")
    params = weights(config)

    def loss(params, remat):
        return jnp.sum(hidden(params, config, remat=remat) ** 3)

    found = {name: jax.value_and_grad(loss)(params, name) for name in REMAT_POLICIES}
    assert set(found) == {"none", "full", "dots"}
    for name in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found[name], found["none"])


@pytest.mark.longer
def test_recomputing_saves_memory(tiny):
    config = tiny(layers=16, embed=32, mlp=256)
    tokens = np.zeros((1, 128), np.int32)
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))

    def temporary(remat):
        grad = jax.jit(jax.grad(lambda p: jnp.sum(hidden(p, config, tokens, remat=remat))))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary("full") < temporary("dots") < temporary("none")


def naive_rotation(x, position, theta):
    """Rotates (x_i, x_{i + d/2}) by position * theta^(-2i/d), pair by pair."""
    size = len(x)
    out = np.array(x, np.float64)
    for i in range(size // 2):
        angle = position * theta ** (-2 * i / size)
        a, b = x[i], x[i + size // 2]
        out[i], out[i + size // 2] = (a * math.cos(angle) - b * math.sin(angle),
                                      b * math.cos(angle) + a * math.sin(angle))
    return out


def test_rope_rotates_pair_by_pair():
    rope = Rope(100.0)
    positions = np.array([[0, 1, 5], [7, 2, 1000]])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 8)).astype(np.float32)
    out = rotate(jnp.asarray(x), rope_tables(rope, 8, jnp.asarray(positions)))
    for index in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(out[index], naive_rotation(x[index], positions[index[:2]], 100.0), atol=1e-3)
    np.testing.assert_array_equal(out[0, 0], x[0, 0])


def test_rope_scores_depend_on_the_distance_alone():
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        turned = [rotate(jnp.asarray(x), rope_tables(Rope(), 8, jnp.array([p]))) for x, p in ((q, i), (k, j))]
        return float(jnp.vdot(*turned))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_yarn_keeps_fast_dimensions_slows_slow_ones_and_scales_by_the_log_of_the_factor():
    """Peng et al., arXiv 2309.00071, section 3: by turns over the first context, from 32 down to 1."""
    plain = frequencies(Rope(500_000.0), 64)
    stretched = frequencies(Rope(500_000.0, "yarn", 8.0, original_max_position=8192), 64)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(stretched[turns > 50], plain[turns > 50], rtol=1e-6)
    np.testing.assert_allclose(stretched[turns < 0.6], plain[turns < 0.6] / 8, rtol=1e-6)
    between = stretched / plain
    assert (np.diff(between) <= 1e-6).all()
    assert 4 < ((between < 0.99) & (between > 0.13)).sum() < 12
    scaled = rope_tables(Rope(attention_factor=1.5), 8, jnp.array([3]))
    for ours, one in zip(scaled, rope_tables(Rope(), 8, jnp.array([3])), strict=True):
        np.testing.assert_allclose(ours, 1.5 * one, rtol=1e-6)


def test_llama3_scaling_keeps_short_waves_slows_long_ones_and_blends_between():
    plain = frequencies(Rope(500_000.0), 64)
    scaled = frequencies(Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192), 64)
    waves = 2 * np.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    assert short.sum() > 3
    assert long.sum() > 3
    assert (~short & ~long).sum() > 1
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    for i in np.flatnonzero(~short & ~long):
        share = (8192 / waves[i] - 1) / 3
        assert scaled[i] == pytest.approx((1 - share) * plain[i] / 8 + share * plain[i], rel=1e-5)


def test_linear_scaling_divides_all_frequencies_and_a_fraction_rotates_the_first_dimensions_only():
    np.testing.assert_allclose(frequencies(Rope(kind="linear", factor=8.0), 64), frequencies(Rope(), 64) / 8, rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(1, 2, 8)).astype(np.float32)
    out = rotate(jnp.asarray(x), rope_tables(Rope(fraction=0.5), 8, jnp.array([3])))
    np.testing.assert_array_equal(out[..., 4:], x[..., 4:])
    whole = rotate(jnp.asarray(x[..., :4]), rope_tables(Rope(), 4, jnp.array([3])))
    np.testing.assert_array_equal(out[..., :4], whole)


def test_a_classifier_is_the_backbone_under_a_fresh_float32_head(tiny, weights):
    config, scored = tiny(), tiny(num_labels=3)
    params = weights(config)
    model = as_classifier(params, jax.random.key(5), scored)
    assert "head" not in model
    jax.tree.map(np.testing.assert_array_equal, {k: v for k, v in model.items() if k != "score"},
                 {k: v for k, v in params.items() if k != "head"})
    map_specs(lambda spec, x: np.testing.assert_array_equal(spec.shape, x.shape), param_specs(scored), model)
    states = hidden(model, scored)
    np.testing.assert_allclose(score_heads(model, states), states @ model["score"].T, atol=1e-5)
    narrow = cast(model, jnp.bfloat16)
    assert score_heads(narrow, states.astype(jnp.bfloat16)).dtype == jnp.float32
    assert as_classifier(narrow, jax.random.key(5), scored)["score"].dtype == jnp.bfloat16
    other = as_classifier(params, jax.random.key(6), scored)["score"]
    assert np.abs(other - model["score"]).max() > 0.01


def test_a_tied_model_has_one_table(tiny):
    params = init_params(jax.random.key(0), tiny(tie_embeddings=True))
    assert "head" not in params
    assert output_head(params) is params["embed"]
    untied = init_params(jax.random.key(0), tiny())
    assert output_head(untied) is untied["head"]


@pytest.mark.longer
def test_fresh_weights_have_the_spread_the_config_says(tiny):
    params = init_params(jax.random.key(0), tiny(vocab_size=512, embed=64, mlp=256, initializer_range=0.02))
    layers = params["layers"]
    for array, spread in ((params["embed"], 0.02), (params["head"], 0.02), (layers["mlp"]["up"], 0.02),
                          (layers["mlp"]["down"], 0.01), (layers["attention"]["o"], 0.01)):
        assert float(jnp.std(array)) == pytest.approx(spread, rel=0.05)
    assert (layers["mlp_norm"] == 1).all()
    assert not np.array_equal(layers["mlp"]["up"], layers["mlp"]["gate"])


@pytest.mark.longer
def test_forward_works_under_strict_dtype_promotion_in_bfloat16(tiny, weights):
    config = tiny("qwen3", window=3)
    with jax.numpy_dtype_promotion("strict"):
        states = hidden(cast(weights(config), jnp.bfloat16), config, jnp.asarray(TOKENS))
    assert states.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(states, np.float32)).all()
