"""All examples of a data set as prompt groups, every one that is left out counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from rlhf_jax.config.data import Overlong
from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.chat import Renderer
from rlhf_jax.data.example import Example, turn_by_turn, with_responses
from rlhf_jax.data.funnel import Funnel
from rlhf_jax.data.graded import without_unpaired
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.limits import LEFT_OUT, TOO_LONG
from rlhf_jax.data.on_disk import OnDisk


def render_all(examples: Iterable[Example], renderer: Renderer, funnel: Funnel) -> Sequence[PromptGroup]:
    """The groups of all examples that can be rendered, on disk (see `OnDisk`).

    What the limits leave out or cut is counted in `funnel`; an example that cannot be rendered is a bad row of it.

    Raises:
      BadRow: a row is too long and `renderer.overlong` is "error".
      TooManyBadRows: more rows cannot be rendered than `max_bad_rows` allows.
      ValueError: no row is left.
    """
    last = "there was none"

    def made() -> Iterator[PromptGroup]:
        nonlocal last
        for example in examples:
            try:
                groups, notes = rendered(renderer, example)
            except BadRow as error:
                if renderer.overlong == "error" and error.reason in TOO_LONG:
                    raise BadRow(error.reason, f"prompt {example.prompt_id!r}: {error.message}. Raise the limit, or "
                                               f"set overlong to {', '.join(get_args(Overlong)[1:])}") from error
                last = error.message
                if error.reason in LEFT_OUT:
                    funnel.dropped[error.reason] += 1
                else:
                    funnel.refuse(example.origin, error)
                continue
            funnel.notes.update(notes)
            yield from groups

    groups = OnDisk(made())
    if funnel.quarantine is not None:
        funnel.quarantine.close(funnel.read)
    if not groups:
        raise ValueError(f"no row is left after rendering (of the last: {last}):\n{funnel}")
    return groups


def rendered(renderer: Renderer, example: Example) -> tuple[list[PromptGroup], list[str]]:
    """The group of an example, or one per turn of the assistant's where the template rewrites earlier turns.

    Qwen3's takes the thoughts out of all turns but the last. Each turn is then learned as it would be written: behind
    the conversation before it, as the template shows that conversation then. Of a row of several answers or pairs those
    are left out that cannot be rendered or are too long (see `fitting`).
    """
    try:
        group, notes = renderer.render_noted(example)
        return [group], notes
    except BadRow as error:
        if renderer.overlong == "error" and error.reason in TOO_LONG:
            raise
        several = len(example.pairs or example.responses) > 1
        fits, out = _without_bad_answers(example, renderer) if several else (example, [])
        if fits is not example:
            group, notes = renderer.render_noted(fits)
            return [group], [*notes, *["left_out_responses"] * len(out)]
        turns = turn_by_turn(example) if error.reason == "template_not_prefix_preserving" else []
        if not turns:
            raise
    groups: list[PromptGroup] = []
    notes, left_out = ["rendered_turn_by_turn"], None
    for turn in turns:
        try:
            group, about = renderer.render_noted(turn)
        except BadRow as error:
            if error.reason not in LEFT_OUT or renderer.overlong == "error":
                raise
            notes, left_out = [*notes, f"turn_{error.reason}"], error
            continue
        groups, notes = [*groups, group], [*notes, *about]
    if left_out is not None and not groups:
        raise left_out
    return groups, notes


def fitting(example: Example, renderer: Renderer) -> tuple[Example, list[dict[str, Any]]]:
    """The example without the responses that cannot be rendered or are too long; itself where no other is left.

    Of an example with pairs a pair must be left. Returned too: prompt id, place and reason of each such response; of an
    example that stays as it is, of those that are too long.
    """
    try:
        renderer.render(example)
        return example, []
    except BadRow:
        return _without_bad_answers(example, renderer)


def _without_bad_answers(example: Example, renderer: Renderer) -> tuple[Example, list[dict[str, Any]]]:
    """As `fitting`, of an example that cannot be rendered."""
    kept, out = [], []
    for place in range(len(example.responses)):
        try:
            renderer.render(with_responses(example, [place]))
            kept.append(place)
        except BadRow as error:
            if renderer.overlong == "error" and error.reason in TOO_LONG:
                raise
            out.append({"prompt_id": example.prompt_id, "response": place, "reason": error.reason})
    fits = with_responses(example, kept)
    if not out or not fits.responses or bool(fits.pairs) != bool(example.pairs):
        return example, [row for row in out if row["reason"] in TOO_LONG]
    return (without_unpaired(fits) if fits.pairs else fits), out
