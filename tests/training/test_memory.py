"""What a DPO step needs of memory at a vocabulary of 128 thousand, from the compiled program itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.packing import RowShape, empty_rows
from rlhf_jax.losses import PreferenceLoss
from rlhf_jax.models import init_params
from rlhf_jax.training.objectives import Compute, Preference
from rlhf_jax.training.step import make_grads, whole

VOCAB, WIDTH, ROWS, TOKENS, CHUNK = 131_072, 64, 4, 512, 64


@pytest.mark.longer
def test_the_logits_of_a_dpo_step_never_exist_whole(tiny, lone_mesh):
    config = tiny(vocab_size=VOCAB, embed=WIDTH, tie_embeddings=True)
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    batch = jax.tree.map(lambda x: x[None], empty_rows(ROWS, RowShape(TOKENS, TOKENS, 4, 2)))
    objective = Preference(Compute(config, logits_chunk=CHUNK, mesh=lone_mesh), PreferenceLoss())
    compiled = jax.jit(make_grads(objective, whole, jnp.float32)).lower(params, {}, batch, np.int32(1)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    table, chunk, logits = (4 * VOCAB * n for n in (WIDTH, ROWS * CHUNK, ROWS * TOKENS))
    assert temporary < 3 * table + 4 * chunk  # gradients of the tables, and a chunk's logits with what is made of them
    assert temporary < 0.6 * logits
