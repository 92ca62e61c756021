"""Token ids of texts that mostly begin as the one before: a conversation turn by turn, a prompt with each answer."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class _Anchor(NamedTuple):
    """A special token in a text: where it begins and ends, and its place among the text's ids."""

    start: int
    end: int
    place: int


class _Seen(NamedTuple):
    """A text that was tokenized, and the special tokens in it."""

    text: str
    ids: list[int]
    anchors: list[_Anchor]


class GrowingText:
    """Tokenizes texts; what a text shares with the one before is not read again.

    A fast tokenizer cuts a text at its added tokens first, and what stands behind one has the ids that it has by
    itself. So the ids up to the last added token that both texts share are kept, and the text from there is tokenized.
    """

    def __init__(self, tokenizer: Any):
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}
        self._tokenizer = tokenizer
        self._anchors = {token.content: token_id for token_id, token in added.items()
                         if token.content and not token.normalized and not token.single_word
                         and token_id != tokenizer.unk_token_id}  # which stands for letters too
        self._anchor_ids = frozenset(self._anchors.values())
        names = sorted((token.content for token in added.values() if token.content), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) if self._anchors else r"(?!)")
        self._longest = len(names[0]) if names else 0
        self._seen = _Seen("", [], [])

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without special tokens that are not in it."""
        seen = self._seen
        shared = _shared(seen.text, text)
        known = [anchor for anchor in seen.anchors if anchor.end <= shared]
        while known and not self._stands(text, known):
            known.pop()
        start, place = (known[-1].start, known[-1].place) if known else (0, 0)
        rest = list(self._tokenizer(text[start:], add_special_tokens=False)["input_ids"])
        ids = [*seen.ids[:place], *rest]
        self._seen = _Seen(text, ids, [*known[:-1], *self._found(text, start, rest, place)])
        return ids

    def _stands(self, text: str, known: list[_Anchor]) -> bool:
        """Whether the last one is read in this text too: behind it there may be a longer token that covers it."""
        last = known[-1]
        after = next((anchor.end for anchor in reversed(known) if anchor.end <= last.start - self._longest), 0)
        found = next((match for match in self._pattern.finditer(text, after) if match.end() > last.start), None)
        return found is not None and found.span() == (last.start, last.end)

    def _found(self, text: str, start: int, ids: list[int], place: int) -> list[_Anchor]:
        """The special tokens of a text from `start` on, which has these ids; none where text and ids do not agree."""
        matches = [match for match in self._pattern.finditer(text, start) if match[0] in self._anchors]
        places = [number for number, token in enumerate(ids) if token in self._anchor_ids]
        if [self._anchors[match[0]] for match in matches] != [ids[number] for number in places]:
            return []
        return [_Anchor(match.start(), match.end(), place + number)
                for match, number in zip(matches, places, strict=True)]


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if b.startswith(a[:middle]) else (low, middle - 1)
    return low
