"""Values of any number that lie on disk and are read by their place: what a host holds of each is 8 bytes."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")
_BLOCK = 1 << 20
"""Bytes that are written at once."""


class _File:
    """A file in TMPDIR without a name, so that nothing is left of it however the program ends."""

    def __init__(self) -> None:
        self._close = os.close  # at the end of the interpreter `os` may be gone before this is
        self.number, path = tempfile.mkstemp(prefix="rlhf_jax-")
        os.unlink(path)

    def __del__(self) -> None:
        self._close(self.number)

    def write(self, data: bytes | bytearray) -> None:
        """Raises OSError where there is no room."""
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self.number, left) :]
        except OSError as error:
            raise OSError(error.errno, f"cannot keep rows in {tempfile.gettempdir()}: {error.strerror}. Set TMPDIR to "
                                       "a folder on a disk with room") from error


class OnDisk(Sequence[T], Generic[T]):
    """A sequence whose values lie in a file without a name, in TMPDIR; it is gone with the last that reads it.

    Each access reads a value anew. A slice reads none: it is such a sequence too. Threads may read at once.

    Args:
      values: taken one by one, none of them kept.

    Raises:
      OSError: TMPDIR has no room.
    """

    def __init__(self, values: Iterable[T] = ()):
        self._file: _File | None = None  # made for the first value: many of these stay empty
        self._ends = array("q", [0])
        self._places = range(0)
        self.extend(values)

    def extend(self, values: Iterable[T]) -> None:
        """Puts values behind those that are there; slices that were taken before stay as they are."""
        waiting = bytearray()
        for value in values:
            data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
            waiting += data
            self._ends.append(self._ends[-1] + len(data))
            if len(waiting) >= _BLOCK:
                self._write(waiting)
                waiting.clear()
        if waiting:
            self._write(waiting)
        self._places = range(len(self._ends) - 1)

    def _write(self, data: bytearray) -> None:
        if self._file is None:
            self._file = _File()
        self._file.write(data)

    def append(self, value: T) -> None:
        """Puts one value behind the others."""
        self.extend((value,))

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> OnDisk[T]: ...

    def __getitem__(self, place: int | slice) -> T | OnDisk[T]:
        if isinstance(place, slice):
            some: OnDisk[T] = object.__new__(OnDisk)
            some._file, some._ends, some._places = self._file, self._ends, self._places[place]
            return some
        number = self._places[place]
        assert self._file is not None, "there is a value"
        start, end = self._ends[number], self._ends[number + 1]
        value: T = pickle.loads(os.pread(self._file.number, end - start, start))
        return value

    def __len__(self) -> int:
        return len(self._places)


def hash64(*texts: str) -> int:
    """64 bits that stand for some texts: of 10 million two are taken for one with odds of 3e-6."""
    digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Seen:
    """Names that came before, a `hash64` each."""

    _RECENT = 1 << 16

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.zeros(0, np.uint64)

    def add(self, name: str) -> bool:
        """Whether it is new."""
        number = hash64(name)
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        if number in self._recent or (at < len(self._sorted) and int(self._sorted[at]) == number):
            return False
        self._recent.add(number)
        if len(self._recent) == self._RECENT:
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]), kind="stable")
            self._recent.clear()
        return True
