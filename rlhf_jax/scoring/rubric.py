"""What a judge is asked, and how its reply is read: a YAML file of a user's own, or one of the two here."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlhf_jax.data.benchmark_files import filled

PAIR_PLACES, SINGLE_PLACES = ("answer_a", "answer_b"), ("answer",)
_TEXTS, _NUMBERS = ("system", "user", "verdict", "a", "b", "tie"), ("least", "most")
_KEYS = (*_TEXTS, *_NUMBERS)


@dataclasses.dataclass(frozen=True)
class Rubric:
    """A prompt of a judge.

    Attributes:
      user: the user's turn, with {question} and {answer_a}, {answer_b} (which is better?) or {answer} (how good?).
      system: the system's turn, empty for none.
      verdict: a regular expression with one group; what it finds last in the reply is the verdict.
      a, b, tie: of a comparison, what the verdict says if the first is better, the second is, or neither. Of a rating
        the verdict is the number, which lies between `least` and `most`.
    """

    user: str
    system: str = ""
    verdict: str = r"\[\[([^\[\]]+)\]\]"
    a: str = "A"
    b: str = "B"
    tie: str = "C"
    least: float = -sys.float_info.max
    most: float = sys.float_info.max

    @property
    def compares(self) -> bool:
        return "{answer_a}" in self.user

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.verdict)

    def conversation(self, **values: str) -> list[dict[str, str]]:
        """The messages that ask it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": filled(self.user, **values)}]

    def outcome(self, reply: str) -> float | None:
        """P(first is better), 1, a half or 0, or the rating; None where the reply holds no verdict."""
        found = self._pattern.findall(reply)
        if not found:
            return None
        said = found[-1].strip()
        if self.compares:
            return {self.a: 1.0, self.b: 0.0, self.tie: 0.5}.get(said)
        try:
            rating = float(said)
        except ValueError:
            return None
        return rating if self.least <= rating <= self.most else None


PAIRS = Rubric(
    system="You judge answers of AI assistants. Be impartial.",
    user="Two assistants answered the user below. Which answer serves the user better? Look at whether it does what "
         "was asked, is right, and is clear; neither the order of the answers nor their length is a merit. First give "
         "your reasons in a few sentences. Then end with your verdict and nothing behind it: [[A]] if the first answer "
         "is better, [[B]] if the second is, [[C]] if neither is.\n\n<user>\n{question}\n</user>\n\n<answer A>\n"
         "{answer_a}\n</answer A>\n\n<answer B>\n{answer_b}\n</answer B>")
"""Asks which of two answers is better, where the user has no rubric of their own."""
SINGLE = Rubric(
    system="You judge answers of AI assistants. Be impartial.",
    user="An assistant answered the user below. How good is the answer? Look at whether it does what was asked, is "
         "right, and is clear; length is no merit. First give your reasons in a few sentences. Then end with a rating "
         "from 1 (useless) to 10 (nothing could be better) and nothing behind it, as in [[5]].\n\n<user>\n{question}\n"
         "</user>\n\n<answer>\n{answer}\n</answer>", least=1, most=10)
"""Asks for a rating."""


def read_rubric(path: str | None, pairs: bool) -> Rubric:
    """The rubric of a YAML file, or the one here.

    Raises:
      ValueError: it cannot be read, has other keys, asks something else, or its expression is none.
    """
    if path is None:
        return PAIRS if pairs else SINGLE
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"rubric = {path!r}: there is no such file")
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"rubric = {path!r} is no YAML: {error}") from error
    return _checked(content, path, PAIR_PLACES if pairs else SINGLE_PLACES)


def _checked(content: Any, path: str, places: tuple[str, ...]) -> Rubric:
    if not isinstance(content, Mapping) or not isinstance(content.get("user"), str):
        raise ValueError(f"rubric = {path!r} holds no text `user`; it is a mapping with the keys {', '.join(_KEYS)}")
    if odd := [key for key, value in content.items() if not (
            isinstance(value, str) if key in _TEXTS else key in _NUMBERS and type(value) in (int, float))]:
        raise ValueError(f"rubric = {path!r}: {odd[0]!r} is no key of a rubric, or what it holds is no text "
                         f"({', '.join(_NUMBERS)}: no number); keys: {', '.join(_KEYS)}")
    rubric = Rubric(**content)
    if missing := [place for place in ("question", *places) if f"{{{place}}}" not in rubric.user]:
        raise ValueError(f"rubric = {path!r}: its `user` has no {{{missing[0]}}}; with judges: "
                         f"{'pairs' if places == PAIR_PLACES else 'single'} it holds {{question}} and "
                         f"{' and '.join(f'{{{place}}}' for place in places)}")
    try:
        groups = re.compile(rubric.verdict).groups
    except re.error as error:
        raise ValueError(f"rubric = {path!r}: verdict = {rubric.verdict!r} is no expression ({error})") from error
    if groups != 1:
        raise ValueError(f"rubric = {path!r}: verdict = {rubric.verdict!r} has {groups} groups; put what the judge "
                         "says into one pair of parentheses")
    if rubric.compares and (bounds := [key for key in _NUMBERS if key in content]):
        raise ValueError(f"rubric = {path!r}: {bounds[0]} has no effect where two answers are compared; leave it out")
    if rubric.least > rubric.most:
        raise ValueError(f"rubric = {path!r}: least = {rubric.least:g} is more than most = {rubric.most:g}")
    if len({rubric.a, rubric.b, rubric.tie}) != 3:
        raise ValueError(f"rubric = {path!r}: a, b and tie must be three different words")
    return rubric
