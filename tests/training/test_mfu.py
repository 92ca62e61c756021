"""Useful operations of a step, by hand; and the share of a known peak they are."""

from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.training.mfu import flops_counter, needed_flops, seen_keys, utilisation


def ids(count):
    return np.zeros(count, np.int32)


@pytest.fixture
def pair():
    """A prompt of 3 tokens, responses of 2 and 4, of which 1 and 4 are trained on."""
    return PromptGroup("p", ids(3), (Response(ids(2), np.array([False, True])), Response(ids(4), np.ones(4, bool))))


def test_each_token_sees_its_prompt_and_what_came_before_it(pair):
    assert seen_keys(pair) == (1 + 2 + 3) + (4 + 5) + (4 + 5 + 6 + 7)


def test_operations_of_a_step_by_hand(pair, tiny):
    """embed 16, 2 layers, 4 heads and 2 key heads of 8, mlp 32, vocabulary 48."""
    config = tiny()
    weights = 16 * 8 * (4 + 2 + 2) + 4 * 8 * 16 + 3 * 16 * 32  # of a layer
    layers = 2 * 9 * weights * 2
    attention = 2 * 2 * 37 * (4 * 8) * 2
    head = 2 * 16 * 48 * 5
    assert needed_flops(config, False, [pair]) == 3 * (layers + attention + head)
    assert flops_counter(config, frozen=True)([pair, pair]) == 2 * 2 * (layers + attention + head)


def test_a_classifier_reads_its_head_once_a_response(pair, tiny):
    language, scores = (needed_flops(tiny(**kind), False, [pair]) for kind in ({}, {"num_labels": 1}))
    assert language - scores == 3 * 2 * 16 * (48 * 5 - 2)


@pytest.mark.parametrize(("kind", "peak"), [("TPU v5p", 459e12), ("TPU v5 lite", 197e12),
                                            ("NVIDIA H100 80GB HBM3", 989.4e12)])
def test_the_share_of_the_peak_is_said_where_it_is_known(kind, peak):
    mesh = SimpleNamespace(size=4, devices=np.array([SimpleNamespace(device_kind=kind, platform="")]))
    found = utilisation(4 * 0.5 * peak * 3, 3.0, mesh)
    assert found == {"tflops_per_device": pytest.approx(peak * 0.5e-12), "mfu": pytest.approx(0.5)}


def test_an_unknown_device_has_a_rate_and_no_share(lone_mesh):
    assert utilisation(2e12, 1.0, lone_mesh) == {"tflops_per_device": 2.0}
