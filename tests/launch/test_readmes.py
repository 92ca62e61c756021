"""Every launcher's command in a README and in docs/scaling-out.md is one that the launcher takes."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "launch").rglob("README.md")), ROOT / "docs" / "scaling-out.md"]
COMMANDS = sorted({line.strip() for page in PAGES for line in page.read_text().splitlines()
                   if line.startswith("    python -m launch.")})


def test_all_launchers_are_there():
    assert {line.split()[2] for line in COMMANDS} == {"launch.slurm", "launch.gke", "launch.tpu_vm"}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_promised_command_works(launch, line):
    launcher, *words = shlex.split(line, comments=True)[2:]
    launched = launch(launcher.removeprefix("launch."), *words, *(["--dry-run"] if "--dry-run" not in words else []))
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert all((page.parent / target).exists() for target in targets)
