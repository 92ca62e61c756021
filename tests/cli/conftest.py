"""A micro world with an untrained model of its tokens."""

import json

import jax
import pytest

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.world import write_world
from rlhf_jax.models import DecoderConfig, init_params, save_hf


def untrained(folder, max_position):
    """A tiny model with fresh weights in `folder`, with the tokenizer of the world around it."""
    tokenizer = folder.parent / "tokenizer"
    vocab = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    config = DecoderConfig("llama", vocab_size=vocab, embed=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=32,
                           max_position=max_position, tie_embeddings=True, bos_token_id=1, eos_token_ids=(4,),
                           pad_token_id=0)
    save_hf(folder, jax.device_get(init_params(jax.random.key(0), config)), config, tokenizer_from=tokenizer)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A micro world's rows, its tokenizer, and two untrained models: `base` of 256 positions and `long` of 1,024."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldConfig(sft_rows=24, preference_rows=16, prompt_rows=8, eval_prompts=8))
    untrained(folder / "base", 256)
    untrained(folder / "long", 1024)
    return folder
