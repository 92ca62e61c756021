"""Prompts that nearly repeat an earlier one: MinHash candidates, each verified by its exact Jaccard similarity."""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Callable, Sequence

from rlhf_jax.data.prompt_text import normalised

SHINGLE, BANDS, ROWS = 3, 25, 5
"""Words of a shingle; bands, and hashes of each. A pair of similarity s is a candidate with probability
1 - (1 - s**5)**25: 0.99995 at s = 0.8, 0.998 at 0.74, 0.06 at 0.3."""
_WORDS = re.compile(r"\w+")


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

    Args:
      threshold: the least Jaccard similarity of the two texts' shingles.
      tick: is told how many texts were looked at.

    Raises:
      ValueError: datasketch is not installed.
    """
    check_installed()
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    first = MinHash(num_perm=BANDS * ROWS, hashfunc=zlib.crc32)
    kept: dict[int, frozenset[str]] = {}
    found: dict[int, int] = {}
    for place, text in enumerate(texts):
        mine = shingles(text)
        sketch = first.copy()
        sketch.update_batch([run.encode() for run in sorted(mine)])
        similar = [(jaccard(mine, kept[other]), -other) for other in index.query(sketch)]
        best = max(similar, default=(0.0, 0))
        if similar and best[0] >= threshold:
            found[place] = -best[1]
        else:
            kept[place] = mine
            index.insert(place, sketch, check_duplication=False)
        tick(place + 1)
    return found
