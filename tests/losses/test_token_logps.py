import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import token_logps, token_logps_and_stats


def plain(hidden, head, targets, softcap=None):
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]


def problem(shape=(3, 10), width=8, vocab=17):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (*shape, width))
    head = jax.random.normal(keys[1], (vocab, width))
    return hidden, head, jax.random.randint(keys[2], shape, 0, vocab)


@pytest.mark.longer
@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 64])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_equal_the_plain_form_for_every_chunk(chunk, softcap):
    hidden, head, targets = problem()
    weights = jnp.linspace(-1.0, 2.0, targets.size).reshape(targets.shape)

    def ours(h, w):
        return jnp.sum(weights * token_logps(h, w, targets, chunk=chunk, softcap=softcap))

    def theirs(h, w):
        return jnp.sum(weights * plain(h, w, targets, softcap))

    np.testing.assert_allclose(
        token_logps(hidden, head, targets, chunk=chunk, softcap=softcap), plain(hidden, head, targets, softcap),
        atol=1e-5)
    for got, expected in zip(jax.grad(ours, (0, 1))(hidden, head), jax.grad(theirs, (0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_pieces_are_even_so_that_no_logits_are_computed_for_padding():
    hidden, head, targets = problem((1, 40))  # 32 and 8 of 32 would be padded to 64 positions; 24 and 16 of 24 are 48
    np.testing.assert_allclose(token_logps(hidden, head, targets, chunk=32), plain(hidden, head, targets), atol=1e-5)
    program = str(jax.make_jaxpr(lambda h: token_logps(h, head, targets, chunk=32))(hidden))
    assert "f32[1,24,17]" in program
    assert "f32[1,32,17]" not in program


@pytest.mark.longer
def test_works_on_one_row_and_on_any_number_of_leading_axes():
    hidden, head, targets = problem((2, 2, 5))
    whole = token_logps(hidden, head, targets, chunk=2)
    np.testing.assert_allclose(token_logps(hidden[1, 0], head, targets[1, 0], chunk=2), whole[1, 0], atol=1e-6)


@pytest.mark.longer
def test_stats_equal_closed_forms_and_carry_no_gradient():
    hidden, head, targets = problem()
    logps, stats = token_logps_and_stats(hidden, head, targets, chunk=4)
    log_probs = jax.nn.log_softmax(hidden @ head.T)
    probs = jnp.exp(log_probs)
    np.testing.assert_allclose(logps, plain(hidden, head, targets), atol=1e-5)
    np.testing.assert_allclose(stats.entropy, -(probs * log_probs).sum(-1), atol=1e-5)
    np.testing.assert_allclose(stats.greedy, log_probs.argmax(-1) == targets)
    np.testing.assert_allclose(stats.mean_logit, (hidden @ head.T).mean(-1), atol=1e-5)
    np.testing.assert_allclose(stats.log_sum_p2, jnp.log((probs**2).sum(-1)), atol=1e-5)
    grads = jax.grad(lambda h: token_logps_and_stats(h, head, targets)[1].entropy.sum())(hidden)
    assert not np.any(grads)


@pytest.mark.longer
def test_temporary_memory_does_not_grow_with_the_number_of_tokens_times_the_vocabulary():
    vocab, width, tokens = 32_000, 16, 2048
    hidden = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    head = jax.ShapeDtypeStruct((vocab, width), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def temp_bytes(fn):
        grad = jax.jit(jax.grad(lambda h, w, t: fn(h, w, t).sum(), (0, 1)))
        return grad.lower(hidden, head, targets).compile().memory_analysis().temp_size_in_bytes

    chunked = temp_bytes(lambda h, w, t: token_logps(h, w, t, chunk=64))
    assert chunked < tokens * vocab * 4 / 4
    assert chunked < temp_bytes(plain) / 4


@pytest.mark.longer
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_padding_rows_of_the_head_have_no_probability_no_gradient_and_no_part_in_the_statistics(softcap):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head = jax.random.normal(keys[0], (2, 7, 8)), jax.random.normal(keys[1], (16, 8))
    targets = jax.random.randint(keys[2], (2, 7), 0, 11)

    def total(hidden, head, vocab_size):
        logps, stats = token_logps_and_stats(hidden, head, targets, chunk=3, softcap=softcap, vocab_size=vocab_size)
        return jnp.sum(logps * jnp.arange(7.0)), (logps, stats)

    gradients = jax.value_and_grad(total, (0, 1), has_aux=True)
    with jax.default_matmul_precision("highest"):
        (_, padded), (to_hidden, to_head) = gradients(hidden, head, 11)
        (_, plain), (plain_hidden, plain_head) = gradients(hidden, head[:11], None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), padded, plain)
    np.testing.assert_allclose(to_hidden, plain_hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_head[:11], plain_head, rtol=1e-5, atol=1e-5)
    assert not np.asarray(to_head[11:]).any()
