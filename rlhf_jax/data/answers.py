r"""Final answers of solutions: how they are found in a text, and when two of them are the same.

| rule             | the answer of a text                                                 | the same                   |
|------------------|----------------------------------------------------------------------|----------------------------|
| `gsm8k`          | number behind the last `####`, `A:` (of a line) or `answer is`       | as text, else as numbers   |
| `gsm8k_flexible` | the last number                                                      | as text, else as numbers   |
| `math`           | in the last `\boxed{...}`, else the line behind the last `answer is` | math-verify (extra `math`) |

Numbers lose thousands' commas, dollar signs and a trailing full stop. Of a reference, a text without any mark is the
answer itself. Source: Cobbe et al., arXiv 2110.14168; the two GSM8K filters of lm-evaluation-harness.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlhf_jax.data.groups import PromptGroup

EXTRA = "math"
"""The extra that brings math-verify."""
_MARKED = re.compile(r"(?:####|^A:|answer is:?)\s*(-?\$?[0-9.,]+)", re.MULTILINE | re.IGNORECASE)
_ANY = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_SAID = re.compile(r"answer is:?\s*(.+)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")


class AnswerRule(NamedTuple):
    """find: text -> its answer, None where it has none. same: whether two answers are equal. votes: whether two answers
    are one candidate of a vote; published majorities count answers as they are written."""

    find: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    votes: Callable[[str, str], bool]


def as_number(text: str) -> str | None:
    """A number as it is written, without commas, dollar signs and a trailing full stop; None without a digit."""
    text = text.replace(",", "").replace("$", "").rstrip(".")
    return text if any(letter.isdigit() for letter in text) else None


def marked_number(text: str) -> str | None:
    """The number behind the last mark of an answer."""
    found = _MARKED.findall(text)
    return as_number(found[-1]) if found else None


def last_number(text: str) -> str | None:
    """The last number of a text."""
    numbers = [as_number(long or short) for long, short in _ANY.findall(text)]
    return next((number for number in reversed(numbers) if number is not None), None)


def boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` with all its braces holds, else the line behind the last `answer is`."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place].strip() or None
    said = _SAID.findall(text)
    return (said[-1].strip().rstrip(".").strip("$") or None) if said else None


def equal_texts(a: str, b: str) -> bool:
    return a == b


def equal_numbers(a: str, b: str) -> bool:
    """As texts, else as numbers: 3 is 3.0."""
    try:
        return a == b or float(a) == float(b)
    except ValueError:
        return False


def equal_mathematics(a: str, b: str) -> bool:
    """What math-verify says of the reference `a` and the answer `b`, both LaTeX."""
    from math_verify import verify

    return a == b or bool(verify(_expressions(a), _expressions(b)))


@functools.lru_cache(maxsize=4096)
def _expressions(latex: str) -> list[Any]:
    """What math-verify reads in an answer; reading takes ten times as long as comparing."""
    from math_verify import parse

    return list(parse(f"${latex}$"))


RULES: dict[str, AnswerRule] = {
    "gsm8k": AnswerRule(marked_number, equal_numbers, equal_texts),
    "gsm8k_flexible": AnswerRule(last_number, equal_numbers, equal_texts),
    "math": AnswerRule(boxed, equal_mathematics, equal_mathematics),
}


def find_rule(name: str) -> AnswerRule:
    """The rule of this name.

    Raises:
      ValueError: there is none, or what it needs is not installed.
    """
    if name not in RULES:
        raise ValueError(f"there is no answer rule {name!r}; choose one of {', '.join(RULES)}")
    if name == "math" and importlib.util.find_spec("math_verify") is None:
        raise ValueError('answers: math compares expressions with math-verify, which is not installed; pip install '
                         f'"rlhf_jax[{EXTRA}]", or choose gsm8k for answers that are numbers')
    return RULES[name]


def reference_answer(rule: AnswerRule, reference: object) -> str:
    """The answer of a reference: behind its mark, or all of it.

    Raises:
      ValueError: there is none in it.
    """
    text = str(reference).strip()
    answer = rule.find(text) or (text if rule.same is equal_mathematics else as_number(text))
    try:
        if rule.same is equal_numbers:
            float(answer or "")
    except ValueError:
        answer = None
    if not answer:
        raise ValueError(f"the reference {text[:60]!r} holds no answer")
    return answer


def group_reference(rule: AnswerRule, group: PromptGroup, column: str) -> str:
    """The reference answer that a prompt's row came with.

    Raises:
      ValueError: the row has no such column, or no answer in it.
    """
    if column not in group.extra:
        raise ValueError(f"prompt {group.prompt_id!r} has no column {column!r}, the reference; it has "
                         f"{', '.join(group.extra) or 'none'}. Set answer_column, and sample from rows that have it")
    try:
        return reference_answer(rule, group.extra[column])
    except ValueError as error:
        raise ValueError(f"prompt {group.prompt_id!r}, column {column!r}: {error}") from error


def is_right(rule: AnswerRule, reference: str, text: str) -> bool:
    """Whether a solution ends with the reference answer."""
    answer = rule.find(text)
    return answer is not None and rule.same(reference, answer)


def candidates(rule: AnswerRule, answers: Sequence[str | None]) -> list[int]:
    """Number of the candidate that each answer votes for, in the order of their first votes; -1 of no answer."""
    known: list[str] = []
    out: list[int] = []
    for answer in answers:
        if answer is None:
            out.append(-1)
            continue
        out.append(next((i for i, one in enumerate(known) if rule.votes(one, answer)), len(known)))
        if out[-1] == len(known):
            known.append(answer)
    return out
