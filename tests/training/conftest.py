"""A bigram model in place of the decoder: everything of a fit in a program that compiles in no time."""


import jax
import pytest

from rlhf_jax.training.fit import Model
from rlhf_jax.training.objectives import Compute


@pytest.fixture(scope="module", autouse=True)
def _kept_programs(kept_programs):
    """Many of these tests compile the same programs."""


class Bigram(Compute):
    """A token's hidden state is its own embedding, scaled."""

    def hidden(self, params, batch):
        return params["embed"][batch.tokens] * params["final_norm"]


@pytest.fixture(scope="session")
def bigram(tiny):
    """bigram(classifier) -> (Compute, Model)."""
    from rlhf_jax.models import init_params, param_specs

    def build(classifier=False):
        config = tiny(num_labels=int(classifier))
        names = ("embed", "final_norm", "score" if classifier else "head")
        params, specs = init_params(jax.random.key(0), config), param_specs(config)
        return Bigram(config), Model({n: params[n] for n in names}, {n: specs[n] for n in names})

    return build


@pytest.fixture(scope="session")
def equal():
    """equal(a, b): two trees are the same to the bit."""
    import numpy as np

    return lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)


