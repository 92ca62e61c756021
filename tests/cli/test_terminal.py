"""What a terminal would obey is written out."""

import pytest

from rlhf_jax.cli.terminal import printable


@pytest.mark.parametrize(("text", "shown"), [
    ("plain, 日本語 é 👩‍🚀\n\ttab", "plain, 日本語 é 👩‍🚀\n\ttab"), ("\x1b[2Jgone", r"\x1b[2Jgone"),
    ("\x9b31m", r"\x9b31m"), ("over\rwritten\b", r"over\rwritten\x08"), ("\x07", r"\x07"), ("\x7f\0", r"\x7f\x00"),
    ("a \u202eb", r"a \u202eb"), ("\ud800", r"\ud800")])
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
