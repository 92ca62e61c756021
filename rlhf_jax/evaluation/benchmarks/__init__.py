"""Benchmarks of reward models, one file each: rows -> groups, numbers with intervals, the published figure."""

from rlhf_jax.evaluation.benchmarks import preference
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, measured_rows

BENCHMARKS: dict[str, Benchmark] = {
    "preference": preference.BENCHMARK,
}

__all__ = ["BENCHMARKS", "Benchmark", "JudgedRow", "measured_rows"]
