"""LLMBar: pairs of which one answer follows the instruction and the other, often prettier, does not.

Rows: `input`, `output_1`, `output_2`, `label` (1 or 2), as in princeton-nlp/LLMBar, and `subset`, the folder that its
dataset.json lies in (`LLMBar/Natural`, `LLMBar/Adversarial/Neighbor`, ...). Its copies of other sets (`Processed/...`)
are reported too. `Adversarial` is the mean of the four adversarial subsets; ties count one half.

Published (arXiv 2310.07641): people agree in 94 % of its pairs; the best judge, GPT-4, has 82.8 in Adversarial. A
scorer that likes length alone has Natural 59.20, Neighbor 10.62, GPTInst 14.46, GPTOut 44.12, Manual 17.57 on 354 of
its 419 rows.

Source: Z. Zeng et al., "Evaluating large language models at evaluating instruction following", arXiv 2310.07641.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.evaluation.benchmarks.base import Benchmark, JudgedRow, as_question, by_subset, combined, plain_mean
from rlhf_jax.evaluation.calibration import Sums, TieRule

NATURAL = "LLMBar/Natural"
ADVERSARIAL = tuple(f"LLMBar/Adversarial/{name}" for name in ("Neighbor", "GPTInst", "GPTOut", "Manual"))
PROCESSED = tuple(f"Processed/{name}" for name in ("FairEval", "LLMEval^2", "MT-Bench"))


def numbers(rows: Sequence[JudgedRow], tie_rule: TieRule) -> Mapping[str, Sums]:
    """Each subset, and the mean of the adversarial ones where all four are there."""
    out = by_subset(rows, tie_rule)
    if "Adversarial" in BENCHMARK.complete(rows):
        out["Adversarial"] = combined(rows, [row.share(tie_rule) for row in rows], ADVERSARIAL, plain_mean)
    return out


def row(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The labelled answer is the chosen one."""
    label = raw["label"]
    if label not in (1, 2):
        raise BadRow("bad_label", f"label {label!r} is neither 1 nor 2")
    return {"prompt": as_question(raw["input"]), "chosen": raw[f"output_{label}"],
            "rejected": raw[f"output_{3 - label}"], "subset": raw["subset"]}


BENCHMARK = Benchmark(numbers, row, parts={"Natural": (NATURAL,), "Adversarial": ADVERSARIAL}, others=PROCESSED)
