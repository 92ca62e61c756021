"""Rows that this package wrote (`generate`, `score`, `pairs`), read as a data set: by their texts, not their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.example import LABEL, Example, Kind, with_responses
from rlhf_jax.data.graded import without_unpaired
from rlhf_jax.data.groups import PromptGroup
from rlhf_jax.data.turns import is_empty

GROUP_COLUMN = "prompt_ids"
"""Such a row has this column, and no other layout does."""


def example_of_group(row: Mapping[str, Any], kind: Kind) -> Example:
    """What a row holds for `kind`: its prompt, its one response, its pairs, or all responses with their scores.

    Raises:
      BadRow: bad_group, several_responses, no_responses, missing_column.
    """
    try:
        group = PromptGroup.from_json(row)
    except ValueError as error:
        raise BadRow("bad_group", f"the row has the column {GROUP_COLUMN!r} and is no prompt group: {error}") from error
    example = Example(group.prompt, tuple(response.text for response in group.responses), group.pairs, group.margins,
                      tuple(response.scores for response in group.responses), group.prompt_id, group.extra)
    if kind == "prompt":
        return Example(group.prompt, prompt_id=group.prompt_id, extra=group.extra)
    if not example.responses:
        raise BadRow("no_responses", "the row holds a prompt and no response; sample some with `rlhf-jax generate`")
    if kind in ("sft", "unpaired") and len(example.responses) > 1:
        raise BadRow("several_responses", f"the row holds {len(example.responses)} responses to one prompt, and {kind} "
                                          "rows hold one; choose one")
    if kind == "unpaired" and LABEL not in example.scores[0]:
        raise BadRow("missing_column", f"the response has no score {LABEL!r}; it has {', '.join(example.scores[0])}")
    if kind == "steps":
        raise BadRow("missing_column", "the row holds sampled responses, whose steps nobody judged; `rlhf-jax steps` "
                                       "writes rows of labelled steps")
    if kind == "preference":
        return without_unpaired(example) if example.pairs else example
    return _spoken(dataclasses.replace(example, pairs=(), margins=()))


def _spoken(example: Example) -> Example:
    """Without empty answers, which no scorer judges; how many there were is noted."""
    kept = [i for i, response in enumerate(example.responses) if not is_empty(response)]
    left_out = len(example.responses) - len(kept)
    return dataclasses.replace(with_responses(example, kept),
                               notes={"left_out_responses": left_out} if left_out else {})
