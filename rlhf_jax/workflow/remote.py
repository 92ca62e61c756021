"""Opening the client of a server, with its answers in the run's folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.config.server import Server
from rlhf_jax.remote import Client
from rlhf_jax.workflow.products import ANSWERS


def with_answers_in(folder: Path | None, options: Any) -> Any:
    """Options whose server, if they have one, keeps answers in the run's folder unless they name another."""
    if (below := getattr(options, "scorer", None)) is not None:
        return dataclasses.replace(options, scorer=with_answers_in(folder, below))
    server = getattr(options, "server", None)
    if folder is None or not isinstance(server, Server) or server.cache_dir is not None:
        return options
    return dataclasses.replace(options, server=dataclasses.replace(server, cache_dir=str(folder / ANSWERS)))


def open_client(server: Server) -> Client:
    """The client of this process. Raises ValueError where no folder for answers is known."""
    if server.cache_dir is None:
        raise ValueError("cache_dir is not set, and there is no run's folder to keep answers in; set it")
    return Client(server, Path(server.cache_dir).expanduser(), jax.process_index(), jax.process_count())
