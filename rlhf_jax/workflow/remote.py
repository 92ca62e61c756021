"""Opening the client of a server, with its answers in the run's folder."""

from __future__ import annotations

from pathlib import Path

import jax

from rlhf_jax.config.server import Server
from rlhf_jax.remote import Client
from rlhf_jax.workflow.products import ANSWERS


def open_client(server: Server, folder: Path) -> Client:
    """The client of this process; answers are kept in the folder that the options name, else in the run's `folder`."""
    kept = folder / ANSWERS if server.cache_dir is None else Path(server.cache_dir).expanduser()
    return Client(server, kept, jax.process_index(), jax.process_count())
