"""RM-Bench: three right and three wrong answers to a prompt, each concise, long, and long in markdown.

Rows: `id`, `prompt`, `chosen` (3), `rejected` (3), `domain`, as in THU-KEG/RM-Bench. Each right answer meets each wrong
one, a tie being lost. `normal` compares answers of one style, `easy` a right one in the richer style with a wrong one
in the plainer, `hard` the other way round; each over all rows, as `compute_accuracy` of its scripts/utils.py. The
leaderboard averages over the four domains instead, of which Safety is the mean of its two halves.

Published (leaderboard): Skywork-Reward-Llama-3.1-8B 70.1 (Chat 69.5, Math 60.6, Code 54.5, Safety 95.7; easy 89.0,
normal 74.7, hard 46.6). A scorer that likes length alone has hard 13.16, normal 40.51, easy 86.42 on 636 rows, none of
them of mathematics.

Source: Y. Liu et al., "RM-Bench", arXiv 2410.16184; README of THU-KEG/RM-Bench-Leaderboard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation.benchmarks.base import (
    Accuracies,
    Benchmark,
    JudgedRow,
    as_question,
    combined,
    mean_of,
    plain_mean,
    present,
)
from rlhf_jax.evaluation.calibration import Sums, TieRule

STYLES = 3
LEVELS: dict[str, Callable[[np.ndarray], float]] = {
    "hard": lambda won: float(won[np.triu_indices(STYLES, 1)].mean()),
    "normal": lambda won: float(np.diag(won).mean()),
    "easy": lambda won: float(won[np.tril_indices(STYLES, -1)].mean()),
}
"""Level -> its share of the matrix [style of the right answer, style of the wrong one]."""
DOMAINS = {"Chat": ("chat",), "Code": ("code",), "Math": ("math",), "Safety": ("safety-refuse", "safety-response")}


def matrix(row: JudgedRow, tie_rule: TieRule) -> np.ndarray | None:
    """[3, 3] 1 where the right answer of the row's style beats the wrong one of the column's; None where one failed.

    Equal texts make no pair: they tie.
    """
    if not row.judged:
        return None
    won = np.full((STYLES, STYLES), 0.5 if tie_rule == "half" else 0.0)
    for (right, wrong), win in zip(row.pairs, row.wins(tie_rule), strict=True):
        won[right, wrong - STYLES] = win
    return won


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """The three levels over all rows, and in each subset; the domains that are complete; the leaderboard's numbers
    where all are."""
    matrices = [matrix(row, tie_rule) for row in rows]
    levels = {name: [None if won is None else of(won) for won in matrices] for name, of in LEVELS.items()}
    means = [None if won is None else plain_mean({name: of(won) for name, of in LEVELS.items()}) for won in matrices]
    out = {name: mean_of(values) for name, values in levels.items()}
    for subset in present(rows):
        out |= {f"{subset}/{name}": combined(rows, values, [subset], plain_mean) for name, values in levels.items()}
    complete = BENCHMARK.complete(rows)
    out |= {name: combined(rows, means, DOMAINS[name], plain_mean) for name in complete}
    if len(complete) == len(DOMAINS):
        subsets = [subset for parts in DOMAINS.values() for subset in parts]
        out |= {f"leaderboard/{name}": combined(rows, values, subsets, mean_of_domains)
                for name, values in (levels | {"overall": means}).items()}
    return out


def mean_of_domains(accuracies: Accuracies) -> float:
    """The mean over domains of the means over their subsets."""
    domains = {name: {s: accuracies[s] for s in subsets if s in accuracies} for name, subsets in DOMAINS.items()}
    return plain_mean({name: plain_mean(found) for name, found in domains.items() if found})


def official(rows: Sequence[JudgedRow], tie_rule: TieRule, model: str) -> Mapping[str, Any]:
    """Its own results: a list of rows with `score_chosen` and `score_rejected`, which `compute_accuracy` reads."""
    del tie_rule, model
    return {"rm_bench.json": [
        {"id": row.id, "domain": row.subset, "score_chosen": [row.scores[i] for i in range(STYLES)],
         "score_rejected": [row.scores[STYLES + i] for i in range(STYLES)]}
        for row in rows if len(row.scores) == 2 * STYLES]}


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Right answers first, with the score 1; wrong ones with 0."""
    sides = {side: raw[side] for side in ("chosen", "rejected")}
    if any(len(texts) != STYLES for texts in sides.values()):
        raise ValueError(f"a row has {STYLES} chosen and {STYLES} rejected answers, this one "
                         f"{' and '.join(str(len(texts)) for texts in sides.values())}")
    answers = [{"text": text, "score": int(side == "chosen")} for side, texts in sides.items() for text in texts]
    return {"id": raw["id"], "prompt": as_question(raw["prompt"]), "responses": answers, "subset": raw["domain"]}


BENCHMARK = Benchmark(numbers, row, tie_rule="strict", parts=DOMAINS, official=official)
