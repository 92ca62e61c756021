"""The tiny model of tiny.py, loaded by path: test folders are no packages."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="module", autouse=True)
def _kept_programs(kept_programs):
    """Many of these tests compile the same programs."""


@pytest.fixture(scope="session")
def tiny():
    return SimpleNamespace(**runpy.run_path(str(TINY)), path=TINY)


@pytest.fixture(scope="session")
def config(tiny):
    return tiny.make_config()


@pytest.fixture(scope="session")
def params(tiny, config):
    return tiny.make_params(config)


@pytest.fixture(scope="session")
def prompts(tiny):
    return tiny.make_prompts(7)


@pytest.fixture(scope="session")
def sampled(tiny, config, params, prompts):
    """What the reference setting (all lanes, four slots, blocks of five) samples."""
    return tiny.run(tiny.make_sampler(config), params, prompts)
