"""The table of host memory in docs/scaling-out.md is that of the measured lines."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SPEC = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks" / "memory.py")
memory = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(memory)


def test_the_table_is_that_of_the_measured_lines():
    lines = (ROOT / "benchmarks" / "results" / "memory.jsonl").read_text().splitlines()
    assert memory.table(map(json.loads, lines)) in (ROOT / "docs" / "scaling-out.md").read_text()


@pytest.mark.longer
def test_a_path_is_measured_in_a_process_of_its_own():
    line = memory.measured("read", 300, held=False)
    assert (line["path"], line["rows"], line["held"]) == ("read", 300, False)
    assert 0 <= line["megabytes"] < 100
