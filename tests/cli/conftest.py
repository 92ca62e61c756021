"""A command line run in this process."""

import pytest

from rlhf_jax.cli import main as cli


@pytest.fixture
def rlhf_jax(monkeypatch, capsys):
    """Runs a command line; returns (exit status, stdout, stderr)."""

    def command(*args):
        monkeypatch.setattr("sys.argv", ["rlhf-jax", *map(str, args)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command
