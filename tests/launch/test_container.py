"""The Dockerfile cannot be built in the tests; what it names must exist, and it must refuse a wrong EXTRA."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "container"
LINES = [line.split(maxsplit=1) for line in (FOLDER / "Dockerfile").read_text().splitlines()
         if line and not line.startswith("#")]


def test_copies_what_exists_and_what_is_not_ignored():
    sources = [source for name, rest in LINES if name == "COPY" for source in rest.split()[:-1]]
    assert sources == ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "rlhf_jax", "configs"]
    assert all((ROOT / source).exists() for source in sources)
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert all(f"!{source}" in ignore for source in sources)


@pytest.mark.parametrize(("extra", "fits"), [("tpu", True), ("cuda", True), ("", False), ("rocm", False)])
def test_takes_the_extras_there_are(extra, fits):
    check = next(rest for name, rest in LINES if name == "RUN" and rest.startswith("case"))
    done = subprocess.run(["sh", "-c", check], env={"EXTRA": extra}, capture_output=True, text=True)
    assert (done.returncode == 0) == fits
    assert ("EXTRA must be tpu or cuda" in done.stderr) != fits
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not fits or extra in extras


def test_installs_the_tested_versions_and_runs_without_roots_rights():
    steps = [(name, rest) for name, rest in LINES if name in ("FROM", "RUN", "USER", "CMD")]
    (install,) = [rest for name, rest in steps if name == "RUN" and "pip install" in rest]
    assert "--constraint constraints.txt" in install
    (python,) = re.findall(r"python:([\d.]+)-slim", LINES[0][1])
    assert f"Python {python}" in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert steps[-2:] == [("USER", "1000:1000"), ("CMD", '["rlhf-jax", "--help"]')]
    (made,) = [rest for name, rest in steps if name == "RUN" and rest.startswith("useradd")]
    assert "--uid 1000" in made
