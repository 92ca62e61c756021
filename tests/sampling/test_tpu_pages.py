"""The TPU's kernel over pages, in Pallas's interpreters, reads what XLA reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rlhf_jax.models.attention import KeyValues
from rlhf_jax.sampling.paged import Seen, read_pages
from rlhf_jax.sampling.pages import PAGE
from rlhf_jax.sampling.tpu_pages import fetch_pages

pytestmark = pytest.mark.usefixtures("exact_matmul")
DIM = 16


@pytest.mark.longer
@pytest.mark.parametrize("interpret", [True, pltpu.InterpretParams(dma_execution_mode="on_wait")], ids=["plain", "tpu"])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_kernel_of_tpus_reads_what_rows_see_of_their_pages(rows, interpret, monkeypatch):
    """Rows without a page, with a part of one, with some beyond a window; programs of one row and of several."""
    monkeypatch.setattr("rlhf_jax.sampling.tpu_pages._MOST_ROWS", rows)
    keys = jax.random.split(jax.random.key(2), 3)
    pages = KeyValues(jax.random.normal(keys[0], (2, 9, 2, DIM, PAGE)),
                      jax.random.normal(keys[1], (2, 9, 2, PAGE, DIM)))
    table = jnp.asarray(np.random.default_rng(0).integers(0, 9, (6, 3)), jnp.int32)
    span = jnp.asarray([0, 0, 3, 0, 140, 129]), jnp.asarray([0, 5, 128, 0, 300, 384])
    q = jax.random.normal(keys[2], (6, 2, 3, DIM)) / 4
    expected = read_pages(q, pages, 1, span, table, 2.0)
    found = fetch_pages(q, pages, 1, span, table, 2.0, interpret=interpret)
    itself = Seen(jnp.zeros(q.shape[:-1]), jnp.ones(q.shape[:-1]), jnp.ones(q.shape))  # as every row sees a token
    ours, theirs = (seen.joined(itself) for seen in (found, expected))
    np.testing.assert_allclose(ours.out / ours.total[..., None], theirs.out / theirs.total[..., None], atol=2e-6)
    np.testing.assert_allclose(ours.top + jnp.log(ours.total), theirs.top + jnp.log(theirs.total), atol=1e-5)
