"""Any file of preference rows, with an optional `subset` column: the share of pairs won in each subset.

No figure is published for a file of one's own; a scorer that knows nothing has 0.5.
"""

from __future__ import annotations

from rlhf_jax.evaluation.benchmarks.base import Benchmark, by_subset

BENCHMARK = Benchmark(by_subset)
