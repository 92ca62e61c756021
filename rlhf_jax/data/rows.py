"""Row schemas: every layout people keep RLHF data in, validated and brought into one form, the Example.

| kind         | columns                                                                                            |
|--------------|----------------------------------------------------------------------------------------------------|
| `prompt`     | `prompt`; or `context_messages`, `messages`, `conversations`; or a preference row, whose prompt it is |
| `sft`        | `prompt` + `completion`; or `messages` / `conversations`; or `text` (language modelling)           |
| `preference` | `prompt` + `chosen` + `rejected` (explicit); `chosen` + `rejected` whole dialogues (implicit); graded |
| `graded`     | `prompt` + `responses` [{text, score}] or [{text, scores: {name: number}}]; or [str] + `rewards`      |
| `unpaired`   | `prompt` + `completion` + `label`; or `prompt` + `steps` + `label`, else the last of `labels`       |
| `steps`      | `prompt` + `steps` [str] + `labels` (of each step + or -, true or false, or a number from 0 to 1)  |
| `answered`   | any of the last five, labelled or not: a prompt and what was answered, for scorers                 |

Rows that `generate`, `score` and `pairs` wrote are read as any kind that they hold.

Every text may be a string or a list of messages, and the two may be mixed: a string `prompt` beside message-list
`chosen` (UltraFeedback-binarized) is understood. ShareGPT's `conversations`/`from`/`value` count as messages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.data.bad_row import BadRow, checked_text, turn_of
from rlhf_jax.data.context_columns import (
    SYSTEM_COLUMNS,
    check_media,
    has_system,
    template_variables,
    with_system,
    without_system,
)
from rlhf_jax.data.example import LABEL, Example, Kind, NotedRow, ParseOptions
from rlhf_jax.data.graded import finite_number, graded_example, paired, pairs_from_scores
from rlhf_jax.data.group_rows import GROUP_COLUMN, example_of_group
from rlhf_jax.data.groups import Message, Text
from rlhf_jax.data.json_values import count_non_finite, writable
from rlhf_jax.data.message_fields import TRAIN
from rlhf_jax.data.steps import BETWEEN, LABELS, STEPS, row_labels, row_steps
from rlhf_jax.data.turns import (
    as_dialogue,
    as_messages,
    as_text,
    check_alternation,
    is_empty,
    split_pair,
    without_empty_rounds,
)

__all__ = ["BadRow", "Example", "Kind", "ParseOptions", "canonical_prompt", "pairs_from_scores", "parse_row"]

PROMPT_COLUMNS = ("prompt", "context_messages", "conversations")
ID_COLUMNS = ("prompt_id", "id", "index")
_CONVERSATIONS = (*PROMPT_COLUMNS, "messages", "completion", "chosen", "rejected")
SCORE_COLUMNS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
_USED = {
    "prompt": (*PROMPT_COLUMNS, "messages"),
    "sft": (*PROMPT_COLUMNS, "messages", "completion", "text"),
    "preference": (*PROMPT_COLUMNS, "chosen", "rejected", "responses", "rewards", "scores", "margin",
                   *SCORE_COLUMNS[0], *SCORE_COLUMNS[1]),
    "graded": (*PROMPT_COLUMNS, "responses", "rewards", "scores"),
    "unpaired": (*PROMPT_COLUMNS, "completion", LABEL),
    "steps": (*PROMPT_COLUMNS, LABEL),
    "answered": (*PROMPT_COLUMNS, "messages", "completion", "text", LABEL, "chosen", "rejected", "responses", "rewards",
                 "scores", "margin", *SCORE_COLUMNS[0], *SCORE_COLUMNS[1]),
}


def parse_row(row: Mapping[str, Any], kind: Kind, options: ParseOptions | None = None) -> Example:
    """The Example in a row of any layout of `kind` (table at the top of this file).

    Raises:
      BadRow: missing_column, empty_prompt, empty_response, identical_chosen_rejected, no_pair, non_finite_score,
        not_alternating, not_messages and the like; `reason` is the key, the message says what to do.
      ValueError: no such kind.
    """
    if kind not in _PARSERS:
        raise ValueError(f"unknown kind {kind!r} of data; known kinds are {', '.join(_PARSERS)}")
    options, notes = options or ParseOptions(), Counter(row.notes if isinstance(row, NotedRow) else {})
    row = {column: value for column, value in row.items() if value is not None}
    check_media(row)
    ours = GROUP_COLUMN in row
    if not ours:
        whole = row
        row = {c: without_empty_rounds(v) if c in _CONVERSATIONS else v for c, v in row.items()}
        notes["dropped_empty_rounds"] += any(row[c] != whole[c] for c in _CONVERSATIONS if c in row)
    example = _parse_group(row, kind, options) if ours else _PARSERS[kind](row, options)
    whole_text = kind in ("sft", "answered") and example.prompt == "" and "text" in row
    if is_empty(example.prompt) and not (example.prompt == "" and (options.allow_empty_prompt or whole_text)):
        raise BadRow("empty_prompt", "the prompt is empty; remove the row, or set allow_empty_prompt to let the model "
                                     "start from its BOS token")
    if not options.to_judge and any(is_empty(response) for response in example.responses):
        raise BadRow("empty_response", "a response is empty; there is nothing to learn from or to judge")
    prompt_id = example.prompt_id or _prompt_id(row, example)
    prompt = example.prompt if ours or options.drop_system else _with_system(example.prompt, row)
    if options.drop_system:
        prompt, dropped = without_system(prompt, row)
        notes["dropped_system"] += dropped
    example = dataclasses.replace(example, prompt=prompt, prompt_id=prompt_id)
    rest = {} if ours else {c: v for c, v in row.items() if c not in (*_USED[kind], *ID_COLUMNS, *SYSTEM_COLUMNS)}
    template_variables(rest)  # what they are is a fault of the row, whether a template reads them or not
    return dataclasses.replace(example, extra=writable({**rest, **example.extra}),
                               notes=notes + Counter(example.notes) + Counter(
                                   non_finite_as_null=count_non_finite(rest)))


def _with_system(prompt: Text, row: Mapping[str, Any]) -> Text:
    if prompt == "" and has_system(row):
        raise BadRow("system_beside_text", "the row has a system column beside whole text, in which nobody speaks; "
                                           "write it into the text, or give messages")
    return with_system(prompt, row)


def canonical_prompt(prompt: Text) -> str:
    """One string for a prompt, white space collapsed, equal for prompts that read the same."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    turns: list[list[Any]] = [[m["role"], " ".join(m["content"].split())] for m in prompt]
    for turn, message in zip(turns, prompt, strict=True):
        fields = {key: value for key, value in message.items() if key not in ("role", "content", TRAIN)}
        turn += [fields] if fields else []
    return json.dumps(turns, ensure_ascii=False, sort_keys=True)


def _prompt_id(row: Mapping[str, Any], example: Example) -> str:
    for column in ID_COLUMNS:
        if column in row and str(row[column]) != "":
            return checked_text(str(row[column]), column)
    prompt = example.prompt
    # Rows of whole text have no prompt to tell them apart, so their text does.
    text = canonical_prompt(prompt) if prompt or not example.responses else f"\0{example.responses[0]}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prompt(row: Mapping[str, Any]) -> Text:
    for column in PROMPT_COLUMNS:
        if column in row:
            prompt = as_text(row[column], column)
            break
    else:
        raise _missing(row, "prompt")
    if not isinstance(prompt, str):
        check_alternation(prompt, column)
        if prompt[-1]["role"] not in ("user", "tool"):
            raise BadRow("prompt_ends_with_assistant", f"column {column!r} ends with {turn_of(prompt[-1]['role'])}; a "
                                                       "prompt ends with the user, the response comes after it")
    return prompt


def _missing(row: Mapping[str, Any], *columns: str) -> BadRow:
    return BadRow("missing_column", f"the row has no column {' or '.join(map(repr, columns))}; it has "
                                    f"{', '.join(map(repr, row)) or 'none'}. Map its names, ours first: "
                                    f"--columns.{columns[0]} NAME; or use a converter")


def _need(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise _missing(row, column)
    return row[column]


def _response(value: Any, column: str) -> Text:
    response = as_text(value, column)
    if not isinstance(response, str):
        check_alternation(response, column, first="assistant")
        if response[-1]["role"] != "assistant":
            raise BadRow("last_turn_not_assistant", f"column {column!r} ends with a user turn; a response ends with "
                                                    "the assistant")
    return response


def _parse_prompt(row: Mapping[str, Any], options: ParseOptions) -> Example:
    if options.prompts_from is not None:
        return Example(_prompt({"prompt": _prompt_within(_conversation(row, options), options.prompts_from)}))
    given = any(column in row for column in PROMPT_COLUMNS)
    if "chosen" in row and "rejected" in row and not (given and isinstance(row["chosen"], str)):
        prompt, _ = _explicit_or_whole(row)  # message answers make a string prompt a chat prompt
        return Example([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    if given:
        return Example(_prompt(row))
    if "messages" in row:
        return Example(_prompt({"prompt": row["messages"]}))
    raise _missing(row, *PROMPT_COLUMNS, "messages")


def _conversation(row: Mapping[str, Any], options: ParseOptions) -> Text:
    """Whatever of a conversation a row holds, its answers included where they are messages."""
    for column in ("messages", "conversations", "context_messages"):
        if column in row and "chosen" not in row:
            return as_messages(row[column], column)
    prompt = _parse_prompt(row, dataclasses.replace(options, prompts_from=None)).prompt
    answer = as_text(row["completion"], "completion") if "completion" in row else ""
    return prompt if isinstance(prompt, str) or isinstance(answer, str) else [*prompt, *answer]


def _prompt_within(conversation: Text, where: str) -> Text:
    """The conversation up to its first user turn, or up to before its last assistant turn."""
    if isinstance(conversation, str):
        return conversation
    roles = [message["role"] for message in conversation]
    if where == "first_user":
        return conversation[: roles.index("user") + 1] if "user" in roles else conversation
    answers = [place for place, role in enumerate(roles) if role == "assistant"]
    return conversation[: answers[-1]] if answers else conversation


def _parse_sft(row: Mapping[str, Any], options: ParseOptions) -> Example:
    if "completion" in row:
        return Example(_prompt(row), (_response(row["completion"], "completion"),))
    for column in ("messages", "conversations"):
        if column in row:
            messages = as_dialogue(as_messages(row[column], column), column)
            start = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
            return Example(messages[:start], (messages[start:],))
    if "text" in row:
        return Example("", (as_text(row["text"], "text"),))
    raise _missing(row, "completion", "messages", "conversations", "text")


def _parse_preference(row: Mapping[str, Any], options: ParseOptions) -> Example:
    if "chosen" not in row and "responses" in row:
        return _pair_graded(_parse_graded(row, options), row, options)
    prompt, sides = _explicit_or_whole(row)
    if sides[0] == sides[1] and not options.to_judge:
        raise BadRow("identical_chosen_rejected", "'chosen' and 'rejected' are the same; there is nothing to prefer")
    return Example(prompt, sides, pairs=((0, 1),), margins=_margins(row))


def _answer(value: Any, column: str) -> Text | None:
    """The response in a cell beside an explicit prompt (a string, or messages that begin with the assistant's), or
    None where the cell is a whole conversation."""
    text = as_text(value, column)
    if isinstance(text, str) or text[0]["role"] == "assistant":
        return _response(value, column)
    return None


def _explicit_or_whole(row: Mapping[str, Any]) -> tuple[Text, tuple[Text, Text]]:
    """Prompt and the two responses, from an explicit prompt or from two whole conversations."""
    chosen, rejected = _need(row, "chosen"), _need(row, "rejected")
    given = _prompt(row) if any(column in row for column in PROMPT_COLUMNS) else None
    first = None if given is None else _answer(chosen, "chosen")
    second = None if given is None else _answer(rejected, "rejected")
    if given is not None and first is not None and second is not None:
        return given, (first, second)
    if (first is None) != (second is None):
        raise BadRow("mixed_chosen_rejected", "one of 'chosen' and 'rejected' is a whole conversation and the other a "
                                              "response alone; write both the same way")
    prompt, a, b = split_pair(as_dialogue(chosen, "chosen"), as_dialogue(rejected, "rejected"))
    if given is not None and not _same_prompt(given, prompt):
        raise BadRow("prompt_mismatch", f"'prompt' {canonical_prompt(given)[:60]!r} is not how 'chosen' and 'rejected' "
                                        f"begin ({canonical_prompt(prompt)[:60]!r})")
    return prompt, (a, b)


def _same_prompt(given: Text, messages: list[Message]) -> bool:
    if isinstance(given, str):
        users = [canonical_prompt(m["content"]) for m in messages if m["role"] == "user"]
        return canonical_prompt(given) in (users[0], users[-1])
    return canonical_prompt(given) == canonical_prompt(messages)


def _margins(row: Mapping[str, Any]) -> tuple[float, ...]:
    if "margin" in row:
        return (finite_number(row["margin"], "margin"),)
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in row and rejected in row:
            return (finite_number(row[chosen], chosen) - finite_number(row[rejected], rejected),)
    return ()


def _parse_graded(row: Mapping[str, Any], options: ParseOptions) -> Example:
    del options
    return graded_example(row, _prompt, _response)


def _pair_graded(example: Example, row: Mapping[str, Any], options: ParseOptions) -> Example:
    digest = hashlib.sha256(f"{options.seed}:{_prompt_id(row, example)}".encode()).digest()
    return paired(example, options, np.random.default_rng(int.from_bytes(digest[:8], "big")))


def _parse_unpaired(row: Mapping[str, Any], options: ParseOptions) -> Example:
    if STEPS in row and "completion" not in row:
        example = _solution(row)
        label = row[LABEL] if LABEL in row else _parse_steps(row, options).extra[LABELS][-1]
        return dataclasses.replace(example, scores=({LABEL: _desirable(label)},))
    response, label = _response(_need(row, "completion"), "completion"), _need(row, LABEL)
    return Example(_prompt(row), (response,), scores=({LABEL: _desirable(label)},))


_LABELS = {"true": True, "false": False, "1": True, "0": False}
"""Labels as text files have them."""


def _desirable(label: Any) -> float:
    if isinstance(label, str):
        label = _LABELS.get(label.strip().lower(), label)
    if not (isinstance(label, bool) or label in (0, 1)) or isinstance(label, str):
        raise BadRow("bad_label", f"column 'label' is {label!r}; give true (desirable) or false")
    return float(label)


def _parse_steps(row: Mapping[str, Any], options: ParseOptions) -> Example:
    del options
    _need(row, LABELS)
    return _solution(row)


def _solution(row: Mapping[str, Any]) -> Example:
    """A solution in steps; these, and their labels where there are any, stay in `extra` as they were checked."""
    _need(row, STEPS)
    steps = row_steps(row)
    labels = {LABELS: row_labels(row, len(steps))} if LABELS in row else {}
    return Example(_prompt(row), (BETWEEN.join(steps),), extra={STEPS: steps, **labels})


def _parse_answered(row: Mapping[str, Any], options: ParseOptions) -> Example:
    if "chosen" in row and "rejected" in row:
        return _parse_preference(row, options)
    if "responses" in row:
        return _parse_graded(row, options)
    if STEPS in row and "completion" not in row:
        return _parse_unpaired(row, options) if LABEL in row else _solution(row)
    return _parse_unpaired(row, options) if LABEL in row and "completion" in row else _parse_sft(row, options)


def _parse_group(row: Mapping[str, Any], kind: Kind, options: ParseOptions) -> Example:
    """A row as `generate`, `score` and `pairs` write it."""
    example = example_of_group(row, kind)
    return _pair_graded(example, row, options) if kind == "preference" and not example.pairs else example


_PARSERS = {
    "prompt": _parse_prompt,
    "sft": _parse_sft,
    "preference": _parse_preference,
    "graded": _parse_graded,
    "unpaired": _parse_unpaired,
    "steps": _parse_steps,
    "answered": _parse_answered,
}
