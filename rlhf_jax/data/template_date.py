"""Chat templates that write today's date write a fixed one here: a stage that goes on tomorrow makes the same tokens.

transformers gives templates the function `strftime_now`; a macro of that name before the template takes its place.
"""

from __future__ import annotations

import datetime
from functools import lru_cache

DATE = datetime.datetime(2024, 7, 26)
"""The day that Llama 3.1's and 3.2's own templates write where there is no clock."""
_DIRECTIVES = "aAbBdeHIjmMpSUwWyYZ"


@lru_cache(maxsize=64)
def at_fixed_date(template: str) -> str:
    """The template itself, or with `strftime_now` at DATE, midnight, in place of the clock's."""
    if "strftime_now" not in template:
        return template
    spelled = "".join(f" | replace('%{sign}{letter}', '{_written(letter, sign)}')"
                      for letter in _DIRECTIVES for sign in ("", "-"))
    # the newline belongs to the macro's end: jinja takes it away
    return f"{{% macro strftime_now(format) %}}{{{{ format{spelled} }}}}{{% endmacro %}}\n{template}"


def _written(letter: str, sign: str) -> str:
    """What `%letter` writes at DATE; with the sign "-", as C libraries have it, without leading zeros."""
    text = DATE.strftime(f"%{letter}").strip()
    return (text.lstrip("0") or text[-1:]) if sign else text
