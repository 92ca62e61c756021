"""HHH alignment (BIG-bench): pairs on being helpful, honest and harmless, and other.

Rows: `input`, `target_scores` {answer: 1 or 0}, as in BIG-bench, and `subset`, the folder that its task.json lies in.
An `input` may hold a dialogue ("...\\n\\nAssistant: ...\\n\\nHuman: ..."). Ties count one half.

A scorer that likes length alone has helpful 64.29, harmless 61.40, honest 64.71 on 187 of its 221 rows.

Source: A. Askell et al., "A general language assistant as a laboratory for alignment", arXiv 2112.00861.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.turns import parse_hh
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, mean_of_pairs, present
from rlhf_jax.evaluation.calibration import Sums, TieRule

SUBSETS = ("helpful", "honest", "harmless", "other")


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """Each subset, and all pairs."""
    return {**{subset: mean_of_pairs(rows, tie_rule, subset) for subset in present(rows)},
            "all": mean_of_pairs(rows, tie_rule)}


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer with the score 1 is the chosen one."""
    answers = {score: [text for text, given in raw["target_scores"].items() if given == score] for score in (1, 0)}
    if [len(texts) for texts in answers.values()] != [1, 1]:
        raise BadRow("not_for_this_converter", f"target_scores are {list(raw['target_scores'].values())}; one answer "
                                               "has 1 and one 0")
    (chosen,), (rejected,) = answers.values()
    dialogue = parse_hh(f"\n\nHuman: {raw['input']}\n\nAssistant: {chosen}", "input")
    return {"prompt": dialogue[:-1], "chosen": chosen, "rejected": rejected, "subset": raw["subset"]}


BENCHMARK = Benchmark(numbers, row, parts={subset: (subset,) for subset in SUBSETS})
