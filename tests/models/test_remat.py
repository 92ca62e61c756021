"""What the backward pass runs again under each policy: counted in the program, and never changing a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data.packing import group_length, pack, pack_rows, row_shape
from rlhf_jax.models import packed_forward
from rlhf_jax.models.attention import WHOLE_ROWS
from rlhf_jax.models.blocked import blocked_rows
from rlhf_jax.models.splash import splash_rows
from rlhf_jax.models.triton import triton_rows
from rlhf_jax.parallel import auto_inside, replicated

TOKENS = 128
WAYS = {"whole": "exp", "blocked": "while", "splash": "pallas_call", "triton": "pallas_call"}
"""How attention is computed, and the operation by which its passes are counted."""


def rows_by(way, mesh):
    match way:
        case "whole":
            return WHOLE_ROWS
        case "blocked":
            return blocked_rows(32)
        case "splash":
            return splash_rows(mesh, TOKENS, None, interpret=True)
    return triton_rows(mesh, TOKENS, interpret=True)


def count(jaxpr, name):
    """Occurrences of a primitive whose results are used, those inside of other primitives included."""
    live, found = {v for v in jaxpr.outvars if not hasattr(v, "val")}, 0
    for equation in reversed(jaxpr.eqns):
        if live.isdisjoint(equation.outvars):
            continue
        live.update(v for v in equation.invars if not hasattr(v, "val"))
        if equation.primitive.name == name:
            found += 1
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found += count(inner, name) if hasattr(inner, "eqns") else 0
    return found


@pytest.fixture(scope="module")
def gradient(tiny, weights, make_groups, lone_mesh):
    """(way, remat) -> a function of weights, and weights."""
    config = tiny("llama")
    groups = make_groups(6, 5, k=(1, 3), prompt=(5, 30), response=(1, 15))
    cut = pack_rows([group_length(g) for g in groups], TOKENS)
    rows = pack(groups, cut, row_shape(groups, cut, TOKENS), len(cut), None)

    def of(way, remat):
        def loss(params):
            hidden = packed_forward(params, config, rows.tokens, rows.positions, rows.group_ids, rows.branch_ids,
                                    remat=remat, rows=rows_by(way, lone_mesh))
            return jnp.sum(jnp.where((rows.group_ids > 0)[..., None], hidden, 0.0) ** 2)

        return auto_inside(jax.grad(loss), lone_mesh, replicated(lone_mesh)), weights(config)

    return of


@pytest.mark.parametrize(("way", "again"), [("blocked", ["full"]), ("splash", ["dots", "full"]),
                                            ("triton", ["dots", "full"])])
def test_attention_runs_again_under_full_and_on_accelerators_under_dots(gradient, way, again):
    passes = {}
    for remat in ("none", "dots", "full"):
        run, params = gradient(way, remat)
        passes[remat] = count(jax.make_jaxpr(run)(params).jaxpr, WAYS[way])
    assert passes["none"] > 0
    assert [remat for remat in passes if passes[remat] > passes["none"]] == again


@pytest.mark.longer
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.usefixtures("exact_matmul")
def test_gradients_do_not_depend_on_what_is_run_again(gradient, way, remat):
    expected, found = (jax.jit(run)(params) for run, params in (gradient("whole", "none"), gradient(way, remat)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(other))))
