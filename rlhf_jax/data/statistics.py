"""Counts and lengths of a mix, in the layout of table 5 of the RLHF Workflow (arXiv 2405.07863)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.mixing import Entries
from rlhf_jax.data.prompt_text import plain_text

Lengths = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> the length of each."""
BLOCK = 4096
PERCENTILES = (5, 25, 50, 75, 95)
"""Of lengths and margins, as the page of a mix draws them."""


def count_words(texts: Sequence[str]) -> list[int]:
    """Lengths in words, where there is no tokenizer."""
    return [len(text.split()) for text in texts]


def token_counter(tokenizer: Any) -> Lengths:
    """Lengths in tokens of plain text, without special tokens and without a template, as in the paper's table."""

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for start in range(0, len(texts), BLOCK)
                for ids in tokenizer(list(texts[start : start + BLOCK]), add_special_tokens=False)["input_ids"]]

    return count


def text_lengths(entries: Entries, lengths: Lengths) -> np.ndarray:
    """[N, 3] float32 lengths of each row's prompt, chosen and rejected; NaN where there is none.

    `chosen` is the only response of rows without a pair.
    """
    found = np.full((len(entries), 3), np.nan, np.float32)
    order = np.lexsort((entries.rows["place"], entries.rows["source"]))  # as they lie on disk
    for start in range(0, len(entries), BLOCK):
        some = order[start : start + BLOCK]
        texts = [(row, column, plain_text(text)) for row, example in zip(some, entries.at(some), strict=True)
                 for column, text in enumerate((example.prompt, *example.responses[:2]))]
        distinct = list(dict.fromkeys(text for _, _, text in texts))
        length = dict(zip(distinct, lengths(distinct), strict=True))
        for row, column, text in texts:
            found[row, column] = length[text]
    return found


def source_statistics(rows: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Counts of rows, and means over them; None where there is nothing to count. `percentiles`: PERCENTILES of what
    there is.

    Rows whose prompt stands in several count it in each, as in the paper's table.

    Args:
      rows: of `Entries`. lengths: theirs, from `text_lengths`.
    """
    counted = {name: _there(column) for name, column in zip(("prompt", "chosen", "rejected"), lengths.T, strict=True)}
    margins = _there(rows["margin"])
    pairs = 0 < len(counted["rejected"]) == len(counted["chosen"])
    return {
        "prompts": len(np.unique(rows["prompt"])), "rows": len(rows),
        **{name: _mean(found) for name, found in counted.items()},
        "chosen_longer": _mean(counted["chosen"] > counted["rejected"]) if pairs else None,
        "margin": _mean(margins),
        "percentiles": {name: np.percentile(found, PERCENTILES).round(4).tolist()
                        for name, found in {**counted, "margin": margins}.items() if found.size},
    }


def shared_prompts(rows: np.ndarray, sources: int) -> list[list[int]]:
    """[sources, sources] of each two sources the distinct prompts that both hold; of one with itself, its own."""
    prompts = [np.unique(rows["prompt"][rows["source"] == number]) for number in range(sources)]
    return [[len(np.intersect1d(one, other, assume_unique=True)) for other in prompts] for one in prompts]


def _there(values: np.ndarray) -> np.ndarray:
    """[n] float64: those that are numbers."""
    return values[~np.isnan(values)].astype(np.float64)


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if values.size else None


def statistics_table(rows: Iterable[Mapping[str, Any]], unit: str) -> str:
    """Markdown: a line per source, `published` beside our own count of rows."""
    head = ("source", "prompts", "rows", "published", "prompt", "chosen", "rejected", "chosen longer", "margin")
    lines = [f"Lengths are means in {unit}; `chosen` is the only answer where there are no pairs.", "",
             f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        numbers = [row["prompts"], row["rows"], row.get("published")]
        means = [(row[name], places) for name, places in (("prompt", 1), ("chosen", 1), ("rejected", 1),
                                                          ("chosen_longer", 3), ("margin", 3))]
        cells = [str(row["source"]), *("" if n is None else f"{n:,}" for n in numbers),
                 *("" if value is None else f"{value:.{places}f}" for value, places in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
