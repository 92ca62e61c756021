"""Weights in eight bits: how far they are from the whole ones, and that every product takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import output_head, packed_forward, param_specs
from rlhf_jax.models.heads import vocab_logits
from rlhf_jax.models.int8 import Int8Weight, count_int8, in_int8, int8_rows
from rlhf_jax.models.linear import dense
from rlhf_jax.models.params import merged, unstacked

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOKENS = np.random.default_rng(0).integers(0, 48, (2, 9)).astype(np.int32)


def hidden(params, config):
    ones = np.ones_like(TOKENS)
    return packed_forward(params, config, TOKENS, np.cumsum(ones, 1) - 1, ones, 0 * ones)


def whole(tree):
    """The weights that eight bits stand for."""
    return jax.tree.map(lambda w: w.values * jnp.expand_dims(w.scale, tuple(range(w.values.ndim - w.scale.ndim)))
                        if isinstance(w, Int8Weight) else w, tree, is_leaf=lambda w: isinstance(w, Int8Weight))


def spread(tree, specs):
    """The same of a whole tree, whose layers are stacked on a leading axis and whose head has its output first."""

    def one(spec, weight):
        if not isinstance(weight, Int8Weight):
            return weight
        inputs = tuple(range(1, 1 + spec.inputs)) if spec.axes[0] == "layers" else (1,)
        return weight.values * jnp.expand_dims(weight.scale, inputs)

    return jax.tree.map(one, specs, tree, is_leaf=lambda x: hasattr(x, "axes"))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_no_weight_is_off_by_more_than_half_a_step(scale, axes):
    x = scale * np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    x[..., 1] = 0.0
    values, steps = int8_rows(jnp.asarray(x), axes)
    assert (values.dtype, steps.dtype, steps.shape) == (jnp.int8, jnp.float32, x.shape[len(axes):])
    error = np.abs(np.asarray(values, np.float32) * np.expand_dims(steps, axes) - x)
    assert (error <= 0.5001 * np.expand_dims(steps, axes)).all()
    assert np.abs(np.asarray(values, np.int32)).max() == 127
    np.testing.assert_array_equal(values[..., 1], 0)


@pytest.mark.parametrize(("shape", "inputs"), [((8, 3, 4), 1), ((3, 4, 8), 2)])
def test_a_product_is_that_of_the_weights_it_stands_for(shape, inputs):
    rng = np.random.default_rng(1)
    weight = Int8Weight(*int8_rows(jnp.asarray(rng.normal(size=shape), jnp.float32), tuple(range(inputs))))
    x = jnp.asarray(rng.normal(size=(5, *shape[:inputs])), jnp.float32)
    np.testing.assert_allclose(dense(x, weight, inputs), np.tensordot(x, whole(weight), inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.longer
@pytest.mark.parametrize(("family", "changes"), [
    ("llama", {"tie_embeddings": False}), ("qwen2", {}), ("gemma3_text", {}),
    ("qwen3_moe", {"experts": 4, "experts_per_token": 2})])
def test_hidden_states_and_logits_are_those_of_the_weights_they_stand_for(family, changes, tiny, weights):
    """Also with layers one by one and products merged, as decoding on GPUs has them."""
    config = tiny(family, **changes)
    params = in_int8(weights(config), config)
    expected = hidden(spread(params, param_specs(config)), config)
    for form in (params, unstacked(params), merged(unstacked(params))):
        found = hidden(form, config)
        np.testing.assert_allclose(found, expected, atol=3e-5)
    np.testing.assert_allclose(vocab_logits(params, config, expected),
                               vocab_logits(spread(params, param_specs(config)), config, expected), atol=1e-4)
    assert np.abs(expected - hidden(weights(config), config)).max() > 1e-4  # it does round


@pytest.mark.longer
def test_what_is_read_whole_for_every_token_is_in_eight_bits_and_nothing_else(tiny, weights):
    config = tiny(qkv_bias=True, tie_embeddings=False)
    params = in_int8(weights(config), config)
    kept = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda w: isinstance(w, Int8Weight))
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, w in kept if isinstance(w, Int8Weight)}
    assert names == {f"layers/attention/{name}" for name in "qkvo"} | {
        f"layers/mlp/{name}" for name in ("gate", "up", "down")} | {"head"}
    assert output_head(params).values.dtype == jnp.int8


def test_what_is_not_converted_is_not_copied(tiny, weights):
    config = tiny("qwen3_moe", experts=4, experts_per_token=2, tie_embeddings=True)
    params = weights(config)
    found = in_int8(params, config)
    assert found["embed"] is params["embed"]
    assert all(found["layers"]["mlp"][name] is params["layers"]["mlp"][name] for name in ("gate", "up", "down"))
    converted = sum(w.values.size for w in jax.tree.leaves(found, is_leaf=lambda w: isinstance(w, Int8Weight))
                    if isinstance(w, Int8Weight))
    assert converted == count_int8(config)


def test_a_tied_embedding_and_experts_stay(tiny, weights):
    config = tiny("qwen3_moe", experts=4, experts_per_token=2, tie_embeddings=True)
    params = in_int8(weights(config), config)
    assert not isinstance(output_head(params), Int8Weight)
    assert not any(isinstance(params["layers"]["mlp"][name], Int8Weight) for name in ("gate", "up", "down", "router"))
    assert isinstance(params["layers"]["attention"]["q"], Int8Weight)
