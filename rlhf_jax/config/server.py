"""Options of a server that is asked over HTTP."""

from __future__ import annotations

import dataclasses
from typing import Annotated
from urllib.parse import urlsplit

from rlhf_jax.fields import COUNT, POSITIVE, Flat, Options, above, at_least


@dataclasses.dataclass(frozen=True)
class Access(Options):
    """How a server is asked.

    Attributes:
      token_env: environment variable that holds the access token; tokens are written nowhere.
      token_file: file that holds the access token.
      concurrency: requests in flight, at each server.
      timeout: seconds until an answer must be complete.
      max_retries: further attempts after one that failed.
      retry_wait: seconds before the first of them; each one waits twice as long as the last.
    """

    token_env: str | None = None
    token_file: str | None = None
    concurrency: Annotated[int, at_least(1, 1024)] = 8
    timeout: Annotated[float, above(0, 86_400)] = 300.0
    max_retries: Annotated[int, at_least(0, 100)] = 5
    retry_wait: Annotated[float, at_least(0, 600)] = 1.0

    def conflicts(self) -> None:
        if self.token_env is not None and self.token_file is not None:
            raise ValueError("token_env and token_file both name a token; give one of them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server(Options):
    """A server with OpenAI's HTTP interface (OpenAI, vLLM, SGLang ...), and what asking it may cost.

    Attributes:
      url: where its interface begins, say http://127.0.0.1:8000/v1.
      model: the name by which it knows the model.
      access: how it is asked.
      requests_per_minute: rate limit; None for none.
      max_requests: budget of requests, retries included, for all that is kept in cache_dir; None for no limit.
      max_total_tokens: budget of tokens, as the server counts them, for all that is kept in cache_dir; nothing more is
        asked once it is reached. None for no limit.
      cache_dir: folder where answers are kept, so that none is paid for twice; None for OUTPUT_DIR/answers.
    """

    url: str
    model: str
    access: Flat[Access] = Access()
    requests_per_minute: Annotated[float | None, POSITIVE] = None
    max_requests: Annotated[int | None, COUNT] = None
    max_total_tokens: Annotated[int | None, COUNT] = None
    cache_dir: str | None = None

    def conflicts(self) -> None:
        check_address(self.url)

    @property
    def asked(self) -> dict[str, str]:
        """What of it an answer depends on."""
        return {"url": self.url.rstrip("/"), "model": self.model}


def check_address(url: str) -> None:
    """Raises ValueError for what is no address, or holds what may be secret."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"url = {_without_login(url)!r}; give an address like http://127.0.0.1:8000/v1")
    if address.username or address.password or address.query or address.fragment:
        raise ValueError(f"url = {_without_login(url)!r} (login and parameters not shown); an address is "
                         "written into records, so give the access token by token_env or token_file, and nothing "
                         "behind the path")


def _without_login(url: str) -> str:
    """An address without what may be secret in it."""
    return url.split("?")[0].split("#")[0].rpartition("@")[2]
