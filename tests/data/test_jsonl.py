import errno
import gzip
import os

import numpy as np
import pytest

from rlhf_jax.data.groups import PromptGroup, Response
from rlhf_jax.data.jsonl import SourceError, read_groups, read_jsonl, scan_jsonl, write_groups, write_jsonl_atomic

ROWS = [{"a": 1, "text": "naïve ☃"}, {"a": [1.5, None]}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "new/folder/x.jsonl"])
def test_round_trip_and_equal_bytes(tmp_path, name):
    path = tmp_path / name
    assert write_jsonl_atomic(path, ROWS) == 2
    assert read_jsonl(path) == ROWS
    first = path.read_bytes()
    write_jsonl_atomic(path, ROWS)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == [path.name]


def no_space(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(OSError, match=r"cannot write .*x\.jsonl.*No space left.*partial file is removed") as caught:
        write_jsonl_atomic(tmp_path / "x.jsonl", ROWS)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_full_disk_while_writing_keeps_the_earlier_file(tmp_path, name):
    path = tmp_path / name
    write_jsonl_atomic(path, ROWS)

    def rows():
        yield ROWS[0]
        no_space()

    with pytest.raises(OSError, match="as it was"):
        write_jsonl_atomic(path, rows())
    assert read_jsonl(path) == ROWS
    assert os.listdir(tmp_path) == [name]


def test_a_row_that_is_no_json_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl_atomic(tmp_path / "x.jsonl", [{"score": float("nan")}])
    assert os.listdir(tmp_path) == []


def test_scan_numbers_lines_and_marks_bad_ones(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n[2]\n{"a": "\xff"}\n{"a": 3, "b')
    scanned = [(number, getattr(row, "reason", row)) for number, row in scan_jsonl(path)]
    assert scanned == [(1, {"a": 1}), (3, "not_an_object"), (4, "not_utf8"), (5, "truncated_json")]
    with pytest.raises(SourceError, match=r"x\.jsonl, line 3: .*must be one JSON object"):
        read_jsonl(path)


def test_lines_that_json_readers_choke_on_are_those_lines_fault(tmp_path):
    path = tmp_path / "x.jsonl"
    deep = '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}"
    path.write_text(f'{{"a": 1}}\n{deep}\n{{"a": {"9" * 5000}}}\n{{"a": 1e999}}\n')
    scanned = [(number, getattr(row, "reason", row)) for number, row in scan_jsonl(path)]
    assert scanned == [(1, {"a": 1}), (2, "nested_too_deep"), (3, "number_too_long"), (4, {"a": float("inf")})]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_text_that_was_read_can_be_written(tmp_path, name):
    rows = [{"é": "\ud83d", "\udc00": ["é\udfff"]}, {"b": "é"}]
    write_jsonl_atomic(tmp_path / name, rows)
    assert read_jsonl(tmp_path / name) == rows


def test_cut_off_gzip_and_missing_file(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(SourceError, match="cut off"):
        read_jsonl(path)
    with pytest.raises(SourceError, match="missing"):
        read_jsonl(tmp_path / "none.jsonl")


def test_groups_come_back_bit_for_bit(tmp_path):
    logps = np.random.default_rng(0).normal(size=3).astype(np.float32)
    response = Response(np.array([5, 6, 2], np.int32), np.array([True, False, True]), "hi", "stop", logps, {"rm": 0.1})
    group = PromptGroup("p0", np.array([1, 7], np.int32), (response, response), "q", ((0, 1),), (0.5,), {"x": [1]})
    write_groups(tmp_path / "g.jsonl", [group])
    (back,) = read_groups(tmp_path / "g.jsonl")
    assert back.to_json() == group.to_json()
    np.testing.assert_array_equal(back.responses[0].logps, logps)
    assert back.responses[0].ids.dtype == np.int32


def test_groups_of_another_program(tmp_path):
    write_jsonl_atomic(tmp_path / "g.jsonl", [{"prompt": "x"}])
    with pytest.raises(SourceError, match=r"line 1 is not a prompt group.*no prompt_id and no prompt_ids and no resp"):
        read_groups(tmp_path / "g.jsonl")
