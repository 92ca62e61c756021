import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.models import Rope
from rlhf_jax.parallel import make_mesh, param_shardings
from rlhf_jax.training.objectives import Compute
from rlhf_jax.workflow import reference
from rlhf_jax.workflow.reference import _sums, groups_fingerprint, params_fingerprint, reference_logps


@pytest.fixture(scope="module")
def model(tiny, weights):
    config = tiny(vocab_size=64)
    return config, jax.device_get(weights(config))


def changed(params, leaf, change):
    """A copy with `change` applied to the flat view of one leaf (in tree order)."""
    leaves, tree = jax.tree.flatten(params)
    leaves = [np.array(x) for x in leaves]
    change(leaves[leaf].reshape(-1))
    return jax.tree.unflatten(tree, leaves)


def place(data, params):
    leaf = data.draw(st.integers(0, len(jax.tree.leaves(params)) - 1))
    return leaf, data.draw(st.integers(0, jax.tree.leaves(params)[leaf].size - 1))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_changing_any_single_weight_in_its_last_bit_changes_the_fingerprint(data, model):
    _, params = model
    leaf, at = place(data, params)
    after = changed(params, leaf, lambda flat: flat.__setitem__(at, np.nextafter(flat[at], np.float32(np.inf))))
    assert params_fingerprint(after) != params_fingerprint(params)
    assert params_fingerprint(changed(params, leaf, lambda flat: None)) == params_fingerprint(params)


def test_the_sign_of_a_zero_counts(model):
    _, params = model
    zero, minus = (changed(params, 3, lambda flat, z=z: flat.__setitem__(5, z)) for z in (0.0, -0.0))
    assert params_fingerprint(zero) != params_fingerprint(minus)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_swapping_two_different_weights_changes_the_fingerprint(data, model):
    _, params = model
    leaf, a = place(data, params)
    flat = jax.tree.leaves(params)[leaf].reshape(-1)
    b = data.draw(st.integers(0, flat.size - 1).filter(lambda i: flat[i] != flat[a]))

    def swap(x):
        x[a], x[b] = x[b], x[a]

    assert params_fingerprint(changed(params, leaf, swap)) != params_fingerprint(params)


@pytest.mark.parametrize("apart", [1, 2, 2**15, 2**16])
@pytest.mark.parametrize("values", [(1.0, -1.0), (0.0, -0.0), (1.0, 2.0), (1.5, 1.0)])
def test_swaps_that_a_linear_sum_misses_are_seen(apart, values):
    """Differences in high bits alone vanish when multiplied by places a power of two apart."""
    there, back = np.zeros((2, 2**17), np.float32)
    there[7], there[7 + apart] = values
    back[7 + apart], back[7] = values
    assert params_fingerprint({"w": there}) != params_fingerprint({"w": back})


def test_names_and_shapes_count():
    w = np.arange(6, dtype=np.float32)
    prints = {params_fingerprint(tree) for tree in ({"a": w}, {"b": w}, {"a": w.reshape(2, 3)}, {"a": w.reshape(3, 2)},
                                                    {"a": {"b": w}})}
    assert len(prints) == 5


@pytest.mark.longer
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=4, tensor=2)])
def test_the_fingerprint_is_the_same_on_every_mesh_and_moves_no_weights(mesh, model, tiny):
    config, params = model
    mesh = make_mesh(mesh)
    placed = jax.device_put(params, param_shardings(config, mesh))
    assert params_fingerprint(placed) == params_fingerprint(params)
    program = _sums.lower(jax.tree.leaves(placed)).compile().as_text()
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_the_fingerprint_of_groups_sees_ids_masks_and_boundaries(make_groups):
    groups = make_groups(3, holes=False, prompt=(3, 3), response=(3, 3))
    first, response = groups[0], groups[0].responses[0]
    mask = np.array([True, False, True])
    variants = [
        groups, groups[:2], groups[::-1],
        [dataclasses.replace(first, prompt_ids=first.prompt_ids + 1), *groups[1:]],
        [dataclasses.replace(first, responses=first.responses[::-1]), *groups[1:]],
        [dataclasses.replace(first, responses=(dataclasses.replace(response, loss_mask=mask), *first.responses[1:])),
         *groups[1:]],
        [dataclasses.replace(first, prompt_ids=first.prompt_ids[:2]), *groups[1:]],
    ]
    assert len({groups_fingerprint(v) for v in variants}) == len(variants)
    renamed = [dataclasses.replace(first, prompt_id="other", prompt="text"), *groups[1:]]
    assert groups_fingerprint(renamed) == groups_fingerprint(groups)


class Counted(Compute):
    def hidden(self, params, batch):
        type(self).traced += 1
        return super().hidden(params, batch)


@pytest.mark.longer
def test_the_cache_is_used_for_the_same_question_and_for_no_other(model, make_groups, lone_mesh, tmp_path, tiny):
    config, params = model
    groups = make_groups(5, 4, k=(1, 3))

    def ask(params=params, groups=groups, config=config, dtype=jnp.float32):
        Counted.traced = 0
        jax.clear_caches()
        found = reference_logps(Counted(config), params, groups, lone_mesh, dtype=dtype, cache=tmp_path, rows=2)
        return found, Counted.traced > 0

    first, computed = ask()
    assert computed
    again, computed = ask()
    assert not computed
    jax.tree.map(np.testing.assert_array_equal, list(again), list(first))
    assert [[len(x) for x in group] for group in first] == [[r.loss_mask.sum() for r in g.responses] for g in groups]
    assert not list(tmp_path.glob(".*"))  # no temporary file is left

    assert ask(params=changed(params, 0, lambda flat: flat.__setitem__(0, 9.0)))[1]
    assert ask(groups=groups[:4])[1]
    assert ask(dtype=jnp.bfloat16)[1]
    assert ask(config=dataclasses.replace(config, rope=Rope(500.0)))[1]
    assert len(list(tmp_path.glob("reference-*.f32"))) == 5
    assert not ask()[1]


def test_some_groups_at_a_time_give_what_all_at_once_give(model, make_groups, lone_mesh, tmp_path, monkeypatch):
    config, params = model
    groups, found = make_groups(7, 4, k=(1, 3)), []
    for at_once in (100, 3):
        monkeypatch.setattr(reference, "_AT_ONCE", at_once)
        found.append(list(reference_logps(Compute(config), params, OnDisk(groups), lone_mesh, dtype=jnp.float32,
                                          cache=tmp_path / str(at_once), rows=2)))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), *found)


def test_a_damaged_cache_file_is_an_error_that_says_what_to_do(model, make_groups, lone_mesh, tmp_path):
    config, params = model
    groups = make_groups(2, 4)

    def ask():
        return reference_logps(Compute(config), params, groups, lone_mesh, dtype=jnp.float32, cache=tmp_path, rows=2)

    ask()
    path, = tmp_path.glob("reference-*.f32")
    sound = path.read_bytes()
    expected = np.concatenate([x for group in ask() for x in group])

    def refused():
        with pytest.raises(ValueError, match=f"{path.name}.*delete that file"):
            ask()

    for size in (0, 1, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:size])
        refused()
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        refused()
    path.unlink()
    (tmp_path / ".reference-x.f32.tmp").write_bytes(b"")  # of a run that was killed
    np.testing.assert_array_equal(np.concatenate([x for group in ask() for x in group]), expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
