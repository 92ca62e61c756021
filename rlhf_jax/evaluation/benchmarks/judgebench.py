"""JudgeBench: pairs of answers by one model, of which one is right and the other subtly wrong.

Rows: `pair_id`, `question`, `response_A`, `response_B`, `label` ("A>B" or "B>A"), `source`, as in ScalerLab/JudgeBench.
Accuracy in four categories and over all pairs; ties count one half.

Published (by the authors of GRAM): Llama-3.1-Nemotron-70B-Reward 67.2 over all. A scorer that likes length alone has
45.15 on 206 of its pairs; one that knows nothing 50.

Source: S. Tan et al., "JudgeBench", arXiv 2410.12784.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, as_question, mean_of_pairs, present
from rlhf_jax.evaluation.calibration import Sums, TieRule

CATEGORIES = {"mmlu-pro": "Knowledge", "livebench-reasoning": "Reasoning", "livebench-math": "Math",
              "livecodebench": "Coding"}
"""How a `source` begins -> its category."""


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """Each category that is there, and all pairs."""
    return {**{name: mean_of_pairs(rows, tie_rule, name) for name in present(rows)},
            "all": mean_of_pairs(rows, tie_rule)}


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The labelled answer is the chosen one."""
    label, source = raw["label"], raw["source"]
    category = next((name for start, name in CATEGORIES.items() if source.startswith(start)), None)
    if label not in ("A>B", "B>A") or category is None:
        raise BadRow("not_for_this_converter", f"label {label!r} is not A>B or B>A, or source {source!r} begins with "
                                               f"none of {', '.join(CATEGORIES)}")
    better, worse = ("response_A", "response_B") if label == "A>B" else ("response_B", "response_A")
    return {"id": raw["pair_id"], "prompt": as_question(raw["question"]), "chosen": raw[better], "rejected": raw[worse],
            "subset": category}


BENCHMARK = Benchmark(numbers, row, parts={name: (name,) for name in CATEGORIES.values()})
