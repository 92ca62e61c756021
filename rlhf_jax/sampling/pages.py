"""Pages of the response caches: what lanes have written needs memory, not what they may write at most.

The host hands them out between two blocks. A lane for which there is none waits, and keeps what it has; where no lane
could go on, the one that has written least gives its pages up and begins anew, with the same tokens (its random keys
are those of its prompt, sample and positions).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

PAGE = 128
"""Tokens of a page: whole lines of a TPU's memory."""
Place = tuple[int, int]
"""A slot and a lane of it."""


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def pages_each(share: float, slots: int, lanes: int, tokens: int, ways: int) -> int:
    """Pages that each of `ways` devices has for its part of the slots: this share of all that their lanes may write,
    and what one lane needs at least."""
    return max(pages_of(tokens), round(share * (slots // ways) * lanes * pages_of(tokens)))


class Pages:
    """Who has which pages; every device's slots have pages of that device.

    Args:
      slots, lanes: of the sampler. tokens: that a lane may write. ways: devices that the slots are cut over.
      each: pages of one of those.

    Attributes:
      table: [P, n, J] int32, a lane's pages in the order of its tokens, numbered on each device; what lies beyond those
        it has means nothing.
    """

    def __init__(self, slots: int, lanes: int, tokens: int, ways: int, each: int):
        self.table = np.zeros((slots, lanes, pages_of(tokens)), np.int32)
        self._held = np.zeros((slots, lanes), np.int32)
        self._free = [deque(range(each)) for _ in range(ways)]

    def _way(self, place: Place) -> int:
        return place[0] * len(self._free) // len(self._held)

    def release(self, place: Place) -> None:
        """Takes back all pages of a lane."""
        self._free[self._way(place)].extend(self.table[place][: self._held[place]].tolist())
        self._held[place] = 0

    def allot(self, wanted: Mapping[Place, int]) -> tuple[set[Place], list[Place]]:
        """Gives lanes the pages for so many tokens, in the order of `wanted`, all that a lane lacks or none.

        Returns:
          those that have what they want; and those that gave up what they had, because nobody could have gone on.
        """
        served, dropped = set[Place](), list[Place]()
        for way in range(len(self._free)):
            here = [place for place in wanted if self._way(place) == way]
            going = {place for place in here if self._give(place, wanted[place])}
            while here and not going:
                dropped.append(here.pop())
                self.release(dropped[-1])
                going = {place for place in here[:1] if self._give(place, wanted[place])}
            served |= going
        return served, dropped

    def _give(self, place: Place, tokens: int) -> bool:
        free, held = self._free[self._way(place)], self._held[place]
        lacking = max(0, pages_of(tokens) - held)
        if lacking > len(free):
            return False
        for number in range(held, held + lacking):
            self.table[place][number] = free.popleft()
        self._held[place] += lacking
        return True
