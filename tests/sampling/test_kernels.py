"""Which attention is taken where."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.sampling.cache import scatter_pages, store_pages
from rlhf_jax.sampling.kernels import paged_attention
from rlhf_jax.sampling.paged import read_pages
from rlhf_jax.sampling.tpu_pages import fetch_pages


@pytest.mark.parametrize(("platform", "changes", "dtype", "share", "expected"), [
    ("cpu", {}, "float32", 1.0, None), ("tpu", {"head_dim": 128}, "bfloat16", 1.0, None),
    ("cpu", {}, "int8", 0.5, (read_pages, False)), ("gpu", {"head_dim": 64}, "bfloat16", 1.0, (None, True)),
    ("gpu", {"head_dim": 64}, "int8", 0.5, (read_pages, False)), ("gpu", {"head_dim": 24}, "bfloat16", 1.0, None),
    ("tpu", {"head_dim": 128}, "bfloat16", 0.5, (fetch_pages, False)),
    ("tpu", {"head_dim": 64}, "bfloat16", 0.5, (read_pages, False)),
    ("tpu", {"head_dim": 128}, "int8", 0.5, (read_pages, False))])
def test_kernels_attend_where_they_can_and_pages_are_everywhere(platform, changes, dtype, share, expected, tiny):
    devices = np.asarray([SimpleNamespace(platform=platform)], object)
    chosen = paged_attention(SimpleNamespace(devices=devices), tiny.make_config(**changes),
                             SamplingConfig(cache_share=share), jnp.dtype(dtype))
    found = chosen and (getattr(chosen.attend, "keywords", {}).get("read"), chosen.apart)
    assert found == expected
    assert chosen is None or chosen.append is (store_pages if platform == "tpu" else scatter_pages)
