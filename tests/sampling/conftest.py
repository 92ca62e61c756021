"""The tiny model of tiny.py, loaded by path: test folders are no packages."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AddedToken

from rlhf_jax.sampling.ending import ContinuationText

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


class Words:
    """A tokenizer of the words w0, w1 ..., of which `special` is left out of text."""

    def __init__(self, special):
        self.special = special

    @property
    def added_tokens_decoder(self):
        return {i: AddedToken(f"w{i}", special=True) for i in (2, self.special)}

    def convert_tokens_to_ids(self, text):
        return int(text[1:]) if text[1:].isdigit() else None

    def convert_ids_to_tokens(self, token):
        return f"w{token}"

    def decode(self, ids, skip_special_tokens):
        return "".join(f"w{i} " for i in ids if i not in (2, self.special) or not skip_special_tokens)


@pytest.fixture
def special_words():
    """special_words(7): text as by a tokenizer that has w7 as a special token, beside the stop token."""
    return lambda special: ContinuationText(Words(special))
