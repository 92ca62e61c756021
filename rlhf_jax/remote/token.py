"""The access token of a server: read where the options say, sent, and written nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_jax.config.server import Access


def read_token(access: Access) -> str | None:
    """The access token, from the place that the options name.

    Raises:
      ValueError: there is none; says where it was looked for, and never what was found.
    """
    if access.token_env is not None:
        token = os.environ.get(access.token_env, "").strip()
        where = f"token_env = {access.token_env!r}: this environment variable is not set, or empty"
    elif access.token_file is not None:
        path = Path(access.token_file).expanduser()
        token = path.read_text().strip() if path.is_file() else ""
        where = f"token_file = {access.token_file!r}: there is no such file, or it is empty"
    else:
        return None
    if not token:
        raise ValueError(f"{where}; put the access token there, or leave the key out for a server that wants none")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the access token holds a space, a line break or another character that no header may hold; "
                         "the place must hold the token alone")
    return token


SECRET = 8
"""Characters that a secret token has at least; shorter ones are placeholders, such as EMPTY, and may be words."""


def without_token(text: str, token: str | None) -> str:
    """What a server said, without the token, should it have come back: such text is kept and shown."""
    return text.replace(token, "[token]") if token and len(token) >= SECRET else text
