"""What a token costs the sampler, against sums worked by hand, and the ways that follow."""

import dataclasses
from types import SimpleNamespace

import pytest

from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.models import count_params
from rlhf_jax.models.int8 import count_int8
from rlhf_jax.parallel.accelerators import CHIPS
from rlhf_jax.parallel.decoding import choose_ways, token_bytes, token_cost
from rlhf_jax.plan.recipe import shape_of

LLAMA, GIB = "configs/llama3_8b/model", 2**30
PAPER = SamplingConfig(num_generations=8, slots=8, max_new_tokens=2048, prompt_length=1024)


@pytest.fixture(scope="module")
def llama():
    return shape_of(LLAMA)


def devices(count, kind="an accelerator", platform="tpu"):
    return [SimpleNamespace(platform=platform, device_kind=kind)] * count


def ways(config, chip, sampling=PAPER, count=None):
    return choose_ways(config, sampling, "bfloat16", devices(count or chip.per_host), chip, chip.hbm_bytes)


@pytest.mark.parametrize(("tensor", "milliseconds"), [(1, 12.62), (2, 8.01), (4, 5.78)])
def test_a_token_of_llama3_8b_on_a_host_of_v6e(llama, tensor, milliseconds):
    """Weights of 16.06 GB cut in `tensor`, caches of 8 slots x (1,024 + 8 x 2,048) places of 128 KiB and logits cut in
    four whatever the layout, at 1.64 TB/s; 64 all-reduces of 64 KiB x lanes of a group."""
    cost = token_cost(llama, PAPER, "bfloat16", 4, tensor, CHIPS["v6e"])
    assert cost.size.weights == 2 * 8_030_261_248 / tensor
    assert cost.size.caches == 8 * (1024 + 8 * 2048) * 2 * 32 * 8 * 128 * 2 / 4
    assert cost.size.logits == 64 * 128_256 * 4 * 8 / 4
    hops, links = {1: (0, 1), 2: (2, 1), 4: (4, 2)}[tensor]
    sent = 2 * (tensor - 1) / tensor * (64 / (4 / tensor)) * 4096 * 2 / (links * 100e9)
    assert cost.reduce == pytest.approx(64 * (hops * 1e-6 + sent))
    assert cost.read == pytest.approx(sum(cost.size) / 1.64e12)
    assert cost.seconds == max(cost.read, cost.compute) + cost.reduce
    assert cost.seconds * 1e3 == pytest.approx(milliseconds, abs=0.02)


def test_a_cache_in_eight_bits_is_read_in_half_the_bytes(llama):
    half = dataclasses.replace(PAPER, cache_dtype="int8")
    full, less = (token_bytes(llama, s, "bfloat16", 4, 1) for s in (PAPER, half))
    assert less == full._replace(caches=full.caches / 2)


def test_weights_in_eight_bits_are_read_in_half_their_bytes_and_lie_beside_the_whole_ones(llama):
    half = dataclasses.replace(PAPER, weights_dtype="int8")
    full, less = (token_bytes(llama, s, "bfloat16", 4, 1) for s in (PAPER, half))
    converted = 8_030_261_248 - 128_256 * 4096 - (2 * 32 + 1) * 4096  # all but the embedding and the norms
    assert count_int8(llama) == converted
    assert less == full._replace(weights=full.weights - converted)
    fewest = [choose_ways(llama, s, "bfloat16", devices(4), None, 40e9).tensor for s in (PAPER, half)]
    assert fewest == [1, 2]  # 16 of 40 GB leave more than half, 24 do not


def test_responses_that_have_less_room_are_read_in_fewer_bytes(llama):
    share = dataclasses.replace(PAPER, cache_share=0.25)
    full, less = (token_bytes(llama, s, "bfloat16", 4, 1) for s in (PAPER, share))
    prompt = PAPER.prompt_length / (PAPER.prompt_length + 8 * PAPER.max_new_tokens)
    assert less == full._replace(caches=pytest.approx(full.caches * (prompt + 0.25 * (1 - prompt))))


@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "H100", "H200"])
def test_the_cheapest_of_the_ways_is_taken_and_its_numbers_are_told(llama, chip):
    sampling, chip = dataclasses.replace(PAPER, slots=32), CHIPS[chip]
    costs = {tensor: token_cost(llama, sampling, "bfloat16", chip.per_host, tensor, chip)
             for tensor in (1, 2, 4, 8) if chip.per_host % tensor == 0
             and 2 * count_params(llama) / tensor <= chip.hbm_bytes / 2}
    found = ways(llama, chip, sampling)
    best = min(costs.values(), key=lambda cost: cost.seconds)
    assert found.tensor == best.tensor
    assert f"tensor {best.tensor}: a token of 256 lanes takes {best.seconds * 1e3:.3g} ms" in found.why
    for tensor, cost in costs.items():
        assert tensor == best.tensor or f"at tensor {tensor} {cost.seconds * 1e3:.3g} ms" in found.why


def test_more_lanes_on_slower_links_want_fewer_ways(llama):
    """The weights a lane saves shrink with their number, what it sends does not."""
    chip = dataclasses.replace(CHIPS["H100"], link=10e9)
    lanes = [ways(llama, chip, dataclasses.replace(PAPER, slots=slots)).tensor for slots in (8, 64, 512)]
    assert lanes == sorted(lanes, reverse=True)
    assert lanes[0] > lanes[-1] == 1


def test_weights_are_cut_until_half_of_the_memory_is_left_to_caches(llama):
    slow = dataclasses.replace(CHIPS["v6e"], link=1.0)  # so that every all-reduce is too much
    found = {gib: choose_ways(llama, PAPER, "bfloat16", devices(4), slow, gib * GIB) for gib in (31, 29, 14, 3)}
    assert {gib: way.tensor for gib, way in found.items()} == {31: 1, 29: 2, 14: 4, 3: 4}
    assert "tensor 1 leaves the caches too little memory" in found[29].why
    assert "tensor 4: the most there is, since 16.1 GB of weights leave less than half" in found[3].why


def test_key_heads_and_slots_divide(llama):
    assert ways(dataclasses.replace(llama, kv_heads=2), CHIPS["v6e"]).tensor == 2
    assert ways(dataclasses.replace(llama, kv_heads=1), CHIPS["v6e"]).tensor == 1
    slow = dataclasses.replace(CHIPS["v6e"], link=1.0)
    assert ways(llama, slow, dataclasses.replace(PAPER, slots=2)).tensor == 2  # two groups for two slots
    assert ways(llama, slow, dataclasses.replace(PAPER, slots=3)).tensor == 4


def test_what_tells_no_memory_holds_weights_whole_and_what_tells_no_bandwidth_as_few_as_fit(llama):
    cpu = choose_ways(llama, PAPER, "bfloat16", devices(8, "cpu", "cpu"), None, None)
    assert cpu.tensor == 1
    assert "a cpu device tells no memory" in cpu.why
    found = choose_ways(llama, PAPER, "bfloat16", devices(8, "NVIDIA A100", "gpu"), None, 25 * GIB)
    assert found.tensor == 2
    assert "the bandwidth of a NVIDIA A100 is not known" in found.why
