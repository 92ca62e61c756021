"""The simulation behind what docs/iteration.md says of `cache_share`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location(
    "pages_benchmark", Path(__file__).parent.parent.parent / "benchmarks" / "pages.py")
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_by_hand():
    """Two slots of one lane, responses of a block each: both fit into two pages, in one they take turns."""
    wanted = np.full((2, 1), 64)
    assert benchmark.simulated(1.0, wanted, slots=2, most=128, block=64)[:2] == (0.0, 0)
    waits, restarts, _, _ = benchmark.simulated(0.5, wanted, slots=2, most=128, block=64)
    assert (waits, restarts) == (pytest.approx(1 / 3), 0)  # three turns are asked for, one has no page


def test_less_than_the_mean_response_is_enough():
    wanted = benchmark.lengths(200, 8, mean=350, spread=0.7, most=2048)
    assert abs(wanted.mean() - 350) < 20
    waits = [benchmark.simulated(share, wanted, slots=32, most=2048, block=64)[0] for share in (0.15, 0.1, 0.05)]
    assert waits[0] == 0 < waits[1] < 0.05 < waits[2]
