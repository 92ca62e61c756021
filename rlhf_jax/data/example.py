"""The Example: what every layout of rows becomes, before it is turned into token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf_jax.config.data import PairRule, PromptsFrom
from rlhf_jax.data.groups import PromptGroup, Text, text_group
from rlhf_jax.data.message_fields import TRAIN
from rlhf_jax.data.sources import SourceRow

DATA_SCORE, LABEL = "data", "label"
"""Names of a data set's own numbers in `Response.scores`: its grade (several are `data/NAME`), and desirability."""
Kind = Literal["prompt", "sft", "preference", "graded", "unpaired", "steps", "answered"]


class NotedRow(dict[str, Any]):
    """A row and what a converter did to it, for the funnel: name -> count."""

    def __init__(self, row: Mapping[str, Any], **notes: int):
        super().__init__(row)
        self.notes = {name: count for name, count in notes.items() if count}


@dataclasses.dataclass(frozen=True)
class Example:
    """What a PromptGroup is before tokenisation.

    Attributes:
      prompt: text, or messages that end before the response.
      responses: each text, or messages that begin with an assistant turn.
      pairs: (chosen, rejected) indices into `responses`.
      margins: one number per pair (score gap), or empty.
      scores: of each response its numbers by name: `data` and `data/NAME` are grades, `label` is 1 for a desirable one
        of unpaired data, 0 for another. Empty where there are none at all.
      prompt_id: from prompt_id, id or index, else a short sha256 of the prompt with its white space collapsed.
      extra: the other columns of the row, as JSON can hold them.
      notes: what was done to the row in reading it, for the funnel.
      origin: where the row stood; None where it was read from nowhere.
    """

    prompt: Text
    responses: tuple[Text, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    margins: tuple[float, ...] = ()
    scores: tuple[Mapping[str, float], ...] = ()
    prompt_id: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    origin: SourceRow | None = dataclasses.field(default=None, compare=False, repr=False)


def as_text(example: Example) -> PromptGroup:
    """The example as a group of text alone: for scorers, which render by themselves."""
    scores = example.scores or ({},) * len(example.responses)
    return text_group(example.prompt_id, example.prompt, zip(example.responses, scores, strict=True),
                      pairs=example.pairs, margins=example.margins, extra=example.extra)


def with_responses(example: Example, kept: Sequence[int]) -> Example:
    """The example with the responses at these places alone, what stands beside each, and the pairs of two of them."""
    place = {old: new for new, old in enumerate(kept)}
    whole = [i for i, pair in enumerate(example.pairs) if place.keys() >= set(pair)]
    extra = dict(example.extra)
    if "response_models" in extra:
        extra["response_models"] = [extra["response_models"][i] for i in kept]
    return dataclasses.replace(
        example, responses=_at(example.responses, kept), scores=_at(example.scores, kept), extra=extra,
        margins=_at(example.margins, whole),
        pairs=tuple((place[chosen], place[rejected]) for chosen, rejected in _at(example.pairs, whole)))


def _at(values: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    """Those at the places; nothing where there is nothing for any."""
    return tuple(values[i] for i in places) if values else ()


def turn_by_turn(example: Example) -> list[Example]:
    """An example per turn of the assistant's in the one response of this one, prompted by what was said before it.

    Turns that are not trained on make none. Empty where there is no one response of several turns.
    """
    if len(example.responses) != 1 or isinstance(example.prompt, str) or isinstance(example.responses[0], str):
        return []
    prompt, response = example.prompt, example.responses[0]
    return [dataclasses.replace(example, prompt=[*prompt, *response[:place]], responses=([message],),
                                prompt_id=f"{example.prompt_id}/{place}")
            for place, message in enumerate(response) if message["role"] == "assistant" and message.get(TRAIN, True)]


@dataclasses.dataclass(frozen=True)
class ParseOptions:
    """How rows are read where a row leaves a choice.

    Attributes:
      pair_rule: graded rows read as preferences: all unequal pairs, best against worst, or best against a random one.
      pair_score: the number of graded responses that those pairs are made by.
      min_gap: pairs whose scores differ by less are left out; equal scores never make a pair.
      seed: of the rule best_random; a prompt's draw depends on the seed and its id alone.
      allow_empty_prompt: an empty string is a prompt; the BOS token alone is then what the model sees.
      to_judge: pairs are judged as they are and not learned from: a response may be empty, or both be the same.
      prompts_from: of rows that hold whole conversations, what is the prompt; None where rows are prompts.
      drop_system: system and developer messages are left out, those in columns of their own too.
    """

    pair_rule: PairRule = "all"
    pair_score: str = DATA_SCORE
    min_gap: float = 0.0
    seed: int = 0
    allow_empty_prompt: bool = False
    to_judge: bool = False
    prompts_from: PromptsFrom | None = None
    drop_system: bool = False
