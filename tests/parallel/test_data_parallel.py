import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.parallel import data_parallel, make_mesh, replicated

MESHES = [MeshConfig(), MeshConfig(data=2, fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2)]


def score(params, batch):
    """Squared error of a linear map, and how often it is positive: (sum, weight) over the rows of the mask."""
    out = batch["x"] @ params["w"]
    mask = batch["mask"].astype(jnp.float32)
    far = mask * (batch["y"] > 0)
    return {"error": (jnp.sum(jnp.square(out - batch["y"]) * mask), jnp.sum(mask)),
            "positive": (jnp.sum((out > 0) * far), jnp.sum(far))}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(27, 5)).astype(np.float32), rng.normal(size=27).astype(np.float32)
    return {"w": jnp.asarray(rng.normal(size=5), jnp.float32)}, {"x": x, "y": y, "mask": rng.random(27) < 0.7}


def expected(params, data):
    mask = data["mask"]
    out = data["x"] @ np.asarray(params["w"])
    return {"error": np.square(out - data["y"])[mask].mean(), "positive": (out > 0)[mask & (data["y"] > 0)].mean()}


def cut(data, *sizes):
    edges = np.cumsum([0, *sizes])
    assert edges[-1] == 27
    return [{k: v[a:b] for k, v in data.items()} for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("sizes", [(27,), (8, 8, 8, 3), (16, 11), (10, 10, 7), (26, 1)])
def test_any_cut_into_batches_gives_the_exact_masked_mean(mesh, sizes, problem):
    params, data = problem
    found = data_parallel(score, make_mesh(mesh))(params, cut(data, *sizes))
    assert found == pytest.approx(expected(params, data), rel=1e-6)


def test_equals_pmap_on_eight_devices(problem):
    params, data = problem
    full = {k: v[:24] for k, v in data.items()}

    def shard(batch):
        return jax.tree.map(lambda x: jax.lax.psum(x, "i"), score(params, batch))

    pairs = jax.pmap(shard, axis_name="i")(jax.tree.map(lambda x: x.reshape(8, 3, *x.shape[1:]), full))
    by_pmap = {name: float(total[0] / weight[0]) for name, (total, weight) in pairs.items()}
    assert jax.device_count() == 8
    assert data_parallel(score, make_mesh())(params, [full]) == pytest.approx(by_pmap, rel=1e-6)


def test_without_a_mask_padding_still_weighs_nothing(problem):
    params, data = problem
    bare = {k: v for k, v in data.items() if k != "mask"}
    found = data_parallel(score, make_mesh())(params, cut(bare, 13, 13, 1))
    assert found == pytest.approx(expected(params, bare | {"mask": np.ones(27, bool)}), rel=1e-6)


def test_one_program_serves_all_batches(problem):
    traces = []

    def counted(params, batch):
        traces.append(batch["x"].shape)
        return score(params, batch)

    params, data = problem
    data_parallel(counted, make_mesh())(params, cut(data, 9, 9, 8, 1))
    assert traces == [(16, 5)]


def test_weights_already_on_the_mesh_are_taken_as_they_are(problem):
    params, data = problem
    mesh = make_mesh(MeshConfig(fsdp=8))
    placed = jax.device_put(params, replicated(mesh))
    assert data_parallel(score, mesh)(placed, [data]) == pytest.approx(expected(params, data), rel=1e-6)


def test_a_metric_without_weight_is_nan_and_no_batch_gives_no_metric(problem):
    params, data = problem
    evaluate = data_parallel(score, make_mesh())
    found = evaluate(params, [data | {"mask": np.zeros(27, bool)}])
    assert all(np.isnan(value) for value in found.values())
    assert evaluate(params, []) == {}


def test_a_batch_larger_than_the_first_is_refused(problem):
    params, data = problem
    with pytest.raises(ValueError, match=r"a batch of 19 rows follows a first batch of 8; give the largest first"):
        data_parallel(score, make_mesh())(params, cut(data, 8, 19))


def test_sums_of_many_batches_keep_their_digits():
    """Totals are float64 on the host: 4095 batches of ones next to a large one lose nothing."""
    def total(params, batch):
        return {"sum": (jnp.sum(batch["x"] * batch["mask"]), jnp.float32(1) / 4096)}

    batches = [{"x": np.array([2.0**25], np.float32)}] + [{"x": np.ones(1, np.float32)}] * 4095
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert data_parallel(total, mesh)({}, batches)["sum"] == pytest.approx(2.0**25 + 4095, rel=1e-8)
