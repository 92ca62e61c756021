import dataclasses

import pytest

from rlhf_jax.models import count_params
from rlhf_jax.models.flops import (
    causal_context,
    executed_train_flops,
    forward_flops,
    mean_context,
    projection_params,
    useful_train_flops,
)


def test_a_forward_pass_by_hand(tiny):
    config = tiny()  # V 48, D 16, L 2, H 4, K 2, Dh 8, F 32
    q, k, v, o = 16 * 4 * 8, 16 * 2 * 8, 16 * 2 * 8, 4 * 8 * 16
    mlp = 3 * 16 * 32
    assert projection_params(config) == q + k + v + o + mlp
    found = forward_flops(config, 10, context=5, targets=3)
    assert found.layers == 2 * 10 * 2 * (q + k + v + o + mlp)
    assert found.attention == 2 * 10 * (2 * 5 * 4 * 8 + 2 * 5 * 4 * 8)  # L x tokens x (scores + mixing)
    assert found.head == 2 * 3 * 16 * 48
    assert found.total == found.layers + found.attention + found.head


def test_six_flops_a_weight_and_token_in_a_wide_model(tiny):
    config = tiny(embed=512, mlp=2048, heads=8, kv_heads=8, head_dim=64, layers=8, vocab_size=64, vocab_multiple=1)
    flops = useful_train_flops(forward_flops(config, 1, context=0, targets=1))
    assert flops == pytest.approx(6 * count_params(config), rel=0.01)


def test_remat_runs_the_layers_again_and_logits_always(tiny):
    forward = forward_flops(tiny(), 7, context=3, targets=2)
    layers, attention, head = forward.layers, forward.attention, forward.head
    assert executed_train_flops(forward, "none") == 3 * layers + 3 * attention + 4 * head
    assert executed_train_flops(forward, "dots") == 3 * layers + 4 * attention + 4 * head
    assert executed_train_flops(forward, "full") == 4 * (layers + attention + head)
    assert executed_train_flops(forward, "none", frozen=True) == 2 * layers + 3 * attention + 3 * head


def test_frozen_weights_need_no_gradient_of_their_own(tiny):
    forward = forward_flops(tiny(), 7, context=3, targets=2)
    assert useful_train_flops(forward, frozen=True) == 2 * forward.layers + 3 * forward.attention + 2 * forward.head


def test_windows_cut_the_context_of_their_layers_alone(tiny):
    config = tiny("mistral", window=4, layers=4, full_layers=(1,))
    assert mean_context(config, 10) == (3 * 4 + 10) / 4
    assert mean_context(config, 3) == 3
    assert mean_context(tiny(), 10) == 10


def test_experts_count_as_often_as_a_token_goes_to_them(tiny):
    dense = projection_params(tiny())
    mixed = projection_params(tiny("mixtral", experts=8, experts_per_token=2))
    assert mixed - dense == 3 * 16 * 32 + 16 * 8  # a second expert, and the router


def test_a_classifier_has_no_vocabulary(tiny):
    config = dataclasses.replace(tiny(), num_labels=1)
    assert forward_flops(config, 1, context=1, scored=2).head == 2 * 16 * 2


@pytest.mark.parametrize(("prompt", "response", "responses"), [(3, 2, 2), (1, 5, 1), (4, 1, 3)])
def test_context_by_counting(prompt, response, responses):
    seen = [i + 1 for i in range(prompt)] + [prompt + i + 1 for i in range(response)] * responses
    assert causal_context(prompt, response, responses) == pytest.approx(sum(seen) / len(seen))
