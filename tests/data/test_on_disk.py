import errno
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest

from rlhf_jax.data.bad_row import BadRow, PromptAlone
from rlhf_jax.data.on_disk import OnDisk, Seen


def test_values_are_found_by_their_place():
    some = OnDisk({"n": i, "a": np.full(3, i)} for i in range(10))
    assert (len(some), some[3]["n"], some[-1]["n"]) == (10, 3, 9)
    assert [value["n"] for value in some] == list(range(10))
    assert [value["n"] for value in some[2:8][1::2]] == [3, 5, 7]
    np.testing.assert_array_equal(some[4]["a"], [4, 4, 4])
    with pytest.raises(IndexError):
        some[10]
    with pytest.raises(IndexError):
        some[2:4][2]
    first = some[:3]
    some.append({"n": 10})
    assert (len(first), some[-1]["n"]) == (3, 10)
    assert not OnDisk()


def test_nothing_is_left_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    some = OnDisk(range(5))[1:]
    assert not list(tmp_path.iterdir())  # it has no name, even while it is read
    number = some._file.number
    assert list(some) == [1, 2, 3, 4]  # the sequence that it is a slice of is gone
    del some
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_the_end_of_the_interpreter_is_quiet():
    program = ("import os\nfrom rlhf_jax.data import on_disk\nsome = on_disk.OnDisk([1])\n"
               "os.close = None\non_disk.os = None\n")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_it_holds_does_not_grow_with_the_values():
    tracemalloc.start()
    some = OnDisk(bytes(10_000) for _ in range(3000))
    assert sum(map(len, some)) == 30_000_000
    assert tracemalloc.get_traced_memory()[1] < 4_000_000  # what is written at once, and 8 bytes a value
    tracemalloc.stop()


def test_no_room_is_said(monkeypatch):
    def full(number, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"cannot keep rows in .*: No space left on device. Set TMPDIR to a folder"):
        OnDisk([1])


def test_the_fault_of_a_row_comes_back_as_it_was():
    alone = pickle.loads(pickle.dumps(PromptAlone("no_pair", "equal scores", {"prompt": "p"})))
    assert (alone.reason, alone.message, alone.row) == ("no_pair", "equal scores", {"prompt": "p"})
    found = pickle.loads(pickle.dumps(BadRow("no_pair", "equal scores")))
    assert (found.reason, found.message, str(found)) == ("no_pair", "equal scores", "equal scores [no_pair]")


def test_names_that_came_before_are_known():
    seen, count = Seen(), Seen._RECENT + 1000
    assert all(seen.add(f"name {i}") for i in range(count))
    assert not any(seen.add(f"name {i}") for i in (0, 1, 500, count - 1))
    assert seen.add("\ud800")
    assert seen._sorted.nbytes + 8 * len(seen._recent) == 8 * (count + 1)
