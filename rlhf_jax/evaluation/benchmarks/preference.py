"""Any file of preference rows, with an optional `subset` column: the share of pairs won in each subset.

No figure is published for a file of one's own; a scorer that knows nothing has 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, mean_of_pairs
from rlhf_jax.evaluation.calibration import Sums, TieRule


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """One accuracy per subset, in the order they come in; none where the file has no subsets."""
    subsets = dict.fromkeys(row.subset for row in rows if row.subset and any(gap is not None for gap in row.gaps))
    return {f"subset/{subset}": mean_of_pairs(rows, tie_rule, subset) for subset in subsets}


BENCHMARK = Benchmark(numbers)
