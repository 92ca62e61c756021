"""One request whose answer is not kept: a hand-over, a version, a look at whether a server is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2

from rlhf_jax.config.server import Access
from rlhf_jax.remote.budget import RemoteError
from rlhf_jax.remote.token import read_token, without_token


def ask_once(address: str, access: Access, body: Mapping[str, Any] | None = None, timeout: float | None = None
             ) -> Mapping[str, Any]:
    """The JSON object that an address answers a POST of `body` with, or a GET where there is none; {} for other text.

    timeout: seconds, None for that of `access`.

    Raises:
      RemoteError: it cannot be reached, or does not answer with 200 to 299.
    """
    token = read_token(access)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx2.Client(timeout=timeout or access.timeout, headers=headers) as http:
            response = http.get(address) if body is None else http.post(address, json=dict(body))
    except httpx2.HTTPError as error:
        raise RemoteError(f"{address} cannot be reached or broke off ({type(error).__name__}: {error})") from error
    text = without_token(response.text, token)
    if not response.is_success:
        raise RemoteError(f"{address} says {response.status_code}: {text[:300]!r}")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
