"""Solutions in steps: rows that judge every step, and how the text of a solution is cut into steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow, checked_text, short, turn_of
from rlhf_jax.data.groups import PromptGroup, Text
from rlhf_jax.data.prompt_text import plain_text

STEPS, LABELS = "steps", "labels"
"""Columns of a row: the steps of a solution, and what each is worth."""
PLUS, MINUS = "+", "-"
BETWEEN = "\n\n"
"""What stands between the steps of a row where its solution is one text."""


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a solution, without the separators, white space at their ends, and empty ones."""
    return [step for step in map(str.strip, text.split(separator)) if step]


def row_steps(row: Mapping[str, Any]) -> list[str]:
    """The steps of a row.

    Raises:
      BadRow: no_steps, not_text_steps, empty_step.
    """
    steps = row[STEPS]
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise BadRow("no_steps", f"column {STEPS!r} holds {short(steps)}; give the list of the solution's steps, at "
                                 "least one")
    for step in steps:
        if not isinstance(step, str):
            raise BadRow("not_text_steps", f"column {STEPS!r} has a step that is {short(step)}; a step is text")
        if not step.strip():
            raise BadRow("empty_step", f"column {STEPS!r} has an empty step; leave it out, with its label")
    return [checked_text(step, STEPS).strip() for step in steps]


def row_labels(row: Mapping[str, Any], count: int) -> list[float]:
    """What each of `count` steps is worth, in 0 to 1: "+" and true are 1, "-" and false 0.

    Raises:
      BadRow: unequal_lists, bad_step_label.
    """
    labels = row[LABELS]
    if not isinstance(labels, Sequence) or isinstance(labels, str) or len(labels) != count:
        raise BadRow("unequal_lists", f"{count} steps but {LABELS} {short(labels)}; give one label for each step")
    return [_worth(label) for label in labels]


def _worth(label: Any) -> float:
    if label in (PLUS, MINUS):
        return float(label == PLUS)
    if not isinstance(label, bool | int | float) or not math.isfinite(label) or not 0 <= label <= 1:
        raise BadRow("bad_step_label", f"a step is labelled {short(label)}; give + or -, true or false, or a number "
                                       "from 0 to 1")
    return float(label)


def steps_of(group: PromptGroup, place: int, separator: str) -> list[str]:
    """The steps of a group's response: those of the row it was read from, else its text cut at the separator.

    Raises:
      BadRow: no_steps.
    """
    given = group.extra.get(STEPS)
    text = plain_text(group.responses[place].text)
    if len(group.responses) == 1 and isinstance(given, list) and text == BETWEEN.join(given):
        return given
    steps = split_steps(text, separator)
    if not steps:
        raise BadRow("no_steps", "the response has no step")
    return steps


def judged_steps(prompt: Text, steps: Sequence[str], signs: Sequence[str]) -> tuple[Text, Text]:
    """A solution as the conversation that a process model reads: (prompt, response) in messages.

    The user says the question, a space and the first step, then one step a turn; the assistant answers each with a
    sign. Source: RLHFlow's process reward models, whose outcome models are the same with the solution as one step.

    Raises:
      BadRow: prompt_not_of_user.
    """
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if asked[-1]["role"] != "user":
        raise BadRow("prompt_not_of_user", f"the prompt ends with {turn_of(asked[-1]['role'])}; the question that "
                                           "steps answer is the user's")
    first = {**asked[-1], "content": f"{asked[-1]['content']} {steps[0]}"}
    turns = [{"role": "assistant", "content": signs[0]}]
    for step, sign in zip(steps[1:], signs[1:], strict=True):
        turns += [{"role": "user", "content": step}, {"role": "assistant", "content": sign}]
    return [*asked[:-1], first], turns
