"""Stages: skipped when done, refused when foreign, continued when interrupted; the record comes last."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rlhf_jax.config.data import GradedOptions, RenderOptions, RowOptions
from rlhf_jax.config.sampling import SamplingConfig
from rlhf_jax.workflow.checkpoint import Checkpoint
from rlhf_jax.workflow.datasets import data_key
from rlhf_jax.workflow.products import MODEL, RECORD, DamagedProduct
from rlhf_jax.workflow.stage import Run, Stage, StageConflict, fingerprint, hash_path, run_stage, write_json_atomic

INPUTS = {"data": "abc", "options": {"learning_rate": 0.1, "seed": 0}, "sampling": SamplingConfig()}


def key_of(rows, render=None):
    """What identifies fine-tuning rows in a stage's inputs."""
    return data_key("sft", rows, GradedOptions(), render or RenderOptions())


def counting(report=None):
    calls = []

    def body(folder):
        calls.append(sorted(p.name for p in folder.iterdir()))
        return report or {"n": len(calls)}

    return calls, body


def test_a_finished_stage_is_not_run_again_and_reports_what_it_reported(tmp_path):
    calls, body = counting()
    first = run_stage(tmp_path / "s", "sample", INPUTS, body)
    again = run_stage(tmp_path / "s", "sample", dict(reversed(INPUTS.items())), body)
    assert len(calls) == 1
    assert (first.reused, again.reused) == (False, True)
    assert (again.report, again.key, again.seconds) == (first.report, first.key, first.seconds)


@pytest.mark.parametrize(("changed", "named"), [
    ({"data": "xyz"}, "data"),
    ({"options": {"learning_rate": 0.2, "seed": 0}}, "options.learning_rate"),
    ({"options": {"learning_rate": 0.1, "seed": 0, "new": 1}}, "options.new"),
    ({"sampling": SamplingConfig(top_k=5)}, "sampling.top_k"),
])
@pytest.mark.parametrize("finished", [True, False])
def test_other_inputs_are_a_conflict_that_names_exactly_the_keys_that_differ(tmp_path, changed, named, finished):
    def die(folder):
        (folder / "shard-00000.jsonl").write_text("")
        raise KeyboardInterrupt

    if finished:
        run_stage(tmp_path / "s", "sample", INPUTS, counting()[1])
    else:
        with pytest.raises(KeyboardInterrupt):
            run_stage(tmp_path / "s", "sample", INPUTS, die)
    calls, body = counting()
    with pytest.raises(StageConflict, match=f"these inputs differ: {named}. Choose another output_dir"):
        run_stage(tmp_path / "s", "sample", INPUTS | changed, body)
    assert not calls


def test_a_start_that_made_nothing_but_a_list_of_bad_rows_gives_way_to_other_inputs(tmp_path):
    def refuse(folder):
        (folder / "quarantine-train.jsonl").write_text("")
        raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        run_stage(tmp_path / "s", "sft", INPUTS, refuse)
    assert run_stage(tmp_path / "s", "sft", INPUTS | {"data": "repaired"}, counting()[1]).report == {"n": 1}


def test_the_same_inputs_under_another_stage_name_are_a_conflict(tmp_path):
    run_stage(tmp_path / "s", "sample", INPUTS, counting()[1])
    with pytest.raises(StageConflict, match="holds the sample stage"):
        run_stage(tmp_path / "s", "score", INPUTS, counting()[1])


def test_an_interrupted_stage_finds_its_partial_work_and_continues(tmp_path):
    def dies_halfway(folder):
        (folder / "shard-0").write_text("done")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run_stage(tmp_path / "s", "sample", INPUTS, dies_halfway)
    assert not (tmp_path / "s" / RECORD).exists()
    calls, body = counting()
    assert not run_stage(tmp_path / "s", "sample", INPUTS, body).reused
    assert calls == [["inputs.json", "shard-0"]]


def test_the_record_is_written_after_everything_else(tmp_path):
    seen = []

    def body(folder):
        seen.append(sorted(p.name for p in folder.iterdir()))
        return {}

    run_stage(tmp_path / "s", "sample", INPUTS, body)
    assert seen == [["inputs.json"]]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["inputs.json", RECORD]


def test_the_record_is_written_once_all_processes_are_through(tmp_path, monkeypatch):
    """Another one may still be writing a file that belongs into the list of products."""
    def others(value):
        if value is None:
            assert not (tmp_path / "s" / RECORD).exists()
            (tmp_path / "s" / "theirs").write_text("written last")
        return [value]

    monkeypatch.setattr("rlhf_jax.workflow.stage.gather", others)
    run_stage(tmp_path / "s", "sample", INPUTS, counting()[1])
    assert list(json.loads((tmp_path / "s" / RECORD).read_text())["products"]) == ["theirs"]


def test_a_leftover_temporary_record_is_no_record(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / f".{RECORD}.tmp").write_text('{"key": "other", "inp')
    (folder / ".inputs.json.tmp").write_text("")
    calls, body = counting()
    assert not run_stage(folder, "sample", INPUTS, body).reused
    assert len(calls) == 1


def test_what_a_killed_run_left_half_written_is_gone_when_its_stage_starts_again(tmp_path):
    def dies(folder):
        for name in (".shard-00000.jsonl.tmp", "model/.config.json.tmp", "shard-00001.jsonl", "notes.tmp"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path / "s", "sample", INPUTS, dies)
    calls, body = counting()
    run_stage(tmp_path / "s", "sample", INPUTS, body)
    assert calls == [["inputs.json", "model", "notes.tmp", "shard-00001.jsonl"]]
    assert not list((tmp_path / "s" / "model").iterdir())


def test_what_lay_in_a_folder_before_is_neither_made_nor_touched_by_its_stage(tmp_path):
    """A log of `tee`, another run, a draft of the user's."""
    for name in ("log.txt", "other/manifest.json", "mine/.draft.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / ".kept.tmp").mkdir()

    def made(folder):
        (folder / "shard.jsonl").write_text("{}")
        return {}

    def dies(folder):
        (folder / ".half.tmp").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "sample", INPUTS, dies)
    run_stage(tmp_path, "sample", INPUTS, made)
    assert set(json.loads((tmp_path / RECORD).read_text())["products"]) == {"shard.jsonl"}
    assert (tmp_path / "mine/.draft.tmp").read_text() == "before"
    assert (tmp_path / ".kept.tmp").is_dir()
    assert not (tmp_path / ".half.tmp").exists()
    (tmp_path / "log.txt").write_text("grows on")
    assert run_stage(tmp_path, "sample", INPUTS, made).reused


def test_a_folder_with_files_of_ones_own_takes_other_inputs_after_a_start_that_made_nothing(tmp_path):
    (tmp_path / "log.txt").write_text("before")

    def dies(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "sample", INPUTS, dies)
    assert not run_stage(tmp_path, "sample", INPUTS | {"data": "other"}, counting()[1]).reused


def test_what_is_left_of_a_stage_is_its_work_and_its_product(tmp_path):
    """Whoever removes the records to have a stage redone keeps its shards, for these inputs alone."""
    names = iter(("shard-00000.jsonl", "shard-00000.jsonl", "shard-00001.jsonl"))

    def makes(folder):
        (folder / next(names)).write_text("{}")
        (folder / "official.json").write_text("new")
        return {}

    (tmp_path / "official.json").write_text("of the user's")
    run_stage(tmp_path, "sample", INPUTS, makes)
    assert set(json.loads((tmp_path / RECORD).read_text())["products"]) == {"shard-00000.jsonl", "official.json"}
    for name in (RECORD, "inputs.json"):
        (tmp_path / name).unlink()

    def dies(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "sample", INPUTS, dies)
    with pytest.raises(StageConflict, match="these inputs differ: data"):
        run_stage(tmp_path, "sample", INPUTS | {"data": "other"}, makes)
    run_stage(tmp_path, "sample", INPUTS, counting()[1])
    assert "shard-00000.jsonl" in json.loads((tmp_path / RECORD).read_text())["products"]


@pytest.mark.parametrize("content", ['[{"text": "x"}]', '{"text": "x"}', "no JSON"])
def test_a_file_of_the_users_that_is_called_as_a_record_is_none(content, tmp_path):
    (tmp_path / "inputs.json").write_text(content)
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    assert key_of(RowOptions(dataset_name=str(tmp_path / "train.jsonl")))


def test_rows_of_a_stage_that_has_not_finished_or_lost_some_are_refused(tmp_path):
    def write(folder, names):
        for name in names:
            (folder / name).write_text('{"text": "a"}\n')
        return {}

    def dies(folder):
        write(folder, ["train-00000.jsonl"])
        raise KeyboardInterrupt

    folder = tmp_path / "mix"
    folder.mkdir()
    write(folder, ["mine.jsonl"])
    with pytest.raises(KeyboardInterrupt):
        run_stage(folder, "data", INPUTS, dies)
    sources = [RowOptions(dataset_name=str(folder), split="train"),
               RowOptions(dataset_name=str(folder / "train-*.jsonl")),
               RowOptions(dataset_name=str(folder / "train-00000.jsonl"))]
    for rows in sources:
        with pytest.raises(StageConflict, match="a part of what the stage 'data' makes, which has not finished"):
            key_of(rows)
    assert key_of(RowOptions(dataset_name=str(folder / "mine.jsonl")))  # which the stage has nothing to do with
    run_stage(folder, "data", INPUTS, lambda folder: write(folder, ["train-00000.jsonl", "train-00001.jsonl"]))
    assert len({key_of(rows) for rows in sources}) == 3
    (folder / "train-00001.jsonl").unlink()
    for rows in sources:
        with pytest.raises(DamagedProduct, match=r"train-00001\.jsonl is missing"):
            key_of(rows)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_fingerprint_sees_every_field_and_no_order():
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    base = SamplingConfig()
    for field, value in (("seed", 1), ("temperature", 0.5), ("stop_strings", ("x",)), ("lanes", 1)):
        assert fingerprint(dataclasses.replace(base, **{field: value})) != fingerprint(base)


def test_a_path_is_hashed_by_names_and_bytes_and_not_by_where_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("same")
    assert hash_path(tmp_path / "a") == hash_path(tmp_path / "b")
    (tmp_path / "b" / "x.txt").write_text("other")
    assert hash_path(tmp_path / "a") != hash_path(tmp_path / "b")
    (tmp_path / "b" / "x.txt").rename(tmp_path / "b" / "y.txt")
    (tmp_path / "b" / "y.txt").write_text("same")
    assert hash_path(tmp_path / "a") != hash_path(tmp_path / "b")
    (tmp_path / "a" / RECORD).write_text("12.3 seconds")
    (tmp_path / "b" / "y.txt").rename(tmp_path / "b" / "x.txt")
    assert hash_path(tmp_path / "a") == hash_path(tmp_path / "b")
    for name in ("README.md", ".cache/x.lock", ".gitattributes"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("may be changed freely")
    assert hash_path(tmp_path / "a") == hash_path(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no file or folder 'hub/name'"):
        hash_path("hub/name")


def test_data_are_known_by_the_bytes_they_are_read_from_however_they_are_named(tmp_path):
    """A glob, a slice and a tfds folder are no paths themselves; the files they stand for are what counts."""
    (tmp_path / "d").mkdir()
    (tmp_path / "builder").mkdir()
    files = [tmp_path / name for name in ("d/a.jsonl", "d/b.jsonl", "builder/rows.array_record")]
    names = [f"{tmp_path}/d/*.jsonl", f"{tmp_path}/d/a.jsonl[:1000]", f"{tmp_path}/d[:1000]",
             f"tfds:{tmp_path}/builder", f"tfds:{tmp_path}/builder[:10]"]

    def keys():
        return [key_of(RowOptions(name)) for name in names]

    for file in files:
        file.write_text("first")
    before = keys()
    assert keys() == before
    assert len(set(before)) == len(names)
    files[0].write_text("other")
    changed = [a != b for a, b in zip(keys(), before, strict=True)]
    assert changed == [True, True, True, False, False]
    files[0].write_text("first")
    files[1].write_text("other")
    files[2].write_text("other")
    changed = [a != b for a, b in zip(keys(), before, strict=True)]
    assert changed == [True, False, True, True, True]


def test_a_chat_template_is_known_by_its_text_and_not_by_its_place(make_model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("{{ messages }}")
    model = make_model(tmp_path / "model")

    def keys(template):
        return key_of(RowOptions(), RenderOptions(chat_template_path=template)), Checkpoint(model, template).key

    first = keys(str(tmp_path / "a"))
    assert keys(str(tmp_path / "b")) == first
    (tmp_path / "a").write_text("{{ messages }}!")
    for found in (keys(str(tmp_path / "a")), keys(None)):
        assert all(a != b for a, b in zip(found, first, strict=True))
    assert Checkpoint(model).key == hash_path(model)


def test_data_are_known_by_their_rows_too_and_hub_names_by_themselves(tmp_path):
    (tmp_path / "train.jsonl").write_text("rows")
    (tmp_path / "test.jsonl").write_text("other rows")
    one, other = (key_of(RowOptions(f"{tmp_path}/train.jsonl[:{n}]")) for n in (10, 20))
    assert one != other
    split = key_of(RowOptions(str(tmp_path), split="train[:10]"))
    (tmp_path / "test.jsonl").write_text("not in this split")
    assert key_of(RowOptions(str(tmp_path), split="train[:10]")) == split
    assert key_of(RowOptions("hub/name")) != key_of(RowOptions("hub/other"))
    assert key_of(RowOptions("hub/name[:10]")) == key_of(RowOptions("hub/name[:10]"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying(Stage):
    """Copies a number; counts how often."""

    source: Any
    options: SamplingConfig = SamplingConfig()
    times: int = 1
    runs: ClassVar[list[str]] = []

    def run(self, folder, context):
        self.runs.append(context.name)
        return {"key": context.key}


def test_a_stages_inputs_are_its_fields_and_what_has_a_key_stands_by_it(make_context, tmp_path):
    stage = Copying(source=SimpleNamespace(key="k1"))
    assert stage.inputs() == {"source": "k1", "options": dataclasses.asdict(SamplingConfig()) | {"stop_strings": []},
                              "times": 1}
    finished = make_context(tmp_path).do("copy", stage)
    assert finished.report == {"key": finished.key}
    changes = [{"source": SimpleNamespace(key="k2")}, {"options": SamplingConfig(seed=1)}, {"times": 2}]
    keys = {make_context(tmp_path).do("copy", dataclasses.replace(stage, **change)).key for change in changes}
    assert len(keys | {finished.key}) == 4
    other = SimpleNamespace(key="k1", folder="elsewhere")
    assert make_context(tmp_path).do("copy", dataclasses.replace(stage, source=other)).reused


def test_the_same_stage_under_one_name_is_done_once_in_a_run_and_under_two_names_twice(make_context, tmp_path):
    Copying.runs.clear()
    context, stage = make_context(tmp_path), Copying(source="text")
    first, second = context.do("a", stage), context.do("a", Copying(source="text"))
    assert (first.key, first.folder) == (second.key, second.folder)
    model = context.train("b", stage)
    assert Copying.runs == ["a", "b"]
    assert [stage.name for stage in context.run.stages] == ["a", "b"]
    assert (model.key, model.folder) == (context.run.stages[1].key, context.run.stages[1].folder / MODEL)


def test_a_run_keeps_stages_of_other_configurations_and_lists_only_its_own(tmp_path):
    said = []
    run = Run(tmp_path, {"seed": 1}, announce=said.append)
    one = run.stage("online/round-1/sample", {"seed": 1}, counting()[1])
    assert run.stage("online/round-1/sample", {"seed": 1}, counting()[1]).folder == one.folder
    other = Run(tmp_path, {"seed": 2}, announce=said.append)
    two = other.stage("online/round-1/sample", {"seed": 2}, counting()[1])
    assert one.folder != two.folder
    assert one.folder.is_dir()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["config"] == {"seed": 2}
    assert [tmp_path / Path(s["folder"]) for s in manifest["stages"]] == [two.folder]
    again = Run(tmp_path, {"seed": 1}, announce=said.append)
    assert again.stage("online/round-1/sample", {"seed": 1}, counting()[1]).reused
    assert said[-1] == "online/round-1/sample: already done"


def test_a_run_of_another_configuration_is_not_finished_until_it_is(tmp_path):
    """Its results and its policy would be taken for those of the options that the manifest has."""
    def begin(seed, title="a", single=False):
        run = Run(tmp_path, {"seed": seed, "title": title}, announce=lambda _: None, single=single)
        run.announce_earlier()
        return run if single else run.stage("sft", {"seed": seed}, counting()[1])

    begin(1)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "policy").symlink_to("stages")
    (tmp_path / "model").mkdir()
    begin(1)
    begin(1, title="nothing that a stage depends on")
    begin(2, single=True)  # a verb that has not begun, and whose folder this is not
    assert (tmp_path / "results.json").is_file()
    assert (tmp_path / "policy").is_symlink()
    begin(2)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "policy").is_symlink()
    assert (tmp_path / "model").is_dir()
