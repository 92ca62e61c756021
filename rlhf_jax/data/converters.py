"""Foreign rows into rows that `rows.parse_row` knows. A converter is a function of one row; `CONVERTERS` names them.

A column that a converter needs and does not find raises KeyError, which the funnel counts as missing_column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.context_columns import SYSTEM_COLUMNS
from rlhf_jax.data.example import NotedRow
from rlhf_jax.data.graded import finite_number
from rlhf_jax.data.turns import as_messages, as_text, parse_hh

Row = Mapping[str, Any]
_INSTRUCTION = ("instruction", "input", "output", "history")
_LAYOUT = ("prompt", "completion", "text", "messages", "conversations", "context_messages", "responses")
"""Columns in which files of instructions repeat them in another layout."""


def hh_rlhf(row: Row) -> Row:
    r"""HH-RLHF: `chosen` and `rejected` as "\n\nHuman: ... \n\nAssistant: ..." strings, into message lists."""
    return {**row, **{side: parse_hh(row[side], side) for side in ("chosen", "rejected")}}


def alpacaeval_graded(row: Row) -> Row:
    """AlpacaEval outputs of many models with the judge's probability of a win; the baseline's answer goes to extra."""
    return {**row, "prompt_id": f"{row['dataset']}-{row['index']}", "responses": row["responses"]}


def bon_graded(row: Row) -> Row:
    """Best-of-n samples of one policy: `samples` [{k, text, score}]; samples without a score are left out."""
    graded = [sample for sample in row["samples"] if sample["score"] is not None]
    if not graded:
        raise BadRow("no_responses", "none of the samples has a score")
    return NotedRow({**_others(row, "samples"), "responses": graded},
                    left_out_responses=len(row["samples"]) - len(graded))


def webgpt(row: Row) -> Row:
    """WebGPT comparisons: two answers with human scores; equal scores make no pair and are counted as no_pair."""
    return {**row, "prompt": row["prompt"].strip()}


def alpaca(row: Row) -> Row:
    """Alpaca instructions: `instruction`, `input`, `output`, and LIMA's `history` of earlier [question, answer]."""
    earlier = [message for question, answer in row.get("history") or () for message in _turns(question, answer)]
    return {**_others(row, *_INSTRUCTION, *_LAYOUT), "messages": [*earlier, *_turns(_instruction(row), row["output"])]}


def alpaca_pairs(row: Row) -> Row:
    """`instruction`, `input`, `chosen`, `rejected` into a prompt of one user message and two answers."""
    return {**_others(row, *_INSTRUCTION, *_LAYOUT), "prompt": _turns(_instruction(row)), "chosen": row["chosen"],
            "rejected": row["rejected"]}


def sharegpt(row: Row) -> Row:
    """ShareGPT `conversations` [{from, value}], with or without `chosen`/`rejected`, into messages.

    Greetings of the assistant before the first user turn are left out, which is what the files need most.
    """
    messages = as_messages(row["conversations"], "conversations")
    lead, turns = (1 if messages[0]["role"] == "system" else 0), len(messages)
    while len(messages) > lead and messages[lead]["role"] == "assistant":
        del messages[lead]
    column = "prompt" if "chosen" in row and "rejected" in row else "messages"
    return NotedRow({**_others(row, "conversations"), column: messages}, left_out_greetings=turns - len(messages))


def ultrafeedback_binarized(row: Row) -> Row:
    """UltraFeedback-binarized: a string `prompt` beside whole conversations; its `messages` repeat `chosen`."""
    return _others(row, "messages")


def helpsteer(row: Row) -> Row:
    """HelpSteer: one response per row, graded by the mean of helpfulness and correctness (RLHFlow's rule).

    The rows of a prompt are joined afterwards: it is one of `ONE_ANSWER_A_ROW`.
    """
    helpfulness, correctness = (finite_number(row[column], column) for column in ("helpfulness", "correctness"))
    answer = {"text": as_text(row["response"], "response"), "score": (helpfulness + correctness) / 2}
    return {**{column: row[column] for column in SYSTEM_COLUMNS if column in row}, "prompt": row["prompt"],
            "responses": [answer]}


def story_prompt(row: Row) -> Row:
    """A story opening: a plain-text prompt that the model continues."""
    return {"prompt": row["prompt"], **{column: row[column] for column in ("id", *SYSTEM_COLUMNS) if column in row}}


CONVERTERS: dict[str, Callable[[Row], Row | list[Row]]] = {
    "alpaca": alpaca,
    "alpaca_pairs": alpaca_pairs,
    "alpacaeval_graded": alpacaeval_graded,
    "bon_graded": bon_graded,
    "helpsteer": helpsteer,
    "hh_rlhf": hh_rlhf,
    "sharegpt": sharegpt,
    "story_prompt": story_prompt,
    "ultrafeedback_binarized": ultrafeedback_binarized,
    "webgpt": webgpt,
}
ONE_ANSWER_A_ROW = frozenset({"helpsteer"})
"""Converters of graded rows that hold one answer each; `load_examples` joins those of one prompt into one row."""


def _instruction(row: Row) -> str:
    instruction, given = row["instruction"], row.get("input")
    return f"{instruction}\n\n{given}" if given else instruction


def _turns(question: str, answer: str | None = None) -> list[Row]:
    messages: list[Row] = [{"role": "user", "content": question}]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def _others(row: Row, *used: str) -> dict[str, Any]:
    """The columns that the converter does not turn into others: ids, system messages, tools, and what scorers read."""
    return {column: value for column, value in row.items() if column not in used}


def sentiment_pairs(labelled: Iterable[tuple[str, int]], seed: int, max_pairs: int,
                    prompt_text: str = "") -> list[dict[str, Any]]:
    """Preference rows out of labelled sentences: a positive one chosen over a negative one.

    Args:
      labelled: (sentence, label) with label 1 for positive and 0 for negative.
      seed: of the matching; the same seed and sentences give the same rows.
      max_pairs: number of rows at most; there are no more than sentences of the rarer label, each used once.
      prompt_text: prompt of every row; empty rows need `ParseOptions(allow_empty_prompt=True)`.

    Raises:
      ValueError: a label is not 0 or 1, or one of the labels does not occur.
    """
    by_label: dict[int, list[str]] = {0: [], 1: []}
    for sentence, label in labelled:
        if label not in by_label:
            raise ValueError(f"label {label!r} of {sentence[:40]!r} is neither 0 (negative) nor 1 (positive)")
        by_label[label].append(sentence)
    if not by_label[0] or not by_label[1]:
        raise ValueError(f"{len(by_label[1])} positive and {len(by_label[0])} negative sentences make no pair")
    rng = np.random.default_rng(seed)
    positive, negative = (rng.permutation(len(by_label[label])).tolist() for label in (1, 0))
    return [
        {"prompt_id": f"sentiment-{i}", "prompt": prompt_text, "chosen": by_label[1][p], "rejected": by_label[0][n]}
        for i, (p, n) in enumerate(zip(positive, negative, strict=False)) if i < max_pairs
    ]
