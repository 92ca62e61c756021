"""The site holds every page of the repository, its reference every public name, and each name says what it is."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rlhf_jax
from rlhf_jax import losses

ROOT = Path(__file__).parents[2]
REFERENCE = {name: (ROOT / f"docs/reference/{name}.md").read_text() for name in ("api", "losses")}
METHODS = [name for name, value in vars(rlhf_jax.Model).items() if not name.startswith("_") and value is not None]
ARITHMETIC = {"average_orders", "log_ratios", "preference_loss", "response_loss", "rewards", "token_logps",
              "token_logps_and_stats", "weighted_total"}
"""Losses' names that come from no paper: plain arithmetic, or what joins the others."""
SHAPE = re.compile(r"\[(?:\.\.\.|[A-Z2])?(?:, [A-Zk\d])*\]")
SOURCE = re.compile(r'arXiv\s\d{4}\.\d{5}|"[^"]+"\s+\(20\d\d\)')
FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


def pages_of(nav):
    for entry in nav:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [inside] if isinstance(inside, str) else pages_of(inside)


def documented(room, name):
    """Whether the reference of a room shows a name, under any module of the package."""
    return len(re.findall(rf"^::: rlhf_jax(?:\.\w+)*\.{name}$", REFERENCE[room], re.MULTILINE)) == 1


def test_the_navigation_leads_to_every_page():
    nav = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    patterns = ("*.md", "docs/**/*.md", "benchmarks/*.md", "configs/**/*.md", "examples/*.md", "launch/**/*.md")
    pages = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    pages |= {f"{path.relative_to(ROOT)}.md" for path in ROOT.glob("docs/notebooks/*.py")}
    assert sorted(nav) == sorted(pages)


@pytest.mark.parametrize("name", rlhf_jax.__all__)
def test_the_reference_shows_a_public_name(name):
    assert documented("api", name)


@pytest.mark.parametrize("name", losses.__all__)
def test_the_reference_shows_a_public_name_of_the_losses(name):
    assert documented("losses", name)


def test_the_reference_shows_nothing_else():
    for room, module in (("api", rlhf_jax), ("losses", losses)):
        shown = re.findall(r"^::: rlhf_jax.*?\.(\w+)$", REFERENCE[room], re.MULTILINE)
        assert sorted(shown) == sorted(module.__all__)


@pytest.mark.parametrize("name", [*rlhf_jax.__all__, *(f"Model.{name}" for name in METHODS)])
def test_a_public_name_says_what_it_is_and_what_it_takes(name):
    thing = rlhf_jax
    for part in name.split("."):
        thing = inspect.getattr_static(thing, part) if thing is rlhf_jax.Model else getattr(thing, part)
    text = inspect.getdoc(thing)
    assert text
    assert re.match(r"[A-Z[]", text)
    for parameter in list(inspect.signature(thing).parameters)[1:] if inspect.isfunction(thing) else ():
        assert re.search(rf"\b{parameter}\b|\b{parameter.replace('_', ' ')}\b", text), parameter


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loss_says_shapes_and_source(name):
    function = getattr(losses, name)
    text = inspect.getdoc(function)
    assert SHAPE.search(text) or "scalar" in text or name == "f_divergence"
    assert name in ARITHMETIC or SOURCE.search(text + inspect.getmodule(function).__doc__)


def test_a_docstring_without_a_shape_is_seen():
    assert not SHAPE.search("Computes DPO, -log sigma(bD); see [1], [the paper] and [a, b].")
    assert [SHAPE.search(text) is not None for text in ("[N]", "[]", "[..., V]", "[B, T]", "[2, D]")] == 5 * [True]


def test_the_site_builds_and_no_link_is_dead(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT,
                           check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "sigmoid_loss" in (tmp_path / "docs/reference/losses/index.html").read_text()
