"""Directions of preference: what a user wants of an answer, as a unit vector over two ratings (DPA, arXiv 2402.18571).

Each prompt is asked in one direction, which stands in its system message; the best of its answers is the one whose
ratings reach furthest in that direction. A policy trained on those follows directions.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.config.loop import DirectionOptions
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.example import Example
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.groups import SYSTEM_ROLES, PromptGroup
from rlhf_jax.data.limits import TOO_LONG
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.system_prompt import check_system_role, with_system_prompt
from rlhf_jax.scoring.combine import weighted_sum

DIRECTION = "direction"
"""The column of a prompt that holds its direction, and the number of a response that says how far it reaches in it."""
TEMPLATE = ("You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
            "Your response should maximize weighted rating = {weights}")
"""DPA's system message (RLHFlow/Directional-Preference-Alignment)."""


def unit_vector(angle: float, objectives: Sequence[str]) -> dict[str, float]:
    """(cos, sin) of an angle in degrees, by the names of two numbers.

    >>> unit_vector(60.0, ("a", "b"))
    {'a': 0.5000000000000001, 'b': 0.8660254037844386}
    """
    return dict(zip(objectives, (math.cos(math.radians(angle)), math.sin(math.radians(angle))), strict=True))


def direction_text(direction: Mapping[str, float]) -> str:
    """The system message that asks for a direction: each rating by the last part of its name, weights in hundredths.

    >>> direction_text({"proxy/helpfulness": 0.8, "proxy/verbosity": -0.6}).partition(" = ")[2]
    'helpfulness*80 + verbosity*-60'
    """
    return TEMPLATE.format(weights=" + ".join(f"{name.rsplit('/', 1)[-1]}*{round(100 * weight)}"
                                              for name, weight in direction.items()))


def draw(options: DirectionOptions, prompt_id: str) -> dict[str, float]:
    """The direction of a prompt: uniform between the angles, by the seed and the prompt's id alone."""
    angle = random.Random(f"{options.seed} {prompt_id}").uniform(options.min_angle, options.max_angle)
    return unit_vector(angle, options.objectives)


def directed(prompts: Sequence[PromptGroup], options: DirectionOptions, renderer: Renderer
             ) -> tuple[Sequence[PromptGroup], Funnel]:
    """Prompts in the ids that ask for a direction each, kept as a column; scorers still see the prompt without it.

    Prompts that the system message makes too long are left out and counted.

    Raises:
      ValueError: the template has no system role, or a prompt a system message of its own.
    """
    check_system_role(renderer, TEMPLATE)
    out, funnel = OnDisk[PromptGroup](), Funnel(read=len(prompts))
    for prompt in prompts:
        if not isinstance(prompt.prompt, str) and prompt.prompt[0]["role"] in SYSTEM_ROLES:
            raise ValueError(f"prompt {prompt.prompt_id!r} has a system message of its own, and loop.directions writes "
                             "each prompt's direction there; take it out of the data")
        direction = draw(options, prompt.prompt_id)
        extra: dict[str, Any] = {**prompt.extra, DIRECTION: direction}
        messages = with_system_prompt(prompt.prompt, direction_text(direction))
        try:
            group = renderer.render(Example(messages, prompt_id=prompt.prompt_id, extra=extra))
        except BadRow as error:
            if error.reason not in TOO_LONG:
                raise ValueError(f"prompt {prompt.prompt_id!r}: {error.message}") from error
            funnel.dropped[error.reason] += 1
            continue
        out.append(dataclasses.replace(group, prompt=prompt.prompt))
    return out, funnel


def with_reach(groups: Iterable[PromptGroup]) -> Iterator[PromptGroup]:
    """Groups whose responses carry how far they reach in their prompt's direction, v . r, as the number `direction`.

    A response that lacks one of the ratings gets none.

    Raises:
      ValueError: at the end, where no response has a rating that the directions are over.
    """
    there, wanted = set[str](), set[str]()
    for group in groups:
        there.update(name for response in group.responses for name in response.scores)
        wanted.update(group.extra[DIRECTION])
        reaches = [weighted_sum(response.scores, group.extra[DIRECTION]) for response in group.responses]
        yield group.with_scores(DIRECTION, [None if reach is None else {"": reach} for reach in reaches])
    if lacking := sorted(wanted - there):
        raise ValueError(f"loop.directions.objectives names {', '.join(lacking)}, which no response has; the scorer "
                         f"gave {', '.join(sorted(there)) or 'no number'}")
