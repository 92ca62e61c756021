import gzip
import json

import numpy as np
import pytest

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.jsonl import SourceError
from rlhf_jax.data.sources import list_files, locate_rows, plain_values, read_rows, source_paths

ROWS = [{"prompt": f"p{i}", "n": i} for i in range(10)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_parquet(path):
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(str(path))


WRITERS = {
    "a.jsonl": lambda path: path.write_text(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "lmflow.json": lambda path: path.write_text(json.dumps({"type": "text_only", "instances": ROWS})),
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_local_files(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert list(read_rows(str(tmp_path / name))) == list(enumerate(ROWS, start=1))


def test_saved_data_set_and_its_arrow_file(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    arrow = next((tmp_path / "one").glob("*.arrow"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
                         ).save_to_disk(str(tmp_path / "two"))
    assert [row for _, row in read_rows(str(tmp_path / "one"))] == ROWS
    assert [row for _, row in read_rows(str(arrow))] == ROWS
    assert [row for _, row in read_rows(str(tmp_path / "two"), split="test")] == ROWS[:2]
    with pytest.raises(SourceError, match="splits train, test"):
        list(read_rows(str(tmp_path / "two")))


def test_tables(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,score\n"a, ""b""\nc",1\nd,2,3\n')
    (number, row), (_, bad) = read_rows(str(tmp_path / "a.csv"))
    assert (number, row) == (3, {"prompt": 'a, "b"\nc', "score": "1"})
    assert bad.reason == "wrong_number_of_columns"
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b'"quote\t1\nplain\t0\n'))
    rows = list(read_rows(str(tmp_path / "a.tsv.gz"), header=("text", "label")))
    assert rows == [(1, {"text": '"quote', "label": "1"}), (2, {"text": "plain", "label": "0"})]
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(read_rows(str(tmp_path / "a.txt"))) == [(1, {"text": "one"}), (3, {"text": "two"})]
    with pytest.raises(SourceError, match="header="):
        list(read_rows(str(tmp_path / "a.txt"), header=("x",)))


def test_slices(tmp_path):
    path = str(tmp_path / "a.jsonl")
    WRITERS["a.jsonl"](tmp_path / "a.jsonl")
    expected = {"[:3]": [1, 2, 3], "[8:]": [9, 10], "[-2:]": [9, 10], "[10%:50%]": [2, 3, 4, 5]}
    assert {text: [number for number, _ in read_rows(path + text)] for text in expected} == expected
    assert [n for n, _ in read_rows(path + "[1:]", split="train[:30%]")] == [2, 3]


def test_folder_of_shards_and_glob(tmp_path):
    for i in (2, 0, 1):
        (tmp_path / f"shard-{i}.jsonl").write_text(json.dumps({"n": i}) + "\n")
    (tmp_path / "notes.md").write_text("not data")
    for source in (str(tmp_path), str(tmp_path / "shard-[0-9].jsonl")):
        assert [(r.row["n"], r.number) for r in locate_rows(source, split="train")] == [(0, 1), (1, 1), (2, 1)]
    assert [r.source.rpartition("/")[2] for r in locate_rows(str(tmp_path) + "[1:2]")] == ["shard-1.jsonl"]


def test_splits_of_a_folder(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text(json.dumps({"f": name}) + "\n")
    assert [row["f"] for _, row in read_rows(str(tmp_path), split="train")] == ["train-0.jsonl", "train-1.jsonl"]
    with pytest.raises(SourceError, match="splits train, valid; say which"):
        list(read_rows(str(tmp_path)))
    with pytest.raises(SourceError, match=r"no file of split 'test'; it holds train-0\.jsonl"):
        list(read_rows(str(tmp_path), split="test"))
    with pytest.raises(SourceError, match="one file, so it has no split 'test'"):
        list(read_rows(str(tmp_path / "valid.jsonl"), split="test"))


def test_the_layout_of_a_hub_snapshot(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "dataset_infos.json").write_text("{}")
    for name in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "train_prefs-00000-of-00001"):
        write_parquet(tmp_path / "data" / f"{name}.parquet")
    assert [n for n, _ in read_rows(str(tmp_path), split="train_sft")] == [*range(1, 11), *range(1, 11)]
    assert len(list(read_rows(str(tmp_path), split="train_prefs[:30%]"))) == 3
    with pytest.raises(SourceError, match="splits train_prefs, train_sft; say which"):
        list(read_rows(str(tmp_path)))
    with pytest.raises(SourceError, match="no file of split 'train'"):  # it must not mix the two
        list(read_rows(str(tmp_path), split="train"))


@pytest.mark.parametrize("ending", ["", "-a3ecf92756993583"])
def test_a_split_is_never_mixed_with_one_whose_name_begins_alike(tmp_path, ending):
    for name in ("train", "train_sft", "train_sft_2"):
        for shard in (0, 1):
            (tmp_path / f"{name}-0000{shard}-of-00002{ending}.jsonl").write_text(json.dumps({"f": name}) + "\n")
    for source in (str(tmp_path), str(tmp_path / "*.jsonl")):
        for split in ("train", "train_sft", "train_sft_2"):
            assert [row["f"] for _, row in read_rows(source, split=split)] == [split] * 2
        with pytest.raises(SourceError, match="splits train, train_sft, train_sft_2; say which"):
            list(read_rows(source))


BESIDE = ("decontaminated.jsonl", "quarantine-0000.jsonl", "inputs.json", "statistics.json", "stage.json",
          "statistics.md", "report.html")


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "*"])
def test_what_a_stage_writes_beside_its_rows_is_not_read_with_them(tmp_path, pattern):
    for name in (*BESIDE, "train-00000.jsonl", "batch-1-00000.jsonl", "batch-10-00000.jsonl"):
        (tmp_path / name).write_text(json.dumps({"f": name}) + "\n")
    source = str(tmp_path / pattern)
    for split in ("train", "batch-1", "batch-10"):
        assert [row["f"] for _, row in read_rows(source, split=split)] == [f"{split}-00000.jsonl"]
    with pytest.raises(SourceError, match="splits batch-1, batch-10, train; say which"):
        list(read_rows(source))
    (tmp_path / "figures").mkdir()
    for name in ("batch-1-00000.jsonl", "batch-10-00000.jsonl"):
        (tmp_path / name).unlink()
    assert [row["f"] for _, row in read_rows(source)] == ["train-00000.jsonl"]


def test_files_of_such_names_are_read_where_they_are_asked_for_or_no_stage_wrote_them(tmp_path):
    for name in ("decontaminated.jsonl", "quarantine-0000.jsonl", "quarantine-0001.jsonl"):
        (tmp_path / name).write_text(json.dumps({"f": name}) + "\n")
    assert len(list(read_rows(str(tmp_path)))) == 3
    (tmp_path / "stage.json").write_text("{}")
    assert [row["f"] for _, row in read_rows(str(tmp_path / "quarantine-*"))] == [
        "quarantine-0000.jsonl", "quarantine-0001.jsonl"]
    assert [row["f"] for _, row in read_rows(str(tmp_path / "decontaminated.jsonl"))] == ["decontaminated.jsonl"]
    with pytest.raises(SourceError, match="holds no data file"):
        list(read_rows(str(tmp_path)))


def test_a_snapshot_of_train_and_test(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps({"f": split}) + "\n")
    assert [row["f"] for _, row in read_rows(str(tmp_path), split="test")] == ["test"]
    with pytest.raises(SourceError, match="splits test, train; say which"):
        list(read_rows(str(tmp_path)))


TOOLS = [{"name": "add", "parameters": {"a": {"type": "int"}}}, {"name": "hi", "parameters": {"b": {"enum": [None]}}}]
CALLS = [[{"function": {"name": "add", "arguments": {"a": 1}}}], [{"function": {"name": "hi", "arguments": {"b": 2}}}]]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_what_arrow_pads_tools_with_is_not_read(tmp_path, kind):
    import datasets

    rows = [{"tools": [tool], "messages": [{"role": "assistant", "content": "", "tool_calls": calls}], "x": {"y": None}}
            for tool, calls in zip(TOOLS, CALLS, strict=True)]
    table = datasets.Dataset.from_list(rows)
    assert table[0]["tools"][0]["parameters"]["b"] is None
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    source = {"parquet": tmp_path / "a.parquet", "saved": tmp_path / "saved",
              "arrow": next((tmp_path / "saved").glob("*.arrow"))}[kind]
    assert [row for _, row in read_rows(str(source))] == rows


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", b"", "holds no rows"),
    ("a.json", b"", "holds no rows"),
    ("a.csv", b"", "holds no rows"),
    ("a.parquet", b"", "cannot read"),
    ("a.arrow", b"junk", "cannot read"),
    ("a.json", b'[{"a": 1}', "not whole JSON"),
    ("a.json", b'{"a": 1}', "JSON array"),
    ("a.jsonl.gz", b"\x1f\x8b\x08", "cut off"),
    ("a.csv", b"a,b\n\xff,1\n", "cannot read"),
    ("a.csv", b"a,b,a\n1,2,3\n", "two columns of the name 'a'"),
    ("a.csv", b'a,b\n1,2\n3,"not closed\n5,6\n7,8\n', "row that begins at line 3.*doubled inside it"),
    ("a.csv", b'a,b\n1,2\n3,"one" two\n', "row that begins at line 3.*doubled inside it"),
    ("a.csv", b'a,b\n"1\n2",3\n4,"', "row that begins at line 4"),
    ("a.csv", b'a,b\n1,"', "row that begins at line 2"), ("a.csv", b'a,"b\n1,2\n', "row that begins at line 1"),
    ("a.json", b"[" * 200_000, "too deep inside one another"),
    ("a.json", b"[" + b"1" * 5000 + b"]", "too many digits"),
])
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list(read_rows(str(tmp_path / name)))


def test_bad_lines_come_in_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n[1]\n{"prompt": "b"}\n{"pro')
    (tmp_path / "a.json").write_text('[{"prompt": "a"}, 3]')
    lines = [(n, getattr(row, "reason", None)) for n, row in read_rows(str(tmp_path / "a.jsonl"))]
    assert lines == [(1, None), (2, "not_an_object"), (3, None), (4, "truncated_json")]
    assert isinstance(list(read_rows(str(tmp_path / "a.json")))[1][1], BadRow)


def test_a_line_of_text_that_is_not_utf8_is_that_lines_fault(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\ntwo\n")
    rows = [(n, getattr(row, "reason", row)) for n, row in read_rows(str(tmp_path / "a.txt"))]
    assert rows == [(1, {"text": "one"}), (2, "not_utf8"), (3, {"text": "two"})]


def test_missing_files(tmp_path):
    with pytest.raises(SourceError, match="there is no file"):
        list(read_rows(str(tmp_path / "none.jsonl")))
    with pytest.raises(SourceError, match="no file matches"):
        list(read_rows(str(tmp_path / "*.jsonl")))
    with pytest.raises(SourceError, match="no data file"):
        list(read_rows(str(tmp_path)))
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(SourceError, match="unknown ending"):
        list(read_rows(str(tmp_path / "a.xyz")))
    assert list_files("owner/name") is None


def test_hub_name_without_a_network(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SourceError, match=r"no local file.*offline mode.*Without a network, give a path"):
        list(read_rows("owner/name", split="train"))


@pytest.mark.parametrize("source", ["@main", "a/b/c", "owner/name@", "two words", "a:b", "owner/", "@"])
def test_what_is_no_hub_name_is_not_asked_for(source, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: pytest.fail("asked for"))
    with pytest.raises(SourceError, match="no file on this machine and no name of a hub data set"):
        list(read_rows(source))


def test_hub_name(monkeypatch):
    import datasets

    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda source, name: loaded)
    assert [row for _, row in read_rows("owner/name", split="train[:20%]")] == ROWS[:2]


@pytest.mark.parametrize(("source", "asked"), [
    ("owner/name", {}), ("owner/name@main", {"revision": "main"}), ("owner/name@v1.0[:2]", {"revision": "v1.0"}),
    ("owner/name@refs/pr/3", {"revision": "refs/pr/3"})])
def test_a_hub_name_may_carry_its_revision(source, asked, monkeypatch):
    import datasets

    def load(name, config, **more):
        assert (name, more) == ("owner/name", asked)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert next(iter(read_rows(source, split="train")))[1] == ROWS[0]
    assert source_paths(source)[0] is None


def test_tfds_builder_folder(tmp_path):
    import tensorflow_datasets as tfds

    turns = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yo"}]
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                text, sequence = tfds.features.Text(), tfds.features.Sequence
                features = {"prompt": text, "score": np.float64, "messages": sequence({"role": text, "content": text})}
                return tfds.core.DatasetInfo(builder=self, disable_shuffling=True,
                                             features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {"train": ((i, {"prompt": f"p{i}", "score": i / 2, "messages": turns}) for i in range(4))}

            def _generate_examples(self):
                return iter(())

    builder = Tiny(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    rows = list(read_rows(f"tfds:{builder.data_dir}", split="train[:50%]"))
    assert rows == [(1, {"prompt": "p0", "score": 0.0, "messages": turns}),
                    (2, {"prompt": "p1", "score": 0.5, "messages": turns})]
    with pytest.raises(SourceError, match="splits train"):
        list(read_rows(f"tfds:{builder.data_dir}", split="test"))


def test_unknown_tfds_name(tmp_path):
    with pytest.raises(SourceError, match="there is no TFDS data set"):
        list(read_rows("tfds:no_such_data_set_at_all", split="train"))


def test_plain_values():
    assert plain_values({"picture": b"\xff\xd8"}) == {"picture": b"\xff\xd8"}
    assert plain_values({"a": b"x", "m": {"role": [b"u"], "content": [b"c"]}, "d": {"x": 1}}) == {
        "a": "x", "m": [{"role": "u", "content": "c"}], "d": {"x": 1}}


@pytest.mark.parametrize("cell", ['[{""role"": ""user"", ""content"": ""hi""}]', "[{'content': 'hi', 'role': 'user'}]",
                                  ' [ {""from"": ""human"", ""value"": ""hi""}]'])
def test_message_lists_in_cells_of_text_are_refused(cell, tmp_path):
    """What pandas' to_csv makes of conversations would be learned as it stands."""
    (tmp_path / "a.csv").write_text(f'prompt,chosen\nq,"{cell}"\nq,[see above]\n')
    (_, bad), (_, row) = read_rows(str(tmp_path / "a.csv"))
    assert bad.reason == "messages_as_text"
    assert row["chosen"] == "[see above]"


@pytest.mark.parametrize(("column", "cell"), [
    ("messages", '[{""role"": ""user"", ""content"": ""hi""}]'),
    ("chosen", '[{""from"": ""Paris"", ""to"": ""London""}]'), ("chosen", '[{""value"": 3}]')])
def test_other_lists_and_columns_that_hold_no_text_are_let_pass(column, cell, tmp_path):
    (tmp_path / "a.csv").write_text(f'prompt,{column}\nq,"{cell}"\n')
    ((_, row),) = read_rows(str(tmp_path / "a.csv"))
    assert row[column] == cell.replace('""', '"')


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffhello\n\ufeffworld\n".encode())
    assert [row["text"] for _, row in read_rows(str(tmp_path / "a.txt"))] == ["hello", "\ufeffworld"]


@pytest.fixture
def folder(tmp_path):
    """folder(names): a folder of such files, each with its name as its one row; what is no data holds text."""

    def make(*names):
        for name in names:
            content = json.dumps({"text": name}) if "json" in name.lower() else name
            (tmp_path / name).write_text(content + "\n")
        return str(tmp_path)

    return make


def texts(source, **options):
    return [row["text"] for _, row in read_rows(source, **options)]


def test_what_lies_beside_a_split_that_is_named_is_not_read(folder):
    assert texts(folder("train.jsonl", "LICENSE.txt", "notes.jsonl"), split="train") == ["train.jsonl"]


@pytest.mark.parametrize("names", [("code.jsonl", "dev_tools.jsonl", "math.jsonl"), ("more.jsonl", "train.jsonl")])
def test_nothing_is_left_out_of_a_folder_or_a_glob_where_no_split_is_named(names, folder):
    assert texts(folder(*names)) == [*names]
    assert texts(folder(*names) + "/*.jsonl") == [*names]


def test_a_glob_may_name_files_of_several_formats(folder):
    assert texts(folder("a.jsonl", "b.txt") + "/[ab].*") == ["a.jsonl", "b.txt"]


@pytest.mark.parametrize("names", [("part1.jsonl", "log.txt"), ("a.json", "b.csv"), ("train.jsonl", "LICENSE.txt")])
def test_a_folder_of_several_formats_is_refused(names, folder):
    with pytest.raises(SourceError, match=r"several formats \(\.\w+, \.\w+\).*glob"):
        texts(folder(*names))


def test_endings_may_be_written_large_and_ndjson_is_json_lines(folder):
    assert texts(folder("part1.JSONL", "part2.jsonl")) == ["part1.JSONL", "part2.jsonl"]
    assert texts(folder("part1.JSONL", "part2.jsonl", "part3.ndjson"))[2:] == ["part3.ndjson"]
    packed = folder() + "/packed.JSONL.GZ"
    with gzip.open(packed, "wt") as stream:
        stream.write('{"text": "packed"}\n')
    assert texts(packed) == ["packed"]


@pytest.mark.parametrize("name", ["part2.jsonl.zst", "part2.csv.bz2", "part2.JSONL.xz"])
def test_data_in_a_packing_that_is_not_read_is_refused(name, folder):
    with pytest.raises(SourceError, match=rf"{name}.*unpack"):
        texts(folder("part1.jsonl", name))
