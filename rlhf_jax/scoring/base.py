"""What gives responses a score: the interface, and rendering for scorers with a tokenizer of their own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import scipy.special

from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.groups import LENGTH, PromptGroup, Response, Text, Verdict
from rlhf_jax.data.rows import BadRow, Example
from rlhf_jax.models import Params

Verdicts = list[list[Verdict | None]]
"""Per group, per response; None where the scorer failed on one (it is then excluded and counted, never 0)."""
Progress = Callable[[int], None]
"""Called with the number of prompts done since the last call."""


class Scorer(Protocol):
    """Scores all responses of prompt groups. Higher is better; only differences within a prompt need mean anything."""

    @property
    def name(self) -> str:
        """Under which verdicts are stored in `Response.scores`: the score as NAME, other numbers as NAME/key."""
        ...

    @property
    def key(self) -> str:
        """Changes when the scores would: part of a stage's input hash."""
        ...

    @property
    def failures(self) -> Counter[str]:
        """Responses or comparisons that got no verdict so far, by reason."""
        ...

    def score(self, groups: Sequence[PromptGroup], progress: Progress | None = None) -> Verdicts: ...

    def release(self) -> None:
        """Called after the last score for a while: weights that can be read again leave the devices."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """A scorer that judges two answers against each other, better than by the difference of two scores."""

    def compare(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None
                ) -> list[float | None]:
        """P(first better than second) of each (prompt, first, second); None where the comparison failed."""
        ...


@runtime_checkable
class InBothOrders(Protocol):
    """A scorer that is shown two answers one after the other, and so may favour a place."""

    def orders(self, games: Sequence[tuple[Text, Text, Text]], progress: Progress | None = None
               ) -> list[tuple[float, float] | None]:
        """P(first better than second) of each (prompt, first, second), where the first is shown first, and where it is
        shown second, NaN where that says nothing; None where the comparison failed."""
        ...

    def joined(self, both: tuple[float, float]) -> float:
        """What a game's two numbers come to."""
        ...


@runtime_checkable
class HasStates(Protocol):
    """A scorer that reads answers with a model whose hidden states say what the answers are like."""

    def states(self, groups: Sequence[PromptGroup]) -> list[list[np.ndarray | None]]:
        """Per group and response [2, D] float32, as `scoring.states.states_map`; None for one that was not read."""
        ...


@runtime_checkable
class GivesProbabilities(Protocol):
    """A scorer whose score is a probability that a response is right."""

    probabilities: Literal[True]


_SURE = 1e-7
"""The least distance of a probability from 0 and 1: that of float32, in which they are computed."""


def log_odds(scorer: Scorer, score: float) -> float:
    """A score on the scale where the sigmoid of a difference is P(the first is better), by Bradley and Terry: the score
    itself, or the log-odds of one that is a probability."""
    if not isinstance(scorer, GivesProbabilities):
        return score
    return float(scipy.special.logit(min(max(score, _SURE), 1 - _SURE)))


def preference(scorer: Scorer, first: float | None, second: float | None) -> float | None:
    """P(the first is better) by two scores of a scorer; None where one is missing."""
    if first is None or second is None:
        return None
    return float(scipy.special.expit(log_odds(scorer, first) - log_odds(scorer, second)))


def verdicts_of(scores: Sequence[Sequence[float | None]]) -> Verdicts:
    """Scores without further numbers, as verdicts."""
    return [[None if score is None else {"": score} for score in group] for group in scores]


def scores_in(verdicts: Verdicts) -> list[list[float | None]]:
    """The scores of verdicts, without the other numbers."""
    return [[None if verdict is None else verdict[""] for verdict in group] for group in verdicts]


class Weights:
    """A scorer's weights: a tree, or a function that reads one when it is asked for and again after it was let go."""

    def __init__(self, source: Params | Callable[[], Params]):
        self._source = source
        self._read: Params | None = None

    def __call__(self) -> Params:
        if not callable(self._source):
            return self._source
        if self._read is None:
            self._read = self._source()
        return self._read

    def release(self) -> None:
        self._read = None


def rerender(groups: Sequence[PromptGroup], renderer: Renderer, failures: Counter[str]
             ) -> tuple[list[PromptGroup], list[tuple[int, list[int]]]]:
    """Groups in the ids of the scorer's own tokenizer and template.

    A chat template closes every turn, also that of a response that ran out of budget, as in TRL. Plain text is closed
    by the stop token alone, which a response that ran out of budget does not get. Responses that cannot be rendered
    are left out and counted in `failures` by reason.

    Returns:
      Groups of the responses that are left, and for each: (the group's index in `groups`, the indices of its
      responses). A group whose responses were rendered one by one may come in several, one for each form its prompt
      has: where a response's first token begins in the turn's header, the prompt ends before it.
    """
    out, places = [], []
    for index, group in enumerate(groups):
        alike: dict[bytes, list[tuple[int, PromptGroup]]] = {}
        for i, one in _rendered(group, renderer, failures):
            alike.setdefault(one.prompt_ids.tobytes(), []).append((i, one))
        for kept in alike.values():
            responses = tuple(_unstopped(new, group.responses[i], renderer.text_end) for i, new in kept)
            out.append(dataclasses.replace(kept[0][1], responses=responses))
            places.append((index, [i for i, _ in kept]))
    return out, places


def _rendered(group: PromptGroup, renderer: Renderer, failures: Counter[str]) -> list[tuple[int, PromptGroup]]:
    """(index, one-response group) of each response that can be rendered: all at once, or one by one where one fails."""
    texts = tuple(response.text for response in group.responses)
    if renderer.overlong == "drop":
        try:
            whole = renderer.render(_example(group, texts))
            return [(i, dataclasses.replace(whole, responses=(r,))) for i, r in enumerate(whole.responses)]
        except BadRow:
            pass  # which of them it was is found out below
    kept = []
    for i, text in enumerate(texts):
        try:
            kept.append((i, renderer.render(_example(group, (text,)))))
        except BadRow as error:
            failures[error.reason] += 1
    return kept


def _example(group: PromptGroup, texts: tuple[Text, ...]) -> Example:
    """Responses with what the conversation was given; the policy's own template variables are none of the scorer's."""
    tools = {name: value for name, value in group.extra.items() if name == "tools"}
    return Example(group.prompt, texts, prompt_id=group.prompt_id, extra=tools)


def _unstopped(group: PromptGroup, original: Response, stop_id: int | None) -> Response:
    """The one response of `group`, without its stop token where it is plain text and was cut off."""
    rendered = group.responses[0]
    plain = isinstance(group.prompt, str) and isinstance(original.text, str)
    if original.finish_reason != LENGTH or not plain or rendered.ids[-1] != stop_id or len(rendered.ids) < 2:
        return rendered
    return dataclasses.replace(rendered, ids=rendered.ids[:-1], loss_mask=rendered.loss_mask[:-1])
