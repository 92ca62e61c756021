"""Weights straight into sharded arrays: the same bytes on any mesh, and no host that holds the whole."""

import json
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from rlhf_jax.config.mesh import MeshConfig
from rlhf_jax.models import DecoderConfig, load_params, param_specs, save_hf
from rlhf_jax.models.params import map_specs
from rlhf_jax.parallel import make_mesh, param_shardings


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mixtral"])
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 4, "tensor": 2}])
def test_sharded_arrays_hold_what_is_loaded_whole(family, shape, tiny, weights, tmp_path):
    changes = {"experts": 4, "experts_per_token": 2} if family == "mixtral" else {}
    config = tiny(family, vocab_multiple=32, **changes)
    save_hf(tmp_path, weights(config), config, max_shard_bytes=4000)
    mesh = make_mesh(MeshConfig(**shape))
    shardings = param_shardings(config, mesh)
    loaded = load_params(tmp_path, config, np.float32, shardings)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), load_params(tmp_path, config))
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
    assert loaded["embed"].shape == (64, 16)
    assert loaded["embed"].addressable_shards[0].data.shape[0] < 64


def test_the_vocabulary_is_padded_with_zeros_and_files_never_see_it(tiny, weights, tmp_path):
    config = tiny()
    params = jax.device_get(weights(config))
    save_hf(tmp_path / "plain", params, config)
    padded_config = tiny(vocab_multiple=32)
    padded = load_params(tmp_path / "plain", padded_config)
    assert padded["embed"].shape == padded["head"].shape == (64, 16)
    np.testing.assert_array_equal(padded["head"][:48], params["head"])
    assert not padded["head"][48:].any()
    save_hf(tmp_path / "again", padded, padded_config)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


PROCESS = textwrap.dedent("""
    import json, sys, threading, time
    import jax
    port, index, folder = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    from rlhf_jax.models import load_params, read_config, save_hf
    from rlhf_jax.parallel import make_mesh, param_shardings
    config = read_config(folder)
    shardings = param_shardings(config, make_mesh())
    peak = start = 0
    def anonymous():
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
    def watch():
        global peak
        while True:
            peak = max(peak, anonymous())
            time.sleep(0.001)
    start = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    params = load_params(folder, config, "float32", shardings)
    jax.block_until_ready(params)
    mine = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
    most = peak
    save_hf(folder + "/again", params, config, max_shard_bytes=100_000_000)
    print(json.dumps({"peak": most - start, "mine": mine}))
    """)


@pytest.mark.slow
def test_each_of_two_processes_reads_its_own_shards_and_little_more_and_writes_half_of_the_files(tmp_path):
    """Measured: the anonymous memory of each process while both load a checkpoint of several files."""
    config = DecoderConfig("llama", vocab_size=8192, embed=1024, layers=6, heads=8, kv_heads=8, head_dim=128, mlp=4096)
    draws = np.random.default_rng(0)
    params = map_specs(lambda s: draws.random(s.shape, np.float32), param_specs(config))
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    save_hf(tmp_path, params, config, max_shard_bytes=100_000_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin", "HOME": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(port), str(i), str(tmp_path)], env=environment,
                                  stdout=subprocess.PIPE, text=True) for i in range(2)]
    found = [json.loads(p.communicate(timeout=300)[0].splitlines()[-1]) for p in processes]
    one_tensor = 1024 * 4096 * 4
    for process in found:
        assert process["mine"] == pytest.approx(total / 2, rel=0.01)
        assert process["peak"] < process["mine"] + largest / 2 + 2 * one_tensor + 30e6, found
        assert process["peak"] < 0.8 * total
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:  # written by both, every second file each
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
