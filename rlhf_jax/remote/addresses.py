"""Several servers of the same model: who is asked next, and who is left alone because it failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager


class Addresses:
    """Servers that share the work: the next question goes to one that is up, to the least busy of those.

    A server that failed is asked again once none is up, or after `forgive`.

    Attributes:
      urls: where their interfaces begin.
      answered: how many answers each one gave.
    """

    def __init__(self, urls: Sequence[str]):
        self.urls = tuple(url.rstrip("/") for url in urls)
        self.answered: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return ", ".join(self.urls)

    @contextmanager
    def taken(self, avoid: Collection[str] = (), refused: Collection[str] = ()) -> Iterator[str]:
        """The one to ask now. avoid: those that the question was asked of already. refused: those that refuse it."""
        with self._lock:
            url = min(self.urls, key=lambda url: (url in refused, self._failures[url], url in avoid,
                                                  self._in_flight[url]))
            self._in_flight[url] += 1
        try:
            yield url
        finally:
            with self._lock:
                self._in_flight[url] -= 1

    def note(self, url: str, answered: bool) -> None:
        """What became of asking it."""
        with self._lock:
            self._failures[url] = 0 if answered else self._failures[url] + 1
            self.answered[url] += answered

    def up(self) -> set[str]:
        """Those whose last answer was one."""
        with self._lock:
            return {url for url in self.urls if not self._failures[url]}

    def forgive(self) -> None:
        """All are asked again, also those that failed."""
        with self._lock:
            self._failures.clear()
