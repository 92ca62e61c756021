"""Counts and lengths of a mix, in the layout of table 5 of the RLHF Workflow (arXiv 2405.07863)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.mixing import Entry
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


def source_statistics(entries: Sequence[Entry], lengths: Lengths) -> dict[str, Any]:
    """Counts of rows, and means over them; None where there is nothing to count. `percentiles`: PERCENTILES of what
    there is.

    `chosen` is the only response of rows without a pair. Rows whose prompt stands in several
    count it in each, as in the paper's table.
    """
    texts = {"prompt": [plain_text(entry.example.prompt) for entry in entries]}
    for place, name in enumerate(("chosen", "rejected")):
        said = [entry.example.responses[place : place + 1] for entry in entries]
        texts[name] = [plain_text(responses[0]) for responses in said if responses]
    distinct = list(dict.fromkeys(text for found in texts.values() for text in found))
    length = dict(zip(distinct, lengths(distinct), strict=True))
    counted = {name: np.asarray([length[text] for text in found], float) for name, found in texts.items()}
    margins = np.asarray([entry.margin for entry in entries if entry.margin is not None], float)
    pairs = 0 < len(counted["rejected"]) == len(counted["chosen"])
    return {
        "prompts": len({entry.prompt for entry in entries}), "rows": len(entries),
        **{name: _mean(found) for name, found in counted.items()},
        "chosen_longer": _mean(counted["chosen"] > counted["rejected"]) if pairs else None,
        "margin": _mean(margins),
        "percentiles": {name: np.percentile(found, PERCENTILES).round(4).tolist()
                        for name, found in {**counted, "margin": margins}.items() if found.size},
    }


def shared_prompts(entries: Sequence[Entry], sources: int) -> list[list[int]]:
    """[sources, sources] of each two sources the distinct prompts that both hold; of one with itself, its own."""
    prompts: list[set[str]] = [set() for _ in range(sources)]
    for entry in entries:
        prompts[entry.source].add(entry.prompt)
    return [[len(one & other) for other in prompts] for one in prompts]


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
