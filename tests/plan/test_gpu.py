"""Real compilations for NVIDIA GPUs, on a machine without one, and only where jax's CUDA plugin is installed."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rlhf_jax.models import config_to_hf
from rlhf_jax.parallel import topology
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.plan.hlo import KERNELS, parse
from rlhf_jax.plan.report import read_json

ROOT = Path(__file__).parent.parent.parent
needs_compiler = pytest.mark.skipif(not topology.has_gpu_compiler(), reason=(
    "jax's CUDA plugin is not installed: pip install 'rlhf_jax[plan-gpu]' brings XLA's compiler for GPUs"))
LENGTH, LAYERS = 2048, 2
COMPILE = """
import sys
from pathlib import Path
from rlhf_jax.parallel import topology
topology.prepare()
from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.config.preference import PreferenceOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.config.training import TrainConfig
from rlhf_jax.models import DecoderConfig
from rlhf_jax.parallel.accelerators import find_accelerator
from rlhf_jax.plan.compile import compile_program
from rlhf_jax.plan.measure import placed
from rlhf_jax.plan.programs import build
from rlhf_jax.plan.shapes import Assumptions, SampleShape, TrainShape

length, layers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
config = DecoderConfig("llama", vocab_size=1024, embed=256, layers=layers, heads=4, kv_heads=2, head_dim=64, mlp=512,
                       max_position=length)

def step(attention):
    train = TrainConfig(train_batch_size=8, micro_rows=1, row_length=length, dtype="bfloat16", remat="full",
                        logits_chunk=128, attn_implementation=attention)
    return TrainShape("dpo", config, PreferenceOptions(train=train), length, 2, Assumptions())

sampling = SamplingConfig(slots=4, num_generations=4, max_new_tokens=128, block=16)
narrow = SamplingConfig(slots=4, num_generations=4, max_new_tokens=128, block=16, weights_dtype="int8")
stages = {"auto": step("auto"), "xla": step("xla"),
          "decode": SampleShape("decode", config, sampling, "bfloat16", 129, Assumptions()),
          "int8": SampleShape("decode", config, narrow, "bfloat16", 129, Assumptions())}
accelerator = find_accelerator("1xH100")
devices = topology.devices_of(accelerator)
for name, stage in stages.items():
    compiled = compile_program(build(stage, placed(stage, MeshConfig(), accelerator, devices).mesh))
    (folder / f"{name}.txt").write_text(compiled.text)
    print(name, compiled.memory.temporaries)
"""


def python(*args):
    """What a process of its own prints, with the compilers' flags of a user and not those of these tests."""
    clean = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Name -> (text, bytes of temporaries), for one H100: DPO steps with either attention, and a block of decoding."""
    folder = tmp_path_factory.mktemp("programs")
    lines = python("-c", COMPILE, str(LENGTH), str(LAYERS), str(folder)).split("\n")
    sizes = {name: float(size) for name, size in (line.split() for line in lines if line)}
    return {name: ((folder / f"{name}.txt").read_text(), size) for name, size in sizes.items()}


def kernels(text):
    """Name -> how often a Pallas kernel stands in the program."""
    lines = [line for line in text.splitlines() if any(f'custom_call_target="{name}"' in line for name in KERNELS)]
    return Counter(re.search(r'op_name="[^"]*?([^/"]+)/pallas_call"', line)[1] for line in lines)


def largest(text):
    """Elements of the largest array that an instruction outside of a fusion writes."""
    computations, _ = parse(text)
    fused = set(re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", text))
    return max(count for name, computation in computations.items() if name not in fused
               for instruction in computation.instructions if instruction.opcode not in ("parameter", "tuple", "while")
               for _, count in instruction.arrays)


@needs_compiler
@pytest.mark.slow
def test_a_training_step_writes_no_scores_of_whole_rows(programs):
    (ours, temporaries), (plain, whole) = programs["auto"], programs["xla"]
    assert largest(ours) < LENGTH**2 <= largest(plain)
    assert temporaries < LENGTH**2 * 4 * 4 < whole  # four heads' scores in float32


@needs_compiler
@pytest.mark.slow
def test_kernels_are_counted_by_name(programs):
    assert kernels(programs["auto"][0]) == {  # forward, recomputed, and the two of the backward pass; layers are a loop
        "visiting_attention": 2, "visiting_attention_queries": 1, "visiting_attention_keys": 1}
    assert not kernels(programs["xla"][0])
    decoding = kernels(programs["decode"][0])  # layers are no loop
    assert decoding
    assert set(decoding.values()) == {LAYERS}


@needs_compiler
@pytest.mark.slow
def test_products_of_decoding_read_weights_in_eight_bits(programs):
    """Four products of a layer and the head, each of bfloat16 with int8: nothing is widened outside of them, neither
    for each token nor once for all."""
    (whole, _), (narrow, _) = programs["decode"], programs["int8"]
    products = [line for line in narrow.splitlines() if line.startswith("%gemm_fusion") and "s8[" in line]
    assert len(products) == 4 * LAYERS + 1
    assert all(re.search(r"bf16\[[\d,]+\], parameter_1[\d.]*: s8\[", line) for line in products)
    carried = {line.split("->")[0].count("s8[") for line in narrow.splitlines() if line.startswith("%region")}
    assert carried <= {0, 4 * LAYERS + 1}  # the loop over tokens, its body and its condition
    assert max(carried) > 0
    assert "s8[" not in whole


@needs_compiler
@pytest.mark.slow
def test_a_step_over_two_hosts_is_the_gpus_own_program(tiny, tmp_path):
    config = tiny(vocab_size=1024, embed=256, heads=4, kv_heads=2, head_dim=64, mlp=512, max_position=2048)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_to_hf(config)))
    dpo = {"train_batch_size": 64, "micro_rows": 1, "row_length": 1024, "dtype": "bfloat16", "remat": "full"}
    (tmp_path / "small.yaml").write_text(json.dumps({"dpo": dpo, "prompts": {"max_prompt_length": 128}}))
    printed = python("-m", "rlhf_jax.cli.main", "plan", "--config", str(tmp_path / "small.yaml"), "--accelerator",
                     "2x4xH200", "--mesh.data", "2", "--stages", "dpo", "--output", str(tmp_path / "plan.json"))
    ((stage,),) = (report.stages for report in read_json(tmp_path / "plan.json"))
    assert stage.exact
    assert stage.kernels == 4
    assert stage.arguments == pytest.approx(stage.formula_arguments, rel=0.01)
    assert (stage.mesh["data"], stage.mesh["fsdp"]) == (2, 4)
    params = 2 * (256 * (4 + 2 * 2) * 64 + 4 * 64 * 256 + 3 * 256 * 512) + 2 * 1024 * 256
    assert 0 < stage.across / 8 < 2.5 * params  # in each of eight micro-batches: shares of gradients, no weights
    assert (stage.received - stage.across) / 8 > 3 * 3 / 4 * 2 * params  # weights come twice, gradients go back
    assert stage.wide == stage.whole_tree == stage.rematerialized == 0
    assert "CPU's compiler" not in printed


@pytest.mark.parametrize(("plugin", "assembler", "found"), [
    ("0.10.2", "12.9.86", True), ("0.9.0", "12.9.86", False), (None, "12.9.86", False), ("0.10.2", None, False)])
def test_the_compiler_is_used_if_it_is_there_and_of_jaxs_version(monkeypatch, plugin, assembler, found):
    versions = {"jax": "0.10.2", "jax-cuda12-pjrt": plugin, "nvidia-cuda-nvcc-cu12": assembler}

    def version(name):
        if versions[name] is None:
            raise topology.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(topology, "version", version)
    assert topology.compiles_exactly(find_accelerator("8xH100")) is found
    assert topology.compiles_exactly(find_accelerator("cpu-8"))
