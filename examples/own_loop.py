"""A loss of `rlhf_jax.losses` in a Flax and Optax loop of your own: DPO of a small model on made-up pairs.

    python examples/own_loop.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import losses

VOCAB, WIDTH, LENGTH = 64, 32, 12


class Bigram(nn.Module):
    """Predicts a token from the one before it; any module that gives hidden states [N, T, D] will do."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH, name="embed")(tokens)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(x)))


def summed(params, tokens):
    """[N] log-probability of each sequence [N, T] after its first token; no [N, T, V] logits are made."""
    hidden = Bigram().apply({"params": params}, tokens[:, :-1])
    return losses.token_logps(hidden, params["embed"]["embedding"], tokens[:, 1:]).sum(axis=-1)


def pairs(key, count):
    """Sequences that count upwards are preferred to random ones; two [N, T]."""
    first, rest = jax.random.split(key)
    start = jax.random.randint(first, (count, 1), 0, VOCAB)
    return (start + jnp.arange(LENGTH)) % VOCAB, jax.random.randint(rest, (count, LENGTH), 0, VOCAB)


def loss(params, reference, chosen, rejected):
    length = jnp.full(len(chosen), LENGTH - 1.0)
    pair = losses.PairLogps(summed(params, chosen), summed(params, rejected), summed(reference, chosen),
                            summed(reference, rejected), length, length)
    better, worse = losses.implicit_rewards(pair, beta=0.1)
    return losses.sigmoid_loss(pair, beta=0.1).mean(), (better > worse).mean()


def main(steps=60):
    reference = Bigram().init(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))["params"]
    params, optimizer = reference, optax.adamw(3e-3)
    state, step = optimizer.init(params), jax.jit(jax.value_and_grad(loss, has_aux=True))
    for number in range(steps):
        (value, accuracy), grads = step(params, reference, *pairs(jax.random.key(number + 1), 32))
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    print(f"loss {value:.3f}, reward accuracy {accuracy:.2f}")
    return float(value), float(accuracy)


if __name__ == "__main__":
    main()
