"""A tiny decoder with lively weights and what a sampler needs around it; as a script, one run of it as JSON.

`python tiny.py DEVICES` samples over that many devices, for the test that their number changes nothing.
"""

import copy
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.models import DecoderConfig, output_head, packed_forward, param_specs
from rlhf_jax.models.params import map_specs
from rlhf_jax.parallel import make_mesh
from rlhf_jax.sampling import Sampler
from rlhf_jax.sampling.cache import scatter_pages, store_pages
from rlhf_jax.sampling.kernels import PagedAttention
from rlhf_jax.sampling.lanes import lanes_attention
from rlhf_jax.sampling.paged import paged_lanes
from rlhf_jax.sampling.tpu_pages import fetch_pages
from rlhf_jax.training.evaluate import logps_map
from rlhf_jax.training.objectives import Compute

VOCAB, STOP_ID, BOS = 61, 2, 1
WAYS = {
    "gpu": PagedAttention(functools.partial(lanes_attention, interpret=True), scatter_pages, apart=True),
    "tpu": PagedAttention(functools.partial(paged_lanes, read=functools.partial(fetch_pages, interpret=True)),
                          store_pages, apart=False),
    "xla": PagedAttention(paged_lanes, scatter_pages, apart=False)}
"""What attends over pages where, kernels by Pallas's interpreter."""


def make_config(**changes):
    sizes = {"family": "llama", "vocab_size": VOCAB, "embed": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4,
             "mlp": 32, "max_position": 96, "initializer_range": 0.6, "tie_embeddings": False}
    return DecoderConfig(**{**sizes, **changes})


def make_params(config, seed=0):
    """Normal weights from numpy, which compiles nothing; norms one."""
    draws = np.random.default_rng(seed)
    return map_specs(lambda s: jnp.asarray(np.full(s.shape, float(s.init == "ones")) if s.init in ("ones", "zeros")
                                           else draws.normal(0, config.initializer_range, s.shape), jnp.float32),
                     param_specs(config))


def make_prompts(count=6, seed=0, longest=12):
    """Prompts p0, p1, ... of mixed lengths; p0 is one token, BOS alone."""
    draws = np.random.default_rng(seed)
    lengths = [1, *draws.integers(2, longest + 1, count - 1)]
    return [PromptGroup(f"p{i}", np.array([BOS, *draws.integers(3, VOCAB, n - 1)], np.int32), ())
            for i, n in enumerate(lengths)]


def words(prompt_ids, ids):
    """The text of ids: `w7 w12 `, stop tokens left out."""
    return "".join(f"w{i} " for i in ids if i != STOP_ID)


@functools.cache
def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def _programs(config, stop_ids, mesh, slots, lanes, block, max_new_tokens):
    shape = SamplingConfig(lanes, slots=slots, block=block, max_new_tokens=max_new_tokens)
    return Sampler(config, shape, stop_ids, mesh, words)


def make_sampler(config, stop_ids=(STOP_ID,), mesh=None, decode_text=words, **settings):
    """A sampler that shares its compiled programs with all those of the same shapes, whatever their other settings."""
    settings = {"num_generations": 4, "max_new_tokens": 12, "slots": 4, "block": 5, "seed": 3, **settings}
    sampling = SamplingConfig(**settings)
    stops = (*stop_ids, *[-1] * (4 - len(stop_ids)))
    shared = _programs(config, stops, mesh or one_device(), sampling.slots, sampling.lanes or sampling.num_generations,
                       sampling.block, sampling.max_new_tokens)
    sampler = copy.copy(shared)
    sampler.sampling, sampler._seed, sampler.decode_text = sampling, jax.random.key(sampling.seed), decode_text
    sampler._set_ending()
    return sampler


def run(sampler, params, prompts):
    """prompt id -> its group, finished."""
    found = {prompts[i].prompt_id: group for i, group in sampler.generate(params, prompts)}
    assert sorted(found) == sorted(p.prompt_id for p in prompts)
    return found


def ids_of(groups):
    """prompt id -> ids of its samples."""
    return {name: [r.ids.tolist() for r in group.responses] for name, group in groups.items()}


def sample_ids(config, params, prompts, **settings):
    return ids_of(run(make_sampler(config, **settings), params, prompts))


def forward_logps(config, params, groups):
    """The trainer's packed forward: per group and response, log-probs of its tokens."""
    return logps_map(Compute(config), one_device())(params, groups)


@functools.partial(jax.jit, static_argnums=1)
def _all_logits(params, config, tokens, group_ids):
    hidden = packed_forward(params, config, tokens, jnp.arange(32)[None], group_ids, 0 * group_ids)
    return hidden[0] @ output_head(params).T


def next_logits(config, params, ids):
    """[V] logits after ids, by one forward pass of the whole sequence."""
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : len(ids)] = ids
    return _all_logits(params, config, tokens, (np.arange(32) < len(ids)).astype(np.int32)[None])[len(ids) - 1]


if __name__ == "__main__":
    devices = int(sys.argv[1])
    assert len(jax.devices()) >= devices, jax.devices()
    config = make_config()
    mesh = make_mesh(MeshConfig(data=2, fsdp=devices // 2), jax.devices()[:devices])
    print(json.dumps(sample_ids(config, make_params(config), make_prompts(11), mesh=mesh, slots=8)))
