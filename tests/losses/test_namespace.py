import subprocess
import sys

import jax
import pytest

from rlhf_jax import losses


def test_importing_the_losses_loads_jax_alone():
    heavy = {"flax", "optax", "orbax", "transformers", "datasets", "safetensors", "torch"}
    code = f"import sys, rlhf_jax.losses; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted():
    assert all(hasattr(losses, name) for name in losses.__all__)
    assert losses.__all__ == sorted(losses.__all__)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_in_the_table_is_public(name):
    assert f"{name}_loss" in losses.__all__
    assert getattr(losses, f"{name}_loss") is losses.LOSSES[name].function


def test_specification_is_static_under_jit(appendix_a):
    spec = losses.PreferenceLoss(("sigmoid", "sft"))

    @jax.jit
    def total(pair):
        return losses.weighted_total(losses.preference_loss(pair, spec))

    assert total(appendix_a()).shape == ()
