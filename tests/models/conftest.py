"""The golden models, and what ours compute with them."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import load_params, packed_forward, read_config, score_heads, vocab_logits
from rlhf_jax.sampling import Sampler

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("make_golden.py"))))


def our_output(folder):
    """Logits [2, 24, V] of a language model at the golden tokens, or scores [2, labels] of a classifier."""
    config = read_config(folder)
    params = jax.tree.map(jnp.asarray, load_params(folder, config))
    places = np.broadcast_to(np.arange(golden.TOKENS.shape[1], dtype=np.int32), golden.TOKENS.shape)
    hidden = packed_forward(params, config, golden.TOKENS, places, np.ones_like(places), np.zeros_like(places))
    if config.is_classifier:
        return np.asarray(score_heads(params, hidden)[:, -1])
    return np.asarray(vocab_logits(params, config, hidden))


def our_greedy(folder, mesh):
    """The golden number of greedy tokens after each golden row, by the sampler and its caches."""
    config = read_config(folder)
    settings = SamplingConfig(1, temperature=0.0, max_new_tokens=golden.NEW_TOKENS, slots=2, block=16)
    sampler = Sampler(config, settings, (), mesh, lambda prompt, ids: "")
    prompts = [PromptGroup(str(i), row, ()) for i, row in enumerate(golden.TOKENS)]
    found = dict(sampler.generate(jax.tree.map(jnp.asarray, load_params(folder, config)), prompts))
    return np.stack([found[i].responses[0].ids for i in range(len(prompts))])


@pytest.fixture(params=golden.MODELS)
def golden_name(request):
    """Each golden model's name."""
    return request.param


@pytest.fixture(scope="session")
def models():
    """`MODELS`, `TOKENS` and the transformers side of them: tests/models/make_golden.py."""
    return golden


@pytest.fixture(scope="session")
def ours(lone_mesh):
    """ours.output(folder), ours.greedy(folder): what to hold against transformers."""
    return SimpleNamespace(output=our_output, greedy=lambda folder: our_greedy(folder, lone_mesh))
