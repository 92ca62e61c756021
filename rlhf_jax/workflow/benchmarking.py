"""A benchmark of reward models in a run: its rows are checked before anything is scored, its files written after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rlhf_jax.data.example import Example
from rlhf_jax.evaluation.benchmarks import BENCHMARKS, Benchmark, JudgedRow
from rlhf_jax.evaluation.benchmarks.base import present
from rlhf_jax.evaluation.calibration import TieRule
from rlhf_jax.evaluation.statistics import Coverage
from rlhf_jax.workflow.products import METRICS
from rlhf_jax.workflow.stage import write_json_atomic


def find_benchmark(name: str) -> Benchmark:
    """The row of `BENCHMARKS`; ValueError for a name that is none."""
    if name not in BENCHMARKS:
        close = get_close_matches(name, BENCHMARKS, n=1)
        meant = f", did you mean {close[0]}?" if close else ";"
        raise ValueError(f"there is no benchmark {name!r}{meant} known ones are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def check_subsets(name: str, examples: Iterable[Example]) -> None:
    """Raises ValueError if a row is of a subset that the benchmark does not have, or no part of it is complete."""
    benchmark = find_benchmark(name)
    if not benchmark.parts:
        return
    here = dict.fromkeys(str(example.extra.get("subset")) for example in examples)
    strange = [subset for subset in here if subset not in benchmark.subsets]
    if strange:
        others = [other for other, found in BENCHMARKS.items() if strange[0] in found.subsets]
        meant = f"; {others[0]} has such a subset, so set benchmark: {others[0]}" if others else ""
        raise ValueError(f"rows of {', '.join(map(repr, strange[:3]))} are none of {name}{meant}. Its subsets are "
                         f"{', '.join(benchmark.subsets)}")
    missing = benchmark.missing(here)
    if len(missing) == len(benchmark.parts):
        lacking = "; ".join(f"{part} lacks {', '.join(subsets)}" for part, subsets in missing.items())
        raise ValueError(f"no part of {name} is complete: {lacking}. Give all its files, and leave max_samples out if "
                         "it is set")


def missing_sentences(name: str, rows: Sequence[JudgedRow]) -> list[str]:
    """What the benchmark cannot say of these rows, and why."""
    benchmark = find_benchmark(name)
    lacking = {part: f"no row of {', '.join(subsets)} was judged"
               for part, subsets in benchmark.missing(present(rows)).items()}
    if not any(row.scores for row in rows):
        lacking |= dict.fromkeys(benchmark.scored, "it is read off scores, and this scorer compares")
    return [f"{name} has no {part}, nor a number that {part} is part of: {why}" for part, why in lacking.items()]


def incomplete_sentences(name: str, incomplete: Mapping[str, Coverage], failures: Mapping[str, int]) -> list[str]:
    """Which numbers are not of all their rows, of how many they are, and why the others fell."""
    if not incomplete:
        return []
    alike: dict[Coverage, list[str]] = {}
    for number, found in incomplete.items():
        alike.setdefault(found, []).append(number)
    told = [f"{', '.join(names)} ({found.judged:,} of {found.of:,} rows)" for found, names in alike.items()]
    official = ", as is its authors' file" if find_benchmark(name).official else ""
    why = ", ".join(f"{reason} {count:,}" for reason, count in failures.items())
    return [f"warning: not all rows of {name} were judged in full, and these numbers are of what was{official}: "
            f"{'; '.join(told)}. Responses or comparisons without a verdict: {why}"]


def write_metrics(folder: Path, name: str, numbers: Mapping[str, Any], tie_rule: TieRule | None) -> None:
    """metrics.json: the benchmark, how it counts ties, and every number with its interval, as JSON."""
    write_json_atomic(folder / METRICS, {
        "benchmark": name, "tie_rule": tie_rule or find_benchmark(name).tie_rule, "numbers": numbers})


def write_official(folder: Path, name: str, rows: Sequence[JudgedRow], tie_rule: TieRule | None, model: str) -> None:
    """The result file of the benchmark's own authors, where they have one."""
    benchmark = find_benchmark(name)
    if benchmark.official is None:
        return
    files: Mapping[str, Any] = benchmark.official(rows, tie_rule or benchmark.tie_rule, model)
    for file, content in files.items():
        write_json_atomic(folder / file, content)
