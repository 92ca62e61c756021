"""Prompts that nearly repeat an earlier one: MinHash candidates, each verified by its exact Jaccard similarity."""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from rlhf_jax.data.prompt_text import normalised

SHINGLE, BANDS, ROWS = 3, 25, 5
"""Words of a shingle; bands, and hashes of each. A pair of similarity s is a candidate with probability
1 - (1 - s**5)**25: 0.99995 at s = 0.8, 0.998 at 0.74, 0.06 at 0.3."""
_WORDS = re.compile(r"\w+")
_BLOCK = 4096
"""Texts whose hashes are put together at one time."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shingles(text: str) -> frozenset[str]:
    """The runs of three words, in lower case; of a shorter text, the text itself."""
    words = _WORDS.findall(text.lower())
    runs = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
    return frozenset(runs or {normalised(text)})


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared over all."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def check_installed() -> None:
    """Raises ValueError where datasketch is not installed."""
    if importlib.util.find_spec("datasketch") is None:
        raise ValueError('near_duplicates needs datasketch, which is not installed; pip install "rlhf_jax[data]", or '
                         "set near_duplicates to null")


def near_duplicates(texts: Sequence[str], threshold: float,
                    tick: Callable[[int], None] = lambda done: None) -> dict[int, int]:
    """Place of each text that nearly repeats an earlier one -> place of that one, the most similar that is kept.

    What is held of a text are 100 bytes, its bands; candidates are read again to be verified.

    Args:
      threshold: the least Jaccard similarity of the two texts' shingles.
      tick: is told how many texts were looked at.

    Raises:
      ValueError: datasketch is not installed.
    """
    check_installed()
    bands = _shared(_bands(texts, tick))
    read = lru_cache(maxsize=4096)(lambda place: shingles(texts[place]))
    kept: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place in np.flatnonzero((bands >= 0).any(axis=1)).tolist():
        mine = [(band, int(bands[place, band])) for band in np.flatnonzero(bands[place] >= 0).tolist()]
        candidates = {other for band in mine for other in kept.get(band, ())}
        best = max(((jaccard(read(place), read(other)), -other) for other in candidates), default=(-1.0, 0))
        if best[0] >= threshold:
            found[place] = -best[1]
        else:
            for band in mine:
                kept[band].append(place)
    return found


def _bands(texts: Sequence[str], tick: Callable[[int], None]) -> np.ndarray:
    """[N, BANDS] uint32: texts may be alike that have a number in common."""
    from datasketch import MinHash

    first = MinHash(num_perm=BANDS * ROWS, hashfunc=zlib.crc32)
    bands = np.empty((len(texts), BANDS), np.uint32)

    def hashes(texts: Iterable[str]) -> np.ndarray:
        sketches = []
        for text in texts:
            sketches.append(first.copy())
            sketches[-1].update_batch([run.encode() for run in sorted(shingles(text))])
        return np.stack([sketch.hashvalues for sketch in sketches]).astype(np.uint64)

    for start in range(0, len(texts), _BLOCK):
        some = range(start, min(start + _BLOCK, len(texts)))
        values = hashes(texts[place] for place in some).reshape(-1, BANDS, ROWS)
        mixed = np.zeros(values.shape[:2], np.uint64)
        for row in range(ROWS):
            mixed = (mixed ^ values[:, :, row]) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(29)
        bands[start : start + len(some)] = mixed >> np.uint64(32)
        tick(start + len(some))
    return bands


def _shared(bands: np.ndarray) -> np.ndarray:
    """[N, BANDS] int32, in the memory of `bands`: a number for what a text has in common with others, else -1."""
    shared = bands.view(np.int32)
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = np.where(counts[inverse] > 1, inverse, -1)
    return shared
