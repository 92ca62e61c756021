"""Benchmarks of reward models, one file each: rows -> groups, numbers with intervals, the published figure."""

from rlhf_jax.evaluation.benchmarks import (
    auto_j,
    hhh,
    judgebench,
    llmbar,
    pandalm,
    preference,
    rewardbench,
    rewardbench2,
    rm_bench,
)
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, incomplete, measured_rows

BENCHMARKS: dict[str, Benchmark] = {
    "auto_j": auto_j.BENCHMARK,
    "hhh": hhh.BENCHMARK,
    "judgebench": judgebench.BENCHMARK,
    "llmbar": llmbar.BENCHMARK,
    "pandalm": pandalm.BENCHMARK,
    "preference": preference.BENCHMARK,
    "rewardbench": rewardbench.BENCHMARK,
    "rewardbench2": rewardbench2.BENCHMARK,
    "rm_bench": rm_bench.BENCHMARK,
}

__all__ = ["BENCHMARKS", "Benchmark", "JudgedRow", "incomplete", "measured_rows"]
