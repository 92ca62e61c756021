"""Prompts that nearly repeat an earlier one: MinHash candidates, each verified by its exact Jaccard similarity."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.prompt_text import normalised

SHINGLE, BANDS, ROWS = 3, 25, 5
"""Words of a shingle; bands, and hashes of each. A pair of similarity s is a candidate with probability
1 - (1 - s**5)**25: 0.99995 at s = 0.8, 0.998 at 0.74, 0.06 at 0.3."""
_WORDS = re.compile(r"\w+|[^\w\s]")
_BLOCK = 4096
"""Texts whose hashes are put together at one time."""
_CACHED = 16_384
"""Texts whose shingles are not read from disk again."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str) -> frozenset[str]:
    """The runs of three words or other signs, in lower case; of a shorter text, the text itself."""
    words = _WORDS.findall(text.lower())
    runs = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
    return frozenset(runs or {normalised(text)})


def check_installed() -> None:
    """Raises ValueError where datasketch is not installed."""
    if importlib.util.find_spec("datasketch") is None:
        raise ValueError('near_duplicates needs datasketch, which is not installed; pip install "rlhf_jax[data]", or '
                         "set near_duplicates to null")


def near_duplicates(texts: Sequence[str], threshold: float, openings: np.ndarray | None = None,
                    tick: Callable[[int], None] = lambda done: None) -> dict[int, int]:
    """Place of each text that nearly repeats an earlier one -> place of that one, the most similar that is kept.

    What is held of a text are 109 bytes: its bands (100), where its shingles lie on disk, and whether it is kept; and
    up to 6 for each band in which another text agrees with it. The shingles of the 16,384 texts that were compared last
    are held too, 4 bytes a word. Each text is read once.

    Args:
      threshold: the least Jaccard similarity of the two texts' shingles.
      openings: [N] texts with an equal one do not count as near duplicates of each other; None: all differ.
      tick: is told how many texts were looked at.

    Raises:
      ValueError: datasketch is not installed.
      OSError: TMPDIR has no room for the shingles.
    """
    check_installed()
    stored, bands = _sketched(texts, tick)
    alike = _Alike.of(bands)
    read = lru_cache(maxsize=_CACHED)(lambda place: np.frombuffer(stored[place], np.uint32))
    found, kept = {}, np.zeros(len(texts), bool)
    for place in range(len(texts)):
        others = alike.with_text(place)
        others = np.unique(others[kept[others]])  # none of those that come later is kept yet
        if openings is not None:
            others = others[openings[others] != openings[place]]
        shares = _similarities(read(place), [read(other) for other in others.tolist()])
        if len(others) and shares.max() >= threshold:
            found[place] = int(others[shares.argmax()])  # of equal ones the first
        else:
            kept[place] = True
    return found


def _similarities(mine: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """[n] Jaccard similarity of one sorted set of numbers with each of n others."""
    if not others:
        return np.zeros(0)
    sizes = np.array([len(other) for other in others])
    numbers = np.concatenate(others)
    at = np.minimum(np.searchsorted(mine, numbers), len(mine) - 1)
    shared = np.add.reduceat(mine[at] == numbers, np.cumsum(sizes) - sizes)
    return shared / (len(mine) + sizes - shared)


def _sketched(texts: Sequence[str], tick: Callable[[int], None]) -> tuple[OnDisk[bytes], np.ndarray]:
    """The shingles of each text as sorted uint32, and [N, BANDS] uint32: texts may be alike that have one in common."""
    from datasketch import MinHash

    first = MinHash(num_perm=BANDS * ROWS, hashfunc=int)  # the shingles are numbers already
    bands = np.empty((len(texts), BANDS), np.uint32)

    def hashed() -> Iterator[bytes]:
        for start in range(0, len(texts), _BLOCK):
            sketches = []
            for place in range(start, min(start + _BLOCK, len(texts))):
                numbers = np.unique(np.array([zlib.crc32(run.encode("utf-8", "surrogatepass"))
                                              for run in shingles(texts[place])], np.uint32))
                sketches.append(first.copy())
                sketches[-1].update_batch(numbers.tolist())
                yield numbers.tobytes()
            values = np.stack([sketch.hashvalues for sketch in sketches]).astype(np.uint64)
            bands[start : start + len(sketches)] = _mixed(values.reshape(-1, BANDS, ROWS))
            tick(start + len(sketches))

    return OnDisk(hashed()), bands


def _mixed(values: np.ndarray) -> np.ndarray:
    """[n, BANDS] one number for the ROWS numbers of each band [n, BANDS, ROWS]."""
    mixed = np.zeros(values.shape[:2], np.uint64)
    for row in range(ROWS):
        mixed = (mixed ^ values[:, :, row]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed >> np.uint64(32)


@dataclasses.dataclass(frozen=True)
class _Alike:
    """Which texts have a band in common.

    Attributes:
      groups: [N, BANDS] int32, the number of a text's group in each band; -1 where it has none but itself.
      members: of each band [m] int32, the places of all texts with a group, group by group, in order.
      starts: of each band [g + 1] int32, where in `members` each group begins, and the last one ends.
    """

    groups: np.ndarray
    members: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, bands: np.ndarray) -> _Alike:
        """Of [N, BANDS] uint32, whose memory the groups take."""
        groups, members, starts = bands.view(np.int32), [], []
        for band in range(bands.shape[1]):
            _, number, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
            several = counts > 1
            group = np.where(several, np.cumsum(several) - 1, -1)[number]
            order = np.argsort(group, kind="stable")
            groups[:, band] = group
            members.append(order[len(group) - counts[several].sum() :].astype(np.int32))
            starts.append(np.concatenate([[0], np.cumsum(counts[several])]).astype(np.int32))
        return cls(groups, tuple(members), tuple(starts))

    def with_text(self, place: int) -> np.ndarray:
        """[n] int32: all texts that have a band in common with this one, itself too, once for each band."""
        mine = [(band, int(self.groups[place, band])) for band in np.flatnonzero(self.groups[place] >= 0).tolist()]
        parts = [self.members[band][self.starts[band][group] : self.starts[band][group + 1]] for band, group in mine]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)
