# %% [markdown]
# # DPO from scratch on packed rows
#
# A tiny language model learns to write postcards, then which ones people prefer: fine-tuning and DPO in one loop, over
# the packed rows that all stages of `rlhf_jax` use. It looks behind the public names on purpose; to train for real, use
# `rlhf-jax sft` and `rlhf-jax dpo`. About a minute on two CPU cores; jupytext opens it as a notebook.

# %%
import dataclasses
import json
import tempfile
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rlhf_jax
from rlhf_jax import losses
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.data.world import write_world
from rlhf_jax.models import DecoderConfig, init_params, output_head, packed_forward, save_hf

folder = Path(tempfile.mkdtemp())
write_world(folder, WorldConfig(sft_rows=1500, preference_rows=1000))
names = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
config = DecoderConfig("llama", vocab_size=len(names), embed=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=192,
                       max_position=256, tie_embeddings=True, bos_token_id=1, eos_token_ids=(4,), pad_token_id=0)
save_hf(folder / "base", init_params(jax.random.key(0), config), config, tokenizer_from=folder / "tokenizer")
policy = rlhf_jax.load(folder / "base")

# %% [markdown]
# `groups` renders prompts and answers to token ids, once, with a mask of the tokens to train on. A pair is one group
# with two responses.


# %%
def read(name, *answers):
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    sides = [policy.groups([row["prompt"] for row in rows], [row[answer] for row in rows]) for answer in answers]
    return [dataclasses.replace(first, responses=tuple(one.responses[0] for one in (first, *rest)),
                                pairs=((0, 1),) if rest else ()) for first, *rest in zip(*sides, strict=True)]


def packed(groups, length=256):
    """All groups in rows of one shape: arrays with the rows on the first axis."""
    rows = pack_rows([group_length(group) for group in groups], length)
    return pack(groups, rows, row_shape(groups, rows, length), len(rows))


sft, pairs = read("sft", "completion"), read("preference", "chosen", "rejected")
batch = packed(pairs[:4])
print(batch.group_ids[0, :100], batch.branch_ids[0, :100], sep="\n")

# %% [markdown]
# A row holds several groups, a group its prompt **once** (branch 0) and then its answers. A query attends to earlier
# keys of its group in branch 0 or its own, so no answer sees its rival. `source` says from which position a target is
# predicted: the first token of either answer from the end of the prompt. All that DPO reads are sums over branches.


# %%
@jax.jit
def branches(params, batch):
    """Log-probability of each branch in nats, and its number of trained tokens: two [B, S]."""
    hidden = packed_forward(params, config, batch.tokens, batch.positions, batch.group_ids, batch.branch_ids)
    hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
    logps = losses.token_logps(hidden, output_head(params), batch.target, vocab_size=config.vocab_size)
    total = jax.vmap(lambda x, slot: jnp.zeros(batch.slot_mask.shape[-1]).at[slot].add(x))
    return [total(x * batch.target_mask, batch.target_slot) for x in (logps, jnp.ones_like(logps))]


def sides(values, batch):
    """[B, S] to the two [B * P] of chosen and rejected."""
    return jnp.take_along_axis(values[:, None], batch.pair_slots, axis=-1).reshape(-1, 2).T


params = jax.device_get(policy.params)
alone = policy.logps([pairs[0].prompt], [pairs[0].responses[0].text])  # one sequence by itself
np.testing.assert_allclose(branches(params, batch)[0][0, 0], alone[0], rtol=1e-5)

# %% [markdown]
# Fine-tuning and DPO differ in eight lines. The reference's log-probabilities are computed once, before training.


# %%
def sft_loss(params, batch, reference):
    logps, tokens = branches(params, batch)
    return -logps.sum() / tokens.sum()


def dpo_loss(params, batch, reference):
    logps, tokens = branches(params, batch)
    pair = losses.PairLogps(*sides(logps, batch), *sides(reference, batch), *sides(tokens, batch))
    return losses.sigmoid_loss(pair, beta=0.1).mean(where=batch.pair_mask.reshape(-1))


def train(loss, params, data, steps, rate):
    reference, _ = branches(params, data)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(params, state, batch, reference):
        value, grads = jax.value_and_grad(loss)(params, batch, reference)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for number in range(steps):
        index = rng.choice(len(data.tokens), 8, replace=False)
        params, state, value = step(params, state, jax.tree.map(itemgetter(index), data), reference[index])
        if number % (steps // 4) == 0:
            print(f"{loss.__name__} {value:.3f} at step {number} of {steps}")
    return params


tuned = train(sft_loss, params, packed(sft), steps=80, rate=1e-2)
preferring = train(dpo_loss, tuned, packed(pairs), steps=30, rate=5e-4)

# %% [markdown]
# On subjects that no training row asked about: how often the implicit reward ranks a pair as its label does (labels are
# noisy, chance is 0.5), and what the model writes before and after.

# %%
held_out = packed(read("preference_eval", "chosen", "rejected"))
chosen, rejected = sides(branches(preferring, held_out)[0] - branches(tuned, held_out)[0], held_out)
accuracy = (chosen > rejected).mean(where=held_out.pair_mask.reshape(-1))
print(f"held-out accuracy {accuracy:.2f}")
assert accuracy > 0.6
for weights in (tuned, preferring):
    print(policy.with_params(weights).generate([pairs[0].prompt], max_new_tokens=48, seed=1)[0].responses[0].text)
