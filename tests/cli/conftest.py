"""A command line run in this process, and a micro world with an untrained model of its tokens."""

import json

import jax
import pytest

from rlhf_jax.cli import main as cli
from rlhf_jax.data.world import WorldConfig, write_world
from rlhf_jax.models import DecoderConfig, init_params, save_hf


@pytest.fixture
def rlhf_jax(monkeypatch, capsys):
    """Runs a command line; returns (exit status, stdout, stderr)."""

    def command(*args):
        monkeypatch.setattr("sys.argv", ["rlhf-jax", *map(str, args)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldConfig(sft_rows=24, preference_rows=16, prompt_rows=8, eval_prompts=8))
    sizes = {"vocab_size": 400, "embed": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 32}
    vocab = len(json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    config = DecoderConfig("llama", **{**sizes, "vocab_size": vocab}, max_position=256, tie_embeddings=True,
                           bos_token_id=1, eos_token_ids=(4,), pad_token_id=0)
    params = jax.device_get(init_params(jax.random.key(0), config))
    save_hf(folder / "base", params, config, tokenizer_from=folder / "tokenizer")
    return folder
