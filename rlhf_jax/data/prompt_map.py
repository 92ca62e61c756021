"""Prompts as points: two directions in which their words differ most, so that prompts about one thing lie together.

Latent semantic analysis (Deerwester et al., Indexing by latent semantic analysis, 1990) of words weighted by how rare
they are. It needs no model and says what it goes by: each direction comes with the words at its two ends.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.mixing import Entries, Prompts, first_of_prompts

MOST, VOCABULARY, LEAST = 1500, 4096, 10
"""Points of a map; words that it goes by, the most frequent; prompts below which there is none."""
_READ = 4000
"""Characters of a prompt that are looked at."""
_WORD = re.compile(r"[^\W\d_]{3,}")
_SHOWN = 4
"""Words that stand at each end of a direction."""


def prompt_map(entries: Entries, sources: int) -> dict[str, Any] | None:
    """`points`: [x, y, number of the source] of up to MOST distinct prompts, of each source an equal share at most;
    `words`: of both directions the words at the low and the high end. None where there are too few prompts or words.

    Which prompts are taken follows from their texts alone, not from the order of the entries.
    """
    mine = [np.flatnonzero(entries.rows["source"] == source) for source in range(sources)]
    taken = [(prompt, source) for source, places in enumerate(mine) for prompt in Prompts(
        entries, places[first_of_prompts(entries.rows[places])[: max(1, MOST // sources)]])]
    words = [set(_WORD.findall(prompt[:_READ])) for prompt, _ in taken]
    counts = Counter(word for some in words for word in some)
    usual = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
             if 2 <= count <= len(taken) / 2][:VOCABULARY]
    if len(taken) < LEAST or len(usual) < LEAST:
        return None
    weighted = _weighted(words, usual, counts)
    values, vectors = np.linalg.eigh(weighted @ weighted.T)
    found = vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 0.0))
    found *= np.sign(found[np.abs(found).argmax(axis=0), (0, 1)])  # an eigenvector has no sign of its own
    ends = [_ends(usual, weighted.T @ direction) for direction in found.T]
    return {"points": [[*map(float, place.round(4)), source] for place, (_, source) in zip(found, taken, strict=True)],
            "words": ends}


def _weighted(words: Sequence[set[str]], usual: Sequence[str], counts: Counter[str]) -> np.ndarray:
    """[prompts, words] the logarithm of how rare a word is where a prompt has it; rows of length 1, then centred."""
    column = {word: number for number, word in enumerate(usual)}
    rare = np.log(len(words) / np.array([counts[word] for word in usual]))
    found = np.zeros((len(words), len(usual)))
    for row, some in enumerate(words):
        places = [column[word] for word in some if word in column]
        found[row, places] = rare[places]
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(lengths > 0, lengths, 1.0)
    centred: np.ndarray = found - found.mean(axis=0)
    return centred


def _ends(usual: Sequence[str], loads: np.ndarray) -> list[list[str]]:
    """The words that pull furthest to the low and to the high end."""
    order = np.argsort(loads, kind="stable")
    return [[usual[place] for place in order[:_SHOWN]], [usual[place] for place in order[::-1][:_SHOWN]]]
