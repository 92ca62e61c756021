"""Every family against arrays that transformers computed (tests/models/make_golden.py), without torch."""

import numpy as np
import pytest

from rlhf_jax.models import FAMILIES, load_params, read_config, save_hf

pytestmark = pytest.mark.usefixtures("exact_matmul")


@pytest.fixture
def stored(golden_name, models, tmp_path):
    """(arrays, tensors by kind, folder with lm/ and rm/) of one golden model."""
    arrays = dict(np.load(models.GOLDEN / f"{golden_name}.npz"))
    tensors = {kind: {key.removeprefix(f"{kind}/"): value.astype(np.float32) for key, value in arrays.items()
                      if key.startswith(f"{kind}/")} for kind in ("lm", "rm")}
    tensors["rm"] |= {key: value for key, value in tensors["lm"].items() if key != "lm_head.weight"}
    for kind, some in tensors.items():
        (tmp_path / kind).mkdir()
        models.save(some, tmp_path / kind)
        (tmp_path / kind / "config.json").write_text(str(arrays[f"{kind}_config"]))
    return arrays, tensors, tmp_path


@pytest.mark.longer
def test_logits_scores_greedy_tokens_and_written_tensors_are_those_of_transformers(stored, ours, models):
    arrays, tensors, folder = stored
    assert np.abs(arrays["logits"]).max() > 1.0
    np.testing.assert_allclose(ours.output(folder / "lm"), arrays["logits"], atol=1e-4)
    np.testing.assert_allclose(ours.output(folder / "rm"), arrays["scores"], atol=1e-4)
    assert len(set(arrays["greedy"].ravel().tolist())) > 2
    np.testing.assert_array_equal(ours.greedy(folder / "lm"), arrays["greedy"])
    for kind in ("lm", "rm"):
        config = read_config(folder / kind)
        save_hf(folder / "out" / kind, load_params(folder / kind, config), config)
        written = models.tensors(folder / "out" / kind)
        assert written.keys() == tensors[kind].keys()
        assert all(value.tobytes() == tensors[kind][key].tobytes() for key, value in written.items())
        assert read_config(folder / "out" / kind) == config


def test_every_family_has_a_golden_model(models):
    assert {path.stem for path in models.GOLDEN.glob("*.npz")} == set(models.MODELS)
    assert {family for family, _ in models.MODELS.values()} == set(FAMILIES)
