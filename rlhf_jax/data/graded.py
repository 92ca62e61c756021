"""Graded responses: their numbers, and the preference pairs they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.config.data import PairRule
from rlhf_jax.data.bad_row import BadRow, short
from rlhf_jax.data.example import DATA_SCORE, Example, ParseOptions
from rlhf_jax.data.groups import Text, Verdict, named


def pairs_from_scores(
    scores: Sequence[float | None],
    rule: PairRule = "all",
    min_gap: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[tuple[tuple[int, int], ...], tuple[float, ...]]:
    """(chosen, rejected) indices and their score gaps, from one score a response.

    A pair needs a gap above zero and of at least `min_gap`. Responses without a score take no part. Equal scores are
    ordered by index. `best_random` draws the rejected one from all that qualify against the best; it needs `rng`.
    """
    if rule not in ("all", "best_worst", "best_random") or (rule == "best_random" and rng is None):
        raise ValueError(f"pair rule {rule!r} is unknown, or has no random generator; known rules are all, "
                         "best_worst, best_random (with rng)")
    ranked = sorted((-score, i) for i, score in enumerate(scores) if score is not None)
    pairs = [(i, j) for a, (low, i) in enumerate(ranked) for high, j in ranked[a + 1 :]
             if high - low > 0 and high - low >= min_gap]
    if rule != "all" and pairs:
        pairs = [pair for pair in pairs if pair[0] == ranked[0][1]]
        pairs = pairs[-1:] if rng is None or rule == "best_worst" else [pairs[int(rng.integers(len(pairs)))]]
    values = {i: -negated for negated, i in ranked}
    return tuple(pairs), tuple(values[i] - values[j] for i, j in pairs)


def finite_number(value: Any, column: str) -> float:
    """The cell as a float. Raises BadRow: not_a_number, non_finite_score."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow("not_a_number", f"column {column!r} holds {short(value)}, which is no number") from error
    if not math.isfinite(number):
        raise BadRow("non_finite_score", f"column {column!r} holds {number}; a score must be finite")
    return number


def graded_example(row: Mapping[str, Any], prompt: Callable[[Mapping[str, Any]], Text],
                   response: Callable[[Any, str], Text]) -> Example:
    """The responses of a graded row with their numbers; `prompt` and `response` read a row's and a cell's text.

    Raises:
      BadRow: no_responses, empty_response (all of them), unequal_lists, missing_score, not_a_number, non_finite_score.
    """
    graded = _cells(row)
    # One model that said nothing must not cost the answers of the others; the funnel counts what is left out.
    spoken = [cell for cell in graded if not (isinstance(cell[0], str) and not cell[0].strip())]
    if not spoken:
        raise BadRow("empty_response", "every response is empty; there is nothing to judge")
    extra: dict[str, Any] = {}
    if all(model is not None for _, _, model in spoken):
        extra["response_models"] = [model for _, _, model in spoken]
    notes = {"left_out_responses": len(graded) - len(spoken)} if len(spoken) < len(graded) else {}
    return Example(prompt(row), tuple(response(text, "responses") for text, _, _ in spoken),
                   scores=tuple(named(DATA_SCORE, grades) for _, grades, _ in spoken), extra=extra, notes=notes)


def _cells(row: Mapping[str, Any]) -> list[tuple[Any, Verdict, Any]]:
    """(text, numbers, model or None) of each graded response, from either layout."""
    cells = row.get("responses")
    if not isinstance(cells, Sequence) or isinstance(cells, str) or not cells:
        raise BadRow("no_responses", "column 'responses' must be a list of at least one response")
    if "rewards" in row or "scores" in row:
        scores = row.get("rewards", row.get("scores"))
        if not isinstance(scores, Sequence) or len(scores) != len(cells):
            raise BadRow("unequal_lists", f"{len(cells)} responses but scores {str(scores)[:60]}; give one score each")
        return [(text, _grades({"": score}), None) for text, score in zip(cells, scores, strict=True)]
    if not all(isinstance(cell, Mapping) and "text" in cell and ("score" in cell or "scores" in cell)
               for cell in cells):
        raise BadRow("missing_score", "'responses' must hold objects {text, score} or {text, scores: {name: number}}, "
                                      "or the row a list 'rewards'")
    return [(cell["text"], _grades({"": cell.get("score")} | _named_grades(cell)), cell.get("model"))
            for cell in cells]


def _named_grades(cell: Mapping[str, Any]) -> dict[str, Any]:
    scores = cell.get("scores") or {}
    if not isinstance(scores, Mapping) or not all(isinstance(name, str) and name for name in scores):
        raise BadRow("not_a_number", f"the scores of a response are {short(scores)}; they are numbers by name")
    return dict(scores)


def _grades(values: Mapping[str, Any]) -> Verdict:
    """The numbers that were given; null is none."""
    return {name: finite_number(value, "responses") for name, value in values.items() if value is not None}


def paired(example: Example, options: ParseOptions, rng: np.random.Generator) -> Example:
    """The pairs that `options` choose of graded responses, and the responses that stand in one.

    Raises:
      BadRow: no_pair.
    """
    values = [scores.get(options.pair_score) for scores in example.scores]
    pairs, margins = pairs_from_scores(values, options.pair_rule, options.min_gap, rng)
    kept = [i for i, (chosen, rejected) in enumerate(pairs) if example.responses[chosen] != example.responses[rejected]]
    if not kept:
        names = sorted({name for scores in example.scores for name in scores})
        known = "" if options.pair_score in names else f"; the row has {', '.join(names) or 'none'}: set pair_score"
        raise BadRow("no_pair", f"no two responses differ in their score {options.pair_score!r} by more than "
                                f"{options.min_gap}; scores are {values[:8]}{known}")
    return without_unpaired(dataclasses.replace(example, pairs=tuple(pairs[i] for i in kept),
                                                margins=tuple(margins[i] for i in kept)))


def without_unpaired(example: Example) -> Example:
    """Responses that are in no pair teach a preference nothing: they take no room in a row."""
    used = sorted({i for pair in example.pairs for i in pair})
    place = {old: new for new, old in enumerate(used)}
    extra = dict(example.extra)
    if "response_models" in extra:
        extra["response_models"] = [extra["response_models"][i] for i in used]
    return dataclasses.replace(
        example, responses=tuple(example.responses[i] for i in used), scores=tuple(example.scores[i] for i in used),
        pairs=tuple((place[chosen], place[rejected]) for chosen, rejected in example.pairs), extra=extra)
