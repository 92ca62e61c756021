"""Auto-J: human preferences between two answers in 58 scenarios.

Rows: `prompt`, `response 1`, `response 2`, `label` (0 the first, 1 the second, 2 a tie), `scenario`, as in
GAIR-NLP/auto-j. Pairs that people call a tie are left out, since a reward model has no threshold for one; its authors
count them, so their agreement rates are no figures to compare with. Equal scores count one half.

A scorer that likes length alone has 72.71 on the 830 pairs that are no ties among 1,134 rows.

Source: J. Li et al., "Generative judge for evaluating alignment", arXiv 2310.05470.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, as_question, mean_of_pairs
from rlhf_jax.evaluation.calibration import Sums, TieRule


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """All pairs; the scenarios stand in rows.jsonl, most with a dozen pairs."""
    return {"all": mean_of_pairs(rows, tie_rule)}


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The labelled answer is the chosen one."""
    label = raw["label"]
    if label == 2:
        raise BadRow("no_pair", "people call this pair a tie")
    if label not in (0, 1):
        raise BadRow("bad_label", f"label {label!r} is none of 0 (the first), 1 (the second), 2 (a tie)")
    return {"prompt": as_question(raw["prompt"]), "chosen": raw[f"response {1 + label}"],
            "rejected": raw[f"response {2 - label}"], "subset": raw["scenario"]}


BENCHMARK = Benchmark(numbers, row)
