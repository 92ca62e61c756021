"""The notebooks run from their first cell to their last, as plain scripts, and are what jupytext and the site take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@named
def test_a_notebook_is_short_and_made_of_cells(path):
    text = path.read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    assert len(text.splitlines()) <= 135
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        assert kind in ("", " [markdown]")
        prose = all(line.startswith("#") or not line for line in body.splitlines())
        assert prose is bool(kind)
    assert f"({os.path.relpath(path, ROOT / 'examples')})" in (ROOT / "examples/README.md").read_text()


@pytest.mark.slow
@named
def test_a_notebook_runs_as_a_script(path, tmp_path):
    one_device = {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, path], env=os.environ | one_device, cwd=tmp_path, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
