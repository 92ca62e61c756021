"""Converters of graded answers: each becomes `responses` [{text, score}], from which pairs follow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow, PromptAlone
from rlhf_jax.data.context_columns import SYSTEM_COLUMNS
from rlhf_jax.data.converters.base import Row, others
from rlhf_jax.data.example import NotedRow
from rlhf_jax.data.graded import finite_number
from rlhf_jax.data.ratings import ARMORM, UNIT, rated_by, to_unit
from rlhf_jax.data.turns import as_messages, as_text

ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
"""What UltraFeedback's judge rates, from 1 to 5; `fine-grained_score` is their mean."""
_NO_RATING = "N/A"
_HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def alpacaeval_graded(row: Row) -> Row:
    """AlpacaEval outputs of many models with the judge's probability of a win; the baseline's answer goes to extra."""
    return {**row, "prompt_id": f"{row['dataset']}-{row['index']}", "responses": row["responses"]}


def bon_graded(row: Row) -> Row:
    """Best-of-n samples of one policy: `samples` [{k, text, score}]; samples without a score are left out."""
    return _rated(row, row["samples"], "samples")


def webgpt(row: Row) -> Row:
    """WebGPT comparisons: two answers with human scores; equal scores make no pair and are counted as no_pair."""
    return {**row, "prompt": row["prompt"].strip()}


def helpsteer(row: Row, *, objective: str) -> Row:
    """HelpSteer and HelpSteer2: one response per row, graded; the rows of a prompt are joined afterwards.

    Its five ratings stand beside the score, in 0 to 1, by ArmoRM's names for them.

    objective: column of the score, or several joined by "+", of which the mean is taken: "helpfulness+correctness" is
      RLHFlow's rule for its best-against-random pairs.
    """
    scores = [finite_number(row[column], column) for column in objective.split("+")]
    answer = {"text": as_text(row["response"], "response"), "score": sum(scores) / len(scores),
              "scores": rated_by("helpsteer", row)}
    return {**{column: row[column] for column in SYSTEM_COLUMNS if column in row},
            "prompt": helpsteer_prompt(row["prompt"]), "responses": [answer]}


def armorm(row: Row) -> Row:
    """ArmoRM's multi-objective data: a conversation, and a column in 0 to 1 for each objective, null if not rated."""
    messages = as_messages(row["messages"], "messages")
    scores = {rated.name: to_unit(rated.name, row[rated.name], UNIT) for rated in ARMORM
              if row.get(rated.name) is not None}
    if not scores:
        raise BadRow("missing_score", "the row has a rating for none of ArmoRM's objectives")
    return {**others(row, "messages", *(rated.name for rated in ARMORM)), "prompt": messages[:-1],
            "responses": [{"text": messages[-1:], "scores": scores}]}


def helpsteer_prompt(prompt: Any) -> Any:
    r"""HelpSteer2 writes earlier turns into the prompt, behind "\n<extra_id_1>Assistant\n" and the like."""
    if not isinstance(prompt, str):
        return prompt
    first, *rest = _HELPSTEER_TURN.split(prompt)
    later = [{"role": role.lower(), "content": text} for role, text in zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": "user", "content": first}, *later] if later else prompt


def ultrafeedback(row: Row, *, objective: str) -> Row:
    """UltraFeedback as published: `completions` of four models, each with ratings; all unequal pairs (RLHFlow's rule).

    The overall score and the ratings of the four aspects stand beside the score, in 0 to 1, by ArmoRM's names for them.

    objective: "fine-grained_score", the mean of the four ratings (of those that are there), or "overall_score".
    """
    answers = [{"text": answer["response"], "model": answer["model"], "score": _ultrafeedback_score(answer, objective),
                "scores": _given("ultrafeedback", {"overall_score": answer.get("overall_score"),
                                           **(_aspects(answer) if "annotations" in answer else {})})}
               for answer in row["completions"]]
    kept = others(row, "instruction", "completions", "models", "correct_answers", "incorrect_answers")
    return _rated({**kept, "prompt": row["instruction"]}, answers)


def _ultrafeedback_score(answer: Row, objective: str) -> float | None:
    if objective in answer and answer[objective] is not None:
        return finite_number(answer[objective], objective)
    if objective != "fine-grained_score":
        raise KeyError(objective)
    given = [finite_number(rating, "Rating") for rating in _aspects(answer).values() if _is_given(rating)]
    return sum(given) / len(given) if given else None


def _aspects(answer: Row) -> dict[str, Any]:
    return {aspect: answer["annotations"][aspect]["Rating"] for aspect in ASPECTS}


def beavertails(row: Row) -> Row:
    """BeaverTails: one `response` per row, and whether it `is_safe`; the rows of a prompt are joined afterwards.

    A safe answer beats an unsafe one, and its rating stands beside the score by ArmoRM's name for it.
    """
    rating = rated_by("beavertails", row)
    answer = {"text": row["response"], "score": float(row["is_safe"]), "scores": rating}
    return {**{column: row[column] for column in SYSTEM_COLUMNS if column in row}, "prompt": row["prompt"],
            "responses": [answer]}


def code_ultrafeedback(row: Row) -> Row:
    """CodeUltraFeedback: `responses` [{model, response}] and `annotations` [{model, rating}]; all unequal pairs.

    A row is rated for one `preference` (readability, style ...), which stands beside the score by ArmoRM's name for it.
    """
    ratings = {note["model"]: note["rating"] for note in row["annotations"]}
    found = [ratings.get(answer["model"]) for answer in row["responses"]]
    answers = [{"text": answer["response"], "model": answer["model"], "score": _rating(rating),
                "scores": _given("code", {row["preference"]: rating}) if "preference" in row else {}}
               for answer, rating in zip(row["responses"], found, strict=True)]
    kept = others(row, "instruction", "annotations", "responses")
    return _rated({**kept, "prompt": row["instruction"]}, answers)


def _rating(value: Any) -> float | None:
    return finite_number(value, "rating") if _is_given(value) else None


def _is_given(rating: Any) -> bool:
    return rating not in (_NO_RATING, None)


def _given(source: str, ratings: Row) -> dict[str, float]:
    """Those of an answer's ratings that somebody gave, in 0 to 1, by ArmoRM's names for them."""
    given = {column: rating for column, rating in ratings.items() if _is_given(rating)}
    return rated_by(source, given) if given else {}


def prometheus2(row: Row) -> Row:
    """Prometheus 2's Preference-Collection: two answers to `orig_instruction` with scores from 1 to 5."""
    answers = [{"text": row[f"orig_response_{side}"], "score": finite_number(row[f"orig_score_{side}"], "orig_score")}
               for side in "AB"]
    return {**{column: row[column] for column in SYSTEM_COLUMNS if column in row}, "prompt": row["orig_instruction"],
            "responses": answers}


def _rated(row: Row, answers: Sequence[Row], *used: str) -> Row:
    """The row with those of its answers that have a score."""
    graded = [answer for answer in answers if answer["score"] is not None]
    if not graded:
        raise PromptAlone("no_responses", "none of the answers has a score", others(row, *used))
    return NotedRow({**others(row, *used), "responses": graded}, left_out_responses=len(answers) - len(graded))
