"""Two tiny tokenizers with different templates, and models with lively random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.rows import Example
from rlhf_jax.data.world import train_tokenizer, world_rows
from rlhf_jax.models import DecoderConfig, param_specs
from rlhf_jax.models.params import map_specs
from rlhf_jax.parallel import make_mesh


@pytest.fixture(scope="session")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def policy_tokenizer():
    """The world's own tokenizer and template."""
    return train_tokenizer(world_rows(WorldConfig(sft_rows=40, preference_rows=1, prompt_rows=1, eval_prompts=1)), 400)


@pytest.fixture(scope="session")
def other_tokenizer():
    """Another vocabulary and another template (ChatML), as a reward model from elsewhere has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from rlhf_jax.data.tokenizer import TEMPLATES

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(["a b c"], trainers.BpeTrainer(
        vocab_size=270, special_tokens=["<unk>", "<bos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<|im_end|>",
                                   pad_token="<unk>", chat_template=TEMPLATES["chatml"])


@pytest.fixture(scope="session")
def make_config():
    def make(tokenizer, **changes):
        sizes = {"family": "llama", "vocab_size": len(tokenizer), "embed": 16, "layers": 2, "heads": 2, "kv_heads": 1,
                 "head_dim": 8, "mlp": 32, "max_position": 1024, "tie_embeddings": False}
        return DecoderConfig(**{**sizes, **changes})

    return make


@pytest.fixture(scope="session")
def make_params():
    def make(config, seed=0, scale=0.3):
        draws = np.random.default_rng(seed)
        return map_specs(lambda s: jnp.asarray(draws.normal(0, scale, s.shape) if s.init in ("normal", "output")
                                               else np.full(s.shape, float(s.init == "ones")), jnp.float32),
                         param_specs(config))

    return make


@pytest.fixture(scope="session")
def make_group(policy_tokenizer):
    """Rendered for the policy: prompt text, response texts -> group."""

    def make(prompt, *texts, prompt_id="p"):
        messages = [{"role": "user", "content": prompt}]
        return Renderer(policy_tokenizer).render(Example(messages, tuple(texts), prompt_id=prompt_id))

    return make
