"""Text of data, models and errors as a terminal may be given it."""

from __future__ import annotations

import unicodedata

_REORDERING = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    r"""The text with control characters, halves of surrogate pairs and marks that reorder text written out, as `\x1b`.

    A terminal obeys them: it would change colours and titles, go back over what is written, answer as if typed to.
    """
    return "".join(c if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _REORDERING)
                   else c.encode("unicode_escape").decode() for c in text)
