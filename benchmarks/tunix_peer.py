"""Tunix's own DPO trainer and sampler as a worker: dpo, generate. See run.py.

It has no reward-model trainer and scores nothing. Its sampler draws only where `top_p` is given (1.0: the whole
distribution, unsorted), else it is greedy; prompts are padded to a power of two, and a prompt that is to be continued n
times is given n times.
"""

import json
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work
from absl import logging as absl_logging
from flax import nnx
from transformers import AutoTokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft.dpo import dpo_trainer

args = work.arguments(["dpo", "generate"])
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
absl_logging.set_verbosity(absl_logging.ERROR)
FOLDER = args.checkpoints / args.shape
VERSIONS = work.versions("google-tunix", "jax", "jaxlib", "flax", "optax", "transformers") | {
    "device": jax.devices()[0].device_kind}
MULTIPLE = 128
"""Prompts and responses of a batch are padded to a multiple of so many tokens: few shapes, each compiled beforehand."""


def sizes():
    found = json.loads((FOLDER / "lm" / "config.json").read_text())
    return llama.ModelConfig(
        num_layers=found["num_hidden_layers"], vocab_size=found["vocab_size"], embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"], num_heads=found["num_attention_heads"], head_dim=found["head_dim"],
        num_kv_heads=found["num_key_value_heads"], norm_eps=found["rms_norm_eps"],
        rope_theta=int(found["rope_parameters"]["rope_theta"]))


def padded(lists, left):
    """ids and mask [rows, width], padded on the left or the right to a multiple."""
    width = -(-max(map(len, lists)) // MULTIPLE) * MULTIPLE
    fill = [[0] * (width - len(ids)) for ids in lists]
    ids = [f + x if left else x + f for f, x in zip(fill, lists, strict=True)]
    mask = [f + [1] * len(x) if left else [1] * len(x) + f for f, x in zip(fill, lists, strict=True)]
    return np.asarray(ids, np.int32), np.asarray(mask, np.int32)


def batch_of(pairs):
    prompts, chosen, rejected = zip(*pairs, strict=True)
    (prompt_ids, prompt_mask), (both, both_mask) = padded(prompts, True), padded((*chosen, *rejected), False)
    half = len(pairs)
    return dpo_trainer.TrainingInput(
        prompt_ids=prompt_ids, prompt_mask=prompt_mask, chosen_ids=both[:half], chosen_mask=both_mask[:half],
        rejected_ids=both[half:], rejected_mask=both_mask[half:])


def training(load):
    """The trainer asks for batch after batch; it is timed from one to the next, what it had begun being finished."""
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    laps = work.Laps(work.tokens_of_steps(data, args.batch))
    some = [data[i : i + args.batch] for i in range(0, len(data), args.batch)]
    shapes = {batch_of(pairs).prompt_ids.shape + batch_of(pairs).chosen_ids.shape: pairs for pairs in some}
    config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**6, max_steps=len(some) + len(shapes) + 1, beta=0.1,
                                           max_inflight_computations=1)
    trainer = dpo_trainer.DPOTrainer(load(), load(), optax.adamw(1e-5, weight_decay=0.0), config)

    def batches():
        for pairs in shapes.values():
            yield batch_of(pairs)
        jax.block_until_ready(nnx.state(trainer.model))
        work.say(framework="Tunix", versions=VERSIONS)
        for pairs in some:
            laps.begin()
            yield batch_of(pairs)
            jax.block_until_ready(nnx.state(trainer.model))
            laps.end()
        work.wait()

    trainer.train(batches())


def generating(load, sizes):
    data = work.pairs(args.shape, args.batch * args.steps, args.longest)
    longest = 1 << (max(len(p) for p, _, _ in data) - 1).bit_length()
    cache = CacheConfig(cache_size=longest + args.new, num_layers=sizes.num_layers, num_kv_heads=sizes.num_kv_heads,
                        head_dim=sizes.head_dim)
    sampler = Sampler(load(), AutoTokenizer.from_pretrained(FOLDER / "tokenizer"), cache)
    stops = work.stop_ids(args.shape, args.mean)

    def step(i):
        prompts = [work.text(p) for p, _, _ in data[i * args.batch : (i + 1) * args.batch] for _ in range(args.n)]
        out = sampler(prompts, max_generation_steps=args.new, eos_tokens=stops, temperature=1.0, top_p=1.0, seed=i)
        return sum(min(len(ids) + 1, args.new) for ids in out.tokens), {}  # the stop token is cut off, and was drawn

    # one call at each of the lengths that prompts are padded to, so that no step compiles
    lengths = {max(len(p) for p, _, _ in data[i * args.batch : (i + 1) * args.batch]): i for i in range(args.steps)}
    for i in {(n - 1).bit_length(): i for n, i in lengths.items()}.values():
        step(i)
    return step


def main():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    config, dtype = sizes(), jnp.dtype(args.dtype)

    def load():
        return llama_params.create_model_from_safe_tensors(str(FOLDER / "lm"), config, mesh, dtype=dtype)

    with mesh:
        if args.task == "dpo":
            training(load)
        else:
            work.serve("Tunix", VERSIONS, generating(load, config))


if __name__ == "__main__":
    main()
