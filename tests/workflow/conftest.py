"""A micro world, a tiny model of its tokens in a folder, and a run on one device."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import pytest

from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build
from rlhf_jax.config.data import RenderOptions
from rlhf_jax.config.world import WorldConfig
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.rows import Example
from rlhf_jax.data.templates import TEMPLATES
from rlhf_jax.data.world import world_rows, write_world
from rlhf_jax.models import DecoderConfig, save_hf
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.datasets import prompt_groups
from rlhf_jax.workflow.stage import Run
from rlhf_jax.workflow.verbs import STAGES

MARKERS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
           "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
WORLD = WorldConfig(sft_rows=24, preference_rows=16, prompt_rows=24, eval_prompts=4)


@pytest.fixture(scope="module", autouse=True)
def _kept_programs(kept_programs):
    """Many of these tests compile the same programs."""


@pytest.fixture(scope="session")
def micro_run():
    """micro_run(train, slots, shard_size, **more): what `iterate` reads for a whole run on a micro world."""

    def make(train, slots, shard_size, **more):
        sampling = {"num_generations": 2, "max_new_tokens": 8, "slots": slots, "block": slots}
        return {
            "world": {"sft_rows": 24, "preference_rows": 16, "prompt_rows": 16, "eval_prompts": 4},
            "scratch": {"tokenizer": "world:tokenizer", "embed": 16, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 32},
            "sft": {"data": {"dataset_name": "world:sft"}, "train": train},
            "reward": {"data": {"dataset_name": "world:preference"}, "train": train,
                       "eval_data": {"dataset_name": "world:preference_eval"}},
            "gold": {"kind": "function", "function": "rlhf_jax.data.world:gold_judge"},
            "prompts": {"dataset_name": "world:prompts"},
            "loop": {"rounds": 2, "prompts_per_round": 8, "shard_size": shard_size},
            "sampling": sampling,
            "dpo": train,
            "evaluation": {"data": {"dataset_name": "world:eval_prompts"}, "sampling": sampling},
            **more,
        }

    return make


class Launched:
    """`rlhf-jax iterate --config CONFIG --output_dir FOLDER`, or another command with that FOLDER, in one or several
    processes; their output in files.

    folders: each process's own FOLDER, where it is not one for all. dying: how it dies, as mortal.py reads it.
    """

    def __init__(self, xla_flags, config, folder, processes=1, devices=1, command=None, folders=None, dying=None):
        program = ["-m", "rlhf_jax.cli.main"] if dying is None else [str(Path(__file__).parent / "mortal.py")]
        command = command or ["iterate", "--config", config]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.logs = [folder.parent / f"{folder.name}-{i}.log" for i in range(processes)]
        self.processes = []
        for i in range(processes):
            env = {**os.environ, "XLA_FLAGS": xla_flags(devices), "JAX_PLATFORMS": "cpu",
                    "JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"),
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **(dying or {})}
            if processes > 1:  # NPROC: XLA's thread pool must be larger than two cores make it, or Gloo starves
                env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes),
                        "JAX_PROCESS_ID": str(i), "NPROC": "16"}
            with self.logs[i].open("a") as log:
                where = ["--output_dir", str(folders[i] if folders else folder)]
                self.processes.append(subprocess.Popen([sys.executable, *program, *map(str, command), *where],
                                                       env=env, stdout=log, stderr=log))

    def wait(self, timeout=300):
        """Exit statuses; a process that hangs is killed and the test fails."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self):
        return "".join(log.read_text() for log in self.logs)

    def finish(self):
        assert set(self.wait()) == {0}, self.output()[-4000:]


@pytest.fixture(scope="session")
def launch(xla_flags):
    """launch(config, folder, ...) -> `Launched`."""
    return partial(Launched, xla_flags)


@pytest.fixture(scope="session")
def do_verb(make_context):
    """do_verb(verb, folder, **options): the stage of `rlhf-jax VERB --output_dir FOLDER`, keys as there."""

    def do(verb, folder, **options):
        command = build(named(VERBS[verb].options), {"output_dir": str(folder), **options})
        context = make_context(folder, run=Run(folder, command, single=True))
        return context.do(verb, STAGES[verb](command, context))

    return do


@pytest.fixture(scope="session")
def products():
    """products(folder): everything of a run that a later stage or a user reads: samples, scores, pairs, weights."""

    def read(folder: Path) -> dict[str, bytes]:
        wanted = ("pairs.jsonl", "model.safetensors", "judged.jsonl", "config.json")
        files = [p for p in (folder / "stages").rglob("*") if p.name in wanted or p.name.startswith("shard-")]
        return {str(p.relative_to(folder)): p.read_bytes() for p in files if ".model.partial" not in str(p)}

    return read


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """tiny_tokenizer(template, special, bos): bytes and `special` as tokens, under a template of `TEMPLATES`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(template, special=MARKERS, bos="<s>"):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(["the cat"], trainers.BpeTrainer(
            vocab_size=280, special_tokens=list(special), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False))
        eos = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(template, "</s>")
        return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos,
                                       chat_template=TEMPLATES[template])

    return make


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of a micro world."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WORLD)
    return folder


@pytest.fixture(scope="session")
def make_model(world, weights):
    """make_model(folder, seed, **changes): a tiny random model with the world's tokenizer, as a Hugging Face folder."""

    def make(folder, seed=0, **changes):
        tokenizer = Checkpoint(world / "tokenizer").tokenizer
        sizes = {"family": "llama", "vocab_size": len(tokenizer), "embed": 16, "layers": 2, "heads": 2, "kv_heads": 1,
                 "head_dim": 8, "mlp": 32, "max_position": 256, "tie_embeddings": True, "initializer_range": 0.1,
                 "bos_token_id": tokenizer.bos_token_id, "eos_token_ids": (tokenizer.eos_token_id,),
                 "pad_token_id": tokenizer.pad_token_id}
        config = DecoderConfig(**{**sizes, **changes})
        save_hf(folder, jax.device_get(weights(config, seed)), config, tokenizer_from=world / "tokenizer")
        return folder

    return make


@pytest.fixture(scope="session")
def model(tmp_path_factory, make_model):
    return make_model(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="session")
def start(model):
    return Checkpoint(model)


@pytest.fixture(scope="session")
def prompts(start):
    examples = [Example(row["prompt"], prompt_id=row["id"]) for row in world_rows(WORLD)["prompts"]]
    return prompt_groups(examples, start.renderer(RenderOptions()), Funnel())


@pytest.fixture(scope="session")
def make_context(lone_mesh):
    """make_context(folder, **changes): a run in that folder on one device."""

    def make(folder, **changes):
        return Context(**{"run": Run(folder, {}, announce=lambda text: None), "mesh": lone_mesh, **changes})

    return make
