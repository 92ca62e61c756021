"""PandaLM: human preferences between answers of small models to Alpaca-like instructions, three votes per pair.

Rows: `instruction`, `input`, `response1`, `response2`, and the votes (0 a tie, 1, 2) in `annotators` or in
`annotator1`, `annotator2`, `annotator3`, as in WeOpenML/PandaLM. Pairs that most people call a tie, or on which no two
agree, are left out. Equal scores count one half.

A scorer that likes length alone has 64.00 on the 707 pairs that are left of 788 rows.

Source: Y. Wang et al., "PandaLM", arXiv 2306.05087.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.converters import alpaca_pairs
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, mean_of_pairs
from rlhf_jax.evaluation.calibration import Sums, TieRule


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """All pairs."""
    return {"all": mean_of_pairs(rows, tie_rule)}


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer that most people prefer is the chosen one."""
    votes = raw["annotators"] if "annotators" in raw else [raw[f"annotator{i}"] for i in (1, 2, 3)]
    (first, count), *_ = Counter(votes).most_common()
    if 2 * count <= len(votes) or first == 0:
        raise BadRow("no_pair", f"the votes {list(votes)} prefer neither answer")
    if first not in (1, 2):
        raise BadRow("bad_label", f"vote {first!r} is none of 0 (a tie), 1, 2")
    return alpaca_pairs({"instruction": raw["instruction"], "input": raw["input"],
                         "chosen": _text(raw[f"response{first}"]), "rejected": _text(raw[f"response{3 - first}"])})


def _text(answer: Any) -> str:
    """The published file holds some answers "True" as a truth value."""
    return str(answer)


BENCHMARK = Benchmark(numbers, row)
