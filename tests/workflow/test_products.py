"""Finished products: what a record says of them, and that whatever changed is named wherever it would be used."""

import hashlib
import json
import shutil

import pytest

from rlhf_jax.cli.verbs import VERBS, named
from rlhf_jax.config.build import build
from rlhf_jax.workflow import products
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.context import Context
from rlhf_jax.workflow.products import RECORD, DamagedProduct
from rlhf_jax.workflow.stage import Run, StageConflict, hash_path, run_stage
from rlhf_jax.workflow.stages.shards import read_shards
from rlhf_jax.workflow.verbs import STAGES

FILES = {"shard-00000.jsonl": b"one\n", "model/model.safetensors": b"\x00\x01\x02", "model/adapter/adapter.bin": b""}
ASIDE = {"quarantine-train.jsonl": b"bad", "model/README.md": b"a card", "events.out.tfevents.1.2": b"",
         ".shard-00001.jsonl.7.tmp": b"", "reference_cache/reference-1.f32": b"", "trackers.json": b"{}"}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def made(folder):
    """A stage of these files, as run_stage makes and reuses it."""
    return run_stage(folder, "sample", {}, lambda folder: write(folder, FILES | ASIDE) or {})


def test_the_record_lists_the_products_with_their_sizes_and_hashes(tmp_path):
    made(tmp_path / "s")
    record = json.loads((tmp_path / "s" / RECORD).read_text())
    assert record["products"] == {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                                  for name, content in FILES.items()}


DAMAGES = {
    "deleted": (lambda path: path.unlink(), r"is missing \({size} bytes\)"),
    "a folder in its place": (lambda path: path.unlink() or path.mkdir(), r"is missing \({size} bytes\)"),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 bytes, and {size} were written"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, and {size} were written"),
    "grown": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "bytes, and {size} were written"),
    "a bit flipped": (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
                      "has other contents than were written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["shard-00000.jsonl", "model/model.safetensors"])
def test_a_damaged_product_is_named_with_the_way_out_and_that_way_leads_out(name, damage, tmp_path):
    folder, (change, words) = tmp_path / "s", DAMAGES[damage]
    made(folder)
    change(folder / name)
    said = f"{name} .*{words.format(size=len(FILES[name]))}.*remove .*stage.json.*give the command"
    with pytest.raises(DamagedProduct, match=said):
        made(folder)
    with pytest.raises(DamagedProduct, match=said):
        hash_path((folder / name).parent)
    (folder / RECORD).unlink()
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    assert not made(folder).reused
    assert made(folder).reused


def test_what_is_no_product_may_change(tmp_path):
    made(tmp_path / "s")
    for name in ASIDE:
        (tmp_path / "s" / name).unlink()
    assert made(tmp_path / "s").reused


def test_checkpoints_are_removed_once_the_record_is_there_and_whoever_dies_meanwhile_has_nothing_to_do_again(
        tmp_path, monkeypatch):
    folder, calls = tmp_path / "s", []

    def body(folder):
        calls.append(write(folder, FILES | {"checkpoints/4/state": b"weights"}))
        return {}

    def die(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_jax.workflow.stage.drop_checkpoints", die)
        with pytest.raises(KeyboardInterrupt):
            run_stage(folder, "sft", {}, body)
    write(folder, {".checkpoints.done/2/state": b"half of an older one"})
    assert list(json.loads((folder / RECORD).read_text())["products"]) == sorted(FILES)
    assert run_stage(folder, "sft", {}, body).reused
    assert len(calls) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["inputs.json", "model", "shard-00000.jsonl", RECORD]


def test_only_what_is_read_is_looked_at_beside_other_damage(tmp_path):
    made(tmp_path / "s")
    (tmp_path / "s" / "shard-00000.jsonl").unlink()
    hash_path(tmp_path / "s" / "model")
    with pytest.raises(DamagedProduct, match=r"shard-00000.jsonl is missing"):
        hash_path(tmp_path / "s")


def test_contents_of_a_large_file_are_compared_only_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "SMALL", 2)
    made(tmp_path / "s")
    DAMAGES["a bit flipped"][0](tmp_path / "s" / "model" / "model.safetensors")
    assert made(tmp_path / "s").reused
    with pytest.raises(DamagedProduct, match=r"model.safetensors has other contents"):
        hash_path(tmp_path / "s" / "model")
    DAMAGES["truncated"][0](tmp_path / "s" / "model" / "model.safetensors")
    with pytest.raises(DamagedProduct, match=r"model.safetensors has 2 bytes"):
        made(tmp_path / "s")


@pytest.mark.parametrize("value", [[], {"x": 3}, {"x": {"bytes": "3", "sha256": ""}}, {"x": {"bytes": 3}}], ids=str)
def test_a_list_of_products_that_is_none_is_a_damaged_record(value, tmp_path):
    made(tmp_path / "s")
    record = json.loads((tmp_path / "s" / RECORD).read_text())
    (tmp_path / "s" / RECORD).write_text(json.dumps(record | {"products": value}))
    with pytest.raises(StageConflict, match=r"stage.json is damaged"):
        made(tmp_path / "s")


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def chain(model, world, lone_mesh):
    """chain(folder, verb): the verbs generate, score, pairs, dpo and export, each on what the one before left there."""
    def run(folder, verb):
        out = {name: str(folder / name) for name in ("generate", "score", "pairs", "dpo", "export")}
        settings = {
            "generate": {"model_name_or_path": str(model), "shard_size": 2, "num_generations": 2, "slots": 2,
                         "max_new_tokens": 4, "block": 4, "dataset_name": str(world / "prompts.jsonl[:8]")},
            "score": {"kind": "function", "function": f"{__name__}:length", "input": out["generate"]},
            "pairs": {"input": out["score"]},
            "dpo": {"model_name_or_path": str(model), "pairs": f"{out['pairs']}/pairs.jsonl", "max_steps": 1,
                    "train_batch_size": 2, "micro_rows": 2, "row_length": 160},
            "export": {"model_name_or_path": f"{out['dpo']}/model"},
        }[verb]
        context = Context(Run(folder / verb, {}, announce=lambda text: None, single=True), lone_mesh)
        command = build(named(VERBS[verb].options), {**settings, "output_dir": out[verb]})
        return context.do(verb, STAGES[verb](command, context))

    return run


@pytest.fixture(scope="module")
def finished(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    for verb in ("generate", "score", "pairs", "dpo", "export"):
        assert not chain(folder, verb).reused
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.longer
@pytest.mark.parametrize(("name", "verbs"), [
    ("generate/shard-00002.jsonl", ("generate", "score")),
    ("score/shard-00003.jsonl", ("score", "pairs")),
    ("pairs/pairs.jsonl", ("pairs", "dpo")),
    ("dpo/model/model.safetensors", ("dpo", "export")),
    ("dpo/model/config.json", ("dpo", "export")),
    ("dpo/model/tokenizer.json", ("dpo", "export")),
    ("export/model/model.safetensors", ("export",)),
])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "a bit flipped"])
def test_neither_the_verb_that_made_it_nor_the_next_one_uses_a_damaged_product(name, verbs, damage, chain, copy):
    DAMAGES[damage][0](copy / name)
    for verb in verbs:
        with pytest.raises(DamagedProduct, match=name.rsplit("/", 1)[1]):
            chain(copy, verb)


@pytest.mark.longer
def test_a_shard_made_again_is_the_shard_that_was_lost(chain, copy, finished):
    (copy / "generate" / "shard-00001.jsonl").unlink()
    (copy / "generate" / RECORD).unlink()
    assert not chain(copy, "generate").reused
    assert read_bytes(copy / "generate") == read_bytes(finished / "generate")
    assert chain(copy, "score").reused


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("change", ["added", "a hole"])
def test_shards_that_are_not_those_of_one_stage_are_refused(record, change, chain, copy):
    folder = copy / "generate"
    if not record:
        (folder / RECORD).unlink()
        (folder / "inputs.json").unlink()
    if change == "added":
        shutil.copy(folder / "shard-00000.jsonl", folder / f"shard-0000{4 if record else 5}.jsonl")
    else:
        (folder / "shard-00001.jsonl").unlink()
    with pytest.raises((ValueError, DamagedProduct), match=r"shard-0000[14].jsonl"):
        read_shards(folder)


def test_samples_of_a_stage_that_is_not_finished_are_not_scored(chain, copy):
    (copy / "generate" / RECORD).unlink()
    (copy / "generate" / "shard-00003.jsonl").unlink()
    with pytest.raises(ValueError, match="generate is not finished"):
        chain(copy, "score")


def test_weights_changed_behind_a_runs_back_are_not_read(copy, lone_mesh):
    path = copy / "dpo" / "model" / "model.safetensors"
    Checkpoint(path.parent).params(lone_mesh)
    DAMAGES["a bit flipped"][0](path)
    with pytest.raises(DamagedProduct, match=r"model.safetensors has other contents"):
        Checkpoint(path.parent).params(lone_mesh)
