"""Writes the tables of measures in docs/numbers.md from rlhf_jax/evaluation/measures.py.

    python docs/measures.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_jax.evaluation import PAIR_MEASURES, POLICY_MEASURES, Measure

PAGE = Path(__file__).with_name("numbers.md")


def table(column: str, formula: str, measures: Iterable[Measure[Any]]) -> str:
    """One row per measure."""
    rows = [f"| {m.title} | {m.formula} | {m.better or ''} | `{m.function.__module__}.{m.function.__qualname__}` |"
            for m in measures]
    return "\n".join([f"| {column} | {formula} | better | function |", "|---|---|---|---|", *rows])


TABLES = {
    "policy measures": table("column", "formula for one prompt, then the mean over prompts", POLICY_MEASURES.values()),
    "pair measures": table("number", "formula", PAIR_MEASURES.values()),
}


def written(page: str) -> str:
    """The page with the tables between their marks replaced."""
    for name, text in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"{PAGE} has no place for the table of {name}; put it between <!-- {name} --> and "
                             "<!-- end -->")
        page = f"{before}{mark}{text}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    print(f"written: {PAGE}")
