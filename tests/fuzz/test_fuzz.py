"""Hostile input of every kind: no traceback, no hang, no memory without end, nothing miscounted.

A bad case is made again by `python tests/fuzz/worker.py GENERATOR FOLDER --case NUMBER`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
SOAK = bool(os.environ.get("RLHF_JAX_SOAK"))
CASES = 2_000 if SOAK else 40
GENERATORS = ("config_texts", "config_values", "endless_templates", "flags", "model_bytes", "model_values", "numbers",
              "records", "row_bytes", "row_tables", "row_values", "shards", "templates")
"""All of `cases.GENERATORS`."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("generator", GENERATORS)
def test_hostile_input_ends_in_one_clear_message(generator, xla_flags, tmp_path):
    env = {**os.environ, "XLA_FLAGS": xla_flags(1), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, WORKER, generator, tmp_path, "--count", str(CASES)], env=env, check=False,
                          capture_output=True, text=True)
    bad = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = tmp_path / "now.json"
    assert bad, done.stderr[-3000:]
    assert done.returncode == 0, f"{last.read_text()} ended the process:\n{done.stderr[-3000:]}\n{bad[-1]}"
    assert bad == [{"ran": CASES}]
